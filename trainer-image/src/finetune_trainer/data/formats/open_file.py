"""One door to a data file, whatever its form."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_trainer.data.formats.delimited import open_table
from finetune_trainer.data.formats.detection import detect
from finetune_trainer.data.formats.form import Form, Opened
from finetune_trainer.data.formats.json_document import read_document
from finetune_trainer.data.formats.jsonl import read_json_lines
from finetune_trainer.data.formats.parquet import open_parquet
from finetune_trainer.data.problems import FileName, Findings, plain_words

log = logging.getLogger(__name__)


def open_file(path: Path, name: str, file: FileName, findings: Findings, *, max_bytes: int) -> Opened:
    """The file's rows, read when they are asked for; what is wrong with a row goes into `findings`.

    `name` is what the user calls it. Raises UserInputError, here or while reading, when the file as a whole cannot
    be read: of a form that is not read or not the one that its name says, damaged, or above `max_bytes` unpacked.
    """
    found = detect(path, name, file, max_bytes=max_bytes)
    match found.form:
        case Form.JSON_LINES:
            opened = Opened(found.form, read_json_lines(path, file, findings, max_bytes=max_bytes))
        case Form.JSON:
            opened = Opened(found.form, read_document(path, file, findings, max_bytes=max_bytes))
        case Form.TABLE:
            opened = open_table(path, file, findings, found.delimiter, max_bytes=max_bytes)
        case Form.PARQUET:
            opened = open_parquet(path, file, findings, max_bytes=max_bytes)
    columns = f", columns {plain_words(opened.columns)}" if opened.columns else ""
    log.info("%s data: %s%s", file, opened.form, columns)
    return opened
