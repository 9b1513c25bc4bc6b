"""One door to a data file, whatever its form."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_trainer.data.formats.columnar import open_columns
from finetune_trainer.data.formats.delimited import open_table
from finetune_trainer.data.formats.detection import detect
from finetune_trainer.data.formats.folder import files_of
from finetune_trainer.data.formats.form import Form, Opened
from finetune_trainer.data.formats.json_document import read_document
from finetune_trainer.data.formats.jsonl import read_json_lines
from finetune_trainer.data.formats.parquet import ParquetReader
from finetune_trainer.data.problems import FileName, Findings, plain_words

log = logging.getLogger(__name__)


def open_file(path: Path, name: str, file: FileName, findings: Findings, *, max_bytes: int) -> Opened:
    """The rows of a file, or of a folder of the `datasets` library, read when they are asked for.

    What is wrong with a row goes into `findings`. `name` is what the user calls the file. Raises UserInputError, here
    or while reading, when the file as a whole cannot be read: of a form that is not read or not the one that its name
    says, damaged, or above `max_bytes` unpacked.
    """
    opened = _open(path, name, file, findings, max_bytes)
    columns = f", columns {plain_words(opened.columns)}" if opened.columns else ""
    log.info("%s data: %s%s", file, opened.form, columns)
    return opened


def _open(path: Path, name: str, file: FileName, findings: Findings, max_bytes: int) -> Opened:
    if path.is_dir():
        files, reader = files_of(path, file)
        return open_columns(files, reader, file, findings, max_bytes=max_bytes)
    found = detect(path, name, file, max_bytes=max_bytes)
    if found.form is Form.TABLE:
        return open_table(path, file, findings, found.delimiter, max_bytes=max_bytes)
    if found.form is Form.PARQUET:
        return open_columns([path], ParquetReader(), file, findings, max_bytes=max_bytes)
    read = read_document if found.form is Form.JSON else read_json_lines
    return Opened(found.form, read(path, file, findings, max_bytes=max_bytes))
