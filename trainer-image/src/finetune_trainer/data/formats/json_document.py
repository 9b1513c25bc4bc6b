"""One JSON document: a list of objects, or such a list under `data`. Read item by item, whatever its size."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from finetune_trainer.data.formats.form import MAX_ROW_BYTES, Numbered, refuse
from finetune_trainer.data.formats.jsonl import each_once, refuse_constant
from finetune_trainer.data.formats.squad import is_article, questions_of
from finetune_trainer.data.formats.unpacked import open_unpacked
from finetune_trainer.data.problems import Fault, FileName, Findings, json_type

CHUNK = 2**16  # bytes read at once
LIST_KEY = "data"  # of {"version": ..., "data": [...]}
SLACK = 16  # characters: an error this near to the end of what was read may only mean that more must be read
SPACE = " \t\r\n"


def read_document(path: Path, file: FileName, findings: Findings, *, max_bytes: int) -> Numbered:
    """Yield (number from 1, object) of the list. SQuAD's nested articles come as one row a question.

    Raises UserInputError, with line and column, where the document is broken: nothing after it can be read.
    """
    with open_unpacked(path, file, max_bytes) as stream:
        items = _items(JsonText(stream, file), file)
        first = next(items, None)
        if first is None:
            return
        nested = is_article(first)
        findings.count_in(file, "question" if nested else "item")
        number = 0
        for index, item in enumerate(chain([first], items)):
            if nested:
                for row, fault in questions_of(item, f"data[{index}]"):
                    number += 1
                    if fault:
                        findings.add(file, number, [fault])
                    else:
                        yield number, row
            elif isinstance(item, dict):
                yield index + 1, item
            else:
                text = f"every item of the list must be an object {{...}}, not {json_type(item)}"
                findings.add(file, index + 1, [Fault("not_object", text)])


class JsonText:
    """A text of JSON that is parsed value by value, holding little more than one value at a time."""

    def __init__(self, stream: io.BufferedReader, file: FileName) -> None:
        self._stream, self._file = stream, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=each_once)
        self._text, self._at, self._ended = "", 0, False
        self._lines, self._columns = 0, 0  # before `_text`: whole lines, and characters of the line that was begun

    def peek(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._read(CHUNK):
                return ""

    def take(self, wanted: str) -> str:
        """The next character, one of `wanted`. Raises UserInputError."""
        found = self.peek()
        if not found or found not in wanted:
            self._broken(f"expecting {' or '.join(wanted)}", self._at)
        self._at += 1
        return found

    def value(self) -> Any:
        """The value that begins here. Raises UserInputError."""
        self.peek()
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._read_on(error)
            except RecursionError:
                self._broken("it is nested too deeply", self._at)
            except ValueError as error:  # NaN, or a number of thousands of digits
                self._broken(str(error), self._at)
            else:
                if end == len(self._text) and self._read(CHUNK):
                    continue  # a number may go on
                self._at = end
                return value

    def _read_on(self, error: json.JSONDecodeError) -> None:
        """Read as much again, when the value may only be incomplete. Raises UserInputError otherwise."""
        held = len(self._text) - self._at
        end = len(self._text.rstrip(SPACE)) - SLACK
        inside = not error.msg.startswith("Unterminated string") and error.pos < end
        if not inside and held > MAX_ROW_BYTES:
            self._broken(f"the value that begins here is longer than {MAX_ROW_BYTES // 2**20} MiB", self._at)
        if inside or not self._read(max(CHUNK, held)):
            self._broken(error.msg, error.pos)

    def _read(self, size: int) -> bool:
        """Drop what was parsed and read on; False at the end of the file."""
        if self._ended:
            return False
        self._lines, self._columns = self._place(self._at)
        self._text, self._at = self._text[self._at :], 0
        content = self._stream.read(size)
        self._ended = not content
        try:
            self._text += self._decode.decode(content, final=self._ended)
        except UnicodeDecodeError:
            self._refuse(f"the file is not UTF-8 after line {self._lines + 1}", "save the file as UTF-8")
        return True

    def _place(self, at: int) -> tuple[int, int]:
        """(whole lines, characters of the begun line) before position `at` of what is held."""
        lines = self._text.count("\n", 0, at)
        return self._lines + lines, at - self._text.rfind("\n", 0, at) - 1 if lines else self._columns + at

    def _broken(self, reason: str, at: int) -> NoReturn:
        lines, columns = self._place(at)
        if at >= len(self._text) and self._ended:
            self._refuse(
                f"the JSON breaks off in line {lines + 1}: the file was cut short", "write or upload the file again"
            )
        self._refuse(
            f"the file is not valid JSON at line {lines + 1}, column {columns + 1}: {reason}",
            "correct it there, or write JSON Lines (one object a line), where each bad line is named",
        )

    def _refuse(self, message: str, advice: str) -> NoReturn:
        refuse(f"{self._file} data: {message}", advice)


def _items(text: JsonText, file: FileName) -> Iterator[Any]:
    """The items of the document's list; what stands around it is read as well, so that a cut file is known."""
    if text.peek() == "[":
        yield from _list(text)
    else:
        yield from _object(text, file)
    if text.peek():
        refuse(
            f"{file} data: after the end of the JSON document there is more text",
            "write one list of all objects, or JSON Lines: one object a line",
        )


def _object(text: JsonText, file: FileName) -> Iterator[Any]:
    text.take("{")
    found = False
    while text.peek() == '"':
        key = text.value()
        text.take(":")
        if key == LIST_KEY and text.peek() == "[":
            found = True
            yield from _list(text)
        else:
            text.value()
        if text.take(",}") == "}":
            break
    else:
        text.take('"')
    if not found:
        refuse(f"{file} data: the object has no list `{LIST_KEY}`", "write one list of objects: [{...}, {...}]")


def _list(text: JsonText) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return
