"""Tables as text: CSV with a header, cells between commas, semicolons or tabs, texts in double quotes."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from finetune_trainer.data.formats.form import MAX_ROW_BYTES, Form, Numbered, Opened, refuse, refuse_repeated
from finetune_trainer.data.formats.jsonl import not_utf8, too_long
from finetune_trainer.data.formats.unpacked import bounded_lines, open_unpacked
from finetune_trainer.data.problems import Fault, FileName, Findings

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SAMPLE = 20  # rows that decide what stands between cells
NAME = re.compile(r"[\w .:/()#?-]{0,64}")  # what a column of an unnamed file may be called


def open_table(path: Path, file: FileName, findings: Findings, delimiter: str, *, max_bytes: int) -> Opened:
    """The rows below the header, each with the number of the line in which it begins. Every cell is a text.

    Raises UserInputError when there is no usable header.
    """
    csv.field_size_limit(2 * MAX_ROW_BYTES)  # of the whole process; Lines refuses before it is reached
    with open_unpacked(path, file, max_bytes) as stream:
        header = _header(Lines(stream, file), delimiter, file)
    names_first = "; if line 1 is an example already, put a line of names before it"
    refuse_repeated(header, f"{file} data: the header of the CSV file", names_first)
    if not all(header):
        text = "a column has no name in the header (an index, perhaps) and is ignored"
        findings.add(file, 1, [Fault("unnamed_column", text, severity="warning")])
    rows = _rows(path, file, findings, header, delimiter, max_bytes)
    return Opened(Form.TABLE, rows, tuple(name for name in header if name))


def choose_delimiter(text: str) -> str:
    """Of the three the one by which most of the first rows have as many cells as the header, which has several."""
    return max(DELIMITERS, key=lambda delimiter: _fit(_sample(text, delimiter)))


def looks_like_a_table(text: str) -> bool:
    """Whether text without a telling name is a table: a header of short different names, and a row that fits."""
    rows = _sample(text, choose_delimiter(text))[:2]
    if len(rows) < 2 or len(rows[0]) < 2 or len(rows[0]) != len(rows[1]):
        return False
    return all(NAME.fullmatch(cell) for cell in rows[0]) and len(set(rows[0])) == len(rows[0])


class Lines:
    """Decoded lines for the csv module, which asks for as many as a row has. What is wrong with the lines of the
    current row is in `fault`."""

    def __init__(self, stream: io.BufferedReader, file: FileName) -> None:
        self._lines = bounded_lines(stream)
        self._file = file
        self._size = 0
        self.number = 0
        self.first = 1  # line in which the current row begins
        self.fault: Fault | None = None

    def begin_row(self) -> None:
        self.first, self._size, self.fault = self.number + 1, 0, None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if len(line) > MAX_ROW_BYTES:
            self.fault = too_long("line")
            return "\n"
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            refuse(
                f"{self._file} data: the row that begins in line {self.first} is longer than "
                f"{MAX_ROW_BYTES // 2**20} MiB: a double quote is opened there and not closed",
                "close it, and write a double quote inside a text twice",
            )
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fault = not_utf8(error)
            return line.decode("utf-8", "replace")


def _rows(
    path: Path, file: FileName, findings: Findings, header: Sequence[str], delimiter: str, max_bytes: int
) -> Numbered:
    with open_unpacked(path, file, max_bytes) as stream:
        lines = Lines(stream, file)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        next(reader)
        empty = True
        while True:
            lines.begin_row()
            cells, fault = _next(reader)
            if cells is None and fault is None:
                break
            empty = False
            fault = fault or lines.fault or _misfit(cells or [], header, delimiter)
            if fault:
                findings.add(file, lines.first, [fault])
            else:
                yield lines.first, {name: cell for name, cell in zip(header, cells or [], strict=True) if name}
        if empty:
            refuse(f"{file} data: the CSV file has a header and no row below it", "add the rows, one example each")


def _next(reader: Iterator[list[str]]) -> tuple[list[str] | None, Fault | None]:
    """The cells of the next row, or what is wrong with it; (None, None) at the end."""
    try:
        return next(reader), None
    except StopIteration:
        return None, None
    except csv.Error as error:
        return None, _quoting(str(error))


def _quoting(reason: str) -> Fault:
    if "unexpected end" in reason:
        text = "a double quote is opened in this row and never closed; write a double quote inside a text twice"
    elif "expected after" in reason:
        text = "a quoted text goes on after its closing double quote; write a double quote inside a text twice"
    elif "new-line character" in reason:
        text = "the line ends are those of old Macs (CR), or a text with one stands outside of double quotes; use LF"
    else:
        text = f"the row cannot be read: {reason}"
    return Fault("quotes", text)


def _misfit(cells: Sequence[str], header: Sequence[str], delimiter: str) -> Fault | None:
    if not cells:
        return Fault("empty_line", "the line is empty and is skipped", severity="warning")
    if len(cells) == len(header):
        return None
    text = (
        f"the row has {len(cells)} cells and the header {len(header)}, between {DELIMITERS[delimiter]}; put a text "
        "that holds the delimiter or a line break into double quotes"
    )
    return Fault("cell_count", text)


def _header(lines: Lines, delimiter: str, file: FileName) -> list[str]:
    lines.begin_row()
    cells, fault = _next(csv.reader(lines, delimiter=delimiter, strict=True))
    fault = fault or lines.fault
    if fault:
        refuse(f"{file} data, line 1: {fault.message}", "line 1 must name the columns: text,label")
    if not any(cell.strip() for cell in cells or []):
        refuse(f"{file} data: line 1 of the CSV file is empty", "line 1 must name the columns, for example: text,label")
    return [cell.strip() for cell in cells or []]


def _sample(text: str, delimiter: str) -> list[list[str]]:
    """The first rows, without the last one, which may be cut, unless it is the only one."""
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a cell above the limit: what came before decides
        rows.extend(islice(csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter), SAMPLE))
    rows = [row for row in rows if row]
    return rows[:-1] if len(rows) > 2 else rows


def _fit(rows: Sequence[Sequence[str]]) -> tuple[bool, float, int]:
    """Several columns before one, then the share of rows that fit the header, then the number of columns."""
    if not rows:
        return False, 0.0, 0
    width = len(rows[0])
    return width > 1, sum(len(row) == width for row in rows) / len(rows), width
