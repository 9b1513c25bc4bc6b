"""JSON Lines, one object a line: with or without byte order mark, lines ended by LF or CRLF."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from finetune_trainer.data.formats.form import MAX_ROW_BYTES, Numbered, refuse
from finetune_trainer.data.formats.unpacked import UTF8_MARK, bounded_lines, open_unpacked
from finetune_trainer.data.problems import Fault, FileName, Findings, json_type, plain_word


def read_json_lines(path: Path, file: FileName, findings: Findings, *, max_bytes: int) -> Numbered:
    """Yield (line number from 1, object); what cannot be read becomes a finding.

    Raises UserInputError when the file as a whole cannot be read: damaged, or above `max_bytes` once unpacked.
    """
    with open_unpacked(path, file, max_bytes) as stream:
        for number, line in enumerate(bounded_lines(stream), start=1):
            content = line.rstrip(b"\r\n").removeprefix(UTF8_MARK)  # files that were joined have marks inside
            if not content.strip():
                text = "the line is empty and is skipped"
                findings.add(file, number, [Fault("empty_line", text, severity="warning")])
                continue
            if number == 1 and content.strip() == b"{":
                _refuse_spread(file)
            value, fault = _parse(content, ended=line.endswith(b"\n"))
            if fault:
                findings.add(file, number, [fault])
            else:
                yield number, value


def parse_json(text: str) -> Any:
    """As `json.loads`, but NaN and Infinity are no JSON, and no object has a key twice. Raises ValueError,
    RecursionError."""
    return _PARSER.decode(text)


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values: of a key that stands twice the first value would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {plain_word(twice)} twice")
    return found


# json.loads would build one a line
_PARSER = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=each_once)


def too_long(what: str) -> Fault:
    return Fault("line_too_long", f"the {what} is longer than {MAX_ROW_BYTES // 2**20} MiB; is a line end missing?")


def not_utf8(error: UnicodeDecodeError, what: str = "line") -> Fault:
    text = f"the {what} is not UTF-8; save the file as UTF-8 (a spreadsheet offers: CSV UTF-8)"
    return Fault("not_utf8", text, f"byte {error.start + 1}")


def _parse(content: bytes, *, ended: bool) -> tuple[dict[str, Any], Fault | None]:
    if len(content) > MAX_ROW_BYTES:
        return {}, too_long("line")
    try:
        value = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, not_utf8(error)
    except RecursionError:
        return {}, Fault("not_json", "the line is nested too deeply")
    except ValueError as error:
        return {}, _not_json(error, content, ended=ended)
    if not isinstance(value, dict):
        return {}, Fault("not_object", f"the line must be an object {{...}}, not {json_type(value)}")
    return value, None


def _not_json(error: ValueError, content: bytes, *, ended: bool) -> Fault:
    if b"}\r{" in content:
        return Fault("not_json", "the line ends are those of old Macs (CR), so that the file is one line; use LF")
    column = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    if not ended and isinstance(error, json.JSONDecodeError):
        return Fault("cut_line", "the last line breaks off: the file was cut short; write or upload it again", column)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return Fault("not_json", f"the line is not valid JSON: {reason}", column)


def _refuse_spread(file: FileName) -> None:
    refuse(
        f"{file} data: the objects are spread over several lines (line 1 is only '{{')",
        "write one object a line (jq -c . data.json > data.jsonl), or one list of objects: [{...}, {...}]",
    )
