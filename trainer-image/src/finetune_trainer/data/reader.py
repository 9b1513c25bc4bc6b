"""Reads JSON Lines one line at a time: plain or gzip, with or without byte order mark, any line ends."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from finetune_trainer.data.problems import Fault, FileName, Findings, json_type
from finetune_trainer.errors import UserInputError

MAX_LINE_BYTES = 16 * 2**20  # a longer line is a whole file without line ends, or not a training example
GZIP_MAGIC = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BINARY_MAGICS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a ZIP archive (or an Excel file)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
}
CONVERT_ARRAY = "write one object a line: jq -c '.[]' data.json > data.jsonl"


def read_objects(
    path: Path, file: FileName, findings: Findings, *, max_bytes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object); what cannot be read becomes a finding.

    Raises UserInputError when the file as a whole cannot be read: another format, damaged, or above `max_bytes`
    once unpacked.
    """
    for number, line, ended in _lines(path, file, max_bytes):
        content = line.rstrip(b"\r\n")
        if not content.strip():
            findings.add(file, number, [Fault("empty_line", "the line is empty and is skipped", severity="warning")])
            continue
        value, fault = _parse(content, ended=ended, number=number, file=file)
        if fault:
            findings.add(file, number, [fault])
        else:
            yield number, value


def _lines(path: Path, file: FileName, max_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether a line end follows). A line above MAX_LINE_BYTES comes cut to one byte more."""
    number, total = 0, 0
    with _open(path, file) as stream:
        try:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(line)
                if number == 1:
                    line = line.removeprefix(UTF8_MARK)
                ended = line.endswith(b"\n")
                yield number, line, ended
                while not ended and len(line) > MAX_LINE_BYTES:  # pass over the rest of the huge line
                    rest = stream.readline(MAX_LINE_BYTES)
                    total += len(rest)
                    ended = not rest or rest.endswith(b"\n")
                    _refuse_above(total, max_bytes, file)
                _refuse_above(total, max_bytes, file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserInputError(
                f"{file} data: the gzip file is damaged or cut short after line {number}: {error}",
                advice="compress and upload the file again (test it with: gzip -t FILE)",
            ) from error


def _open(path: Path, file: FileName) -> BinaryIO:
    head = path.open("rb").read(8) if path.is_file() else b""
    for magic, what in BINARY_MAGICS.items():
        if head.startswith(magic):
            _refuse(f"{file} data: the file is {what}", "give JSON Lines, plain or compressed with gzip")
    if head.startswith(UTF16_MARKS):
        _refuse(f"{file} data: the file is UTF-16", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if head.startswith(GZIP_MAGIC):
        return cast(BinaryIO, io.BufferedReader(gzip.open(path, "rb"), 2**20))
    return path.open("rb")


def _parse(content: bytes, *, ended: bool, number: int, file: FileName) -> tuple[dict[str, Any], Fault | None]:
    if len(content) > MAX_LINE_BYTES:
        return {}, Fault(
            "line_too_long", f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB; is a line end missing?"
        )
    if number == 1:
        _refuse_other_layouts(content, file)
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return {}, Fault("not_utf8", "the line is not UTF-8; save the file as UTF-8", f"byte {error.start + 1}")
    except RecursionError:
        return {}, Fault("not_json", "the line is nested too deeply")
    except ValueError as error:
        return {}, _not_json(error, ended=ended)
    if not isinstance(value, dict):
        return {}, Fault("not_object", f"the line must be an object {{...}}, not {json_type(value)}")
    return value, None


def _not_json(error: ValueError, *, ended: bool) -> Fault:
    column = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    if not ended:
        return Fault("cut_line", "the last line breaks off: the file was cut short; write or upload it again", column)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return Fault("not_json", f"the line is not valid JSON: {reason}", column)


def _refuse_other_layouts(content: bytes, file: FileName) -> None:
    if content.lstrip().startswith(b"["):
        _refuse(f"{file} data: the file is one JSON array, not JSON Lines (line 1 begins with '[')", CONVERT_ARRAY)
    if content.strip() == b"{":
        _refuse(
            f"{file} data: the objects are spread over several lines (line 1 is only '{{')",
            "write one object a line: jq -c . data.json > data.jsonl",
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_above(total: int, max_bytes: int, file: FileName) -> None:
    if total > max_bytes:
        _refuse(
            f"{file} data: more than {max_bytes} bytes once unpacked",
            "use fewer examples, or ask the platform for a higher limit",
        )


def _refuse(message: str, advice: str) -> NoReturn:
    raise UserInputError(message, advice=advice)
