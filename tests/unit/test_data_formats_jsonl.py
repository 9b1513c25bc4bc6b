"""JSON Lines as they come: any line ends, byte order marks, gzip, and every kind of damage with its line number."""

from __future__ import annotations

import functools
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.formats import jsonl as jsonl_form
from finetune_trainer.data.formats import unpacked
from finetune_trainer.data.formats.jsonl import read_json_lines
from finetune_trainer.data.problems import Findings
from finetune_trainer.errors import UserInputError

zipped_up = functools.partial(gzip.compress, mtime=0)  # the same bytes, and name of a case, each time
ROW = b'{"a": 1}'


def read(path: Path, content: bytes, max_bytes: int = 2**20) -> tuple[list[int], list[tuple[str, list[int], str]]]:
    """(numbers of the lines that were read, [(check, its lines, first place)])."""
    path.write_bytes(content)
    findings = Findings()
    numbers = [number for number, _ in read_json_lines(path, "train", findings, max_bytes=max_bytes)]
    found = [
        (entry["check"], [at["line"] for at in entry["lines"]], entry["lines"][0].get("where", ""))
        for entry in findings.for_report()
    ]
    return numbers, found


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (b"", []),
        (ROW, [1]),
        (ROW + b"\n" + ROW + b"\n", [1, 2]),
        (ROW + b"\r\n" + ROW + b"\r\n", [1, 2]),
        (b"\xef\xbb\xbf" + ROW + b"\n" + ROW, [1, 2]),
        (2 * (b"\xef\xbb\xbf" + ROW + b"\r\n"), [1, 2]),  # two files, joined
        (zipped_up(ROW + b"\n" + ROW), [1, 2]),
        (zipped_up(b"\xef\xbb\xbf" + ROW + b"\r\n"), [1]),
        (zipped_up(ROW + b"\n") + zipped_up(ROW + b"\n"), [1, 2]),
        ('{"a": "one\u2028line"}\n{"a": "é東🚢"}'.encode(), [1, 2]),
    ],
)
def test_every_layout_of_good_lines_is_read(tmp_path: Path, content: bytes, numbers: list[int]) -> None:
    assert read(tmp_path / "data", content) == (numbers, [])


@pytest.mark.parametrize(
    ("content", "numbers", "found"),
    [
        (ROW + b"\n\n  \n" + ROW, [1, 4], [("empty_line", [2, 3], "")]),
        (ROW + b'\n{"a": "\xff"}\n' + ROW, [1, 3], [("not_utf8", [2], "byte 8")]),
        (ROW + b"\n{'a': 1}\n" + ROW, [1, 3], [("not_json", [2], "column 2")]),
        (ROW + b'\n{"a": NaN}\n', [1], [("not_json", [2], "")]),
        (ROW + b'\n{"a": -Infinity}\n', [1], [("not_json", [2], "")]),
        (ROW + b"\n" + b"[" * 200_000 + b"\n", [1], [("not_json", [2], "")]),
        (ROW + b"\n" + b"1" * 5_000 + b"\n", [1], [("not_json", [2], "")]),
        (ROW + b'\n[1]\n"a"\n7\nnull\n', [1], [("not_object", [2, 3, 4, 5], "")]),
        (ROW + b'\n{"a": "br', [1], [("cut_line", [2], "column 7")]),
        (ROW + b'\n{"a": 1, "b": 2, "a": 3}\n', [1], [("not_json", [2], "")]),
        (ROW + b'\n{"b": [{"a": 1, "a": 1}]}', [1], [("not_json", [2], "")]),
        (ROW + b"\r" + ROW + b"\r", [], [("not_json", [1], "")]),
        (ROW + b"\n{'a': 1}\n" + ROW + b"\n{'b'}\n", [1, 3], [("not_json", [2, 4], "column 2")]),
    ],
)
def test_bad_lines_have_their_numbers(tmp_path: Path, content: bytes, numbers: list[int], found: Any) -> None:
    assert read(tmp_path / "data", content) == (numbers, found)


def test_huge_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (jsonl_form, unpacked):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    content = ROW + b'\n{"a": "' + b"x" * 1000 + b'"}\n' + ROW + b"\n"
    assert read(tmp_path / "data", content) == ([1, 3], [("line_too_long", [2], "")])
    assert read(tmp_path / "data", content[:500]) == ([1], [("line_too_long", [2], "")])


@pytest.mark.parametrize(
    ("content", "message", "advice"),
    [
        (b"\n".join([b"{", b'"a": 1', b"}"]), "spread over several lines", "jq -c ."),
        (zipped_up(ROW * 9)[:-9], "damaged or cut short", "gzip -t"),
        (zipped_up(ROW + b"\n" + bytes(range(256)) * 99)[:200], "damaged or cut short", "gzip -t"),
        (b"\x1f\x8b\x08garbage", "damaged or cut short", "gzip -t"),
        ((ROW + b"\n") * 200, "more than 1000 bytes", "dataset.train.files"),
        (zipped_up((ROW + b"\n") * 200), "more than 1000 bytes", "dataset.train.files"),
    ],
)
def test_file_that_cannot_be_read_on_is_refused(tmp_path: Path, content: bytes, message: str, advice: str) -> None:
    with pytest.raises(UserInputError) as caught:
        read(tmp_path / "data", content, max_bytes=1000)
    assert message in caught.value.message
    assert advice in caught.value.advice


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(min_size=1), VALUES, max_size=4), max_size=12),
    line_end=st.sampled_from([b"\n", b"\r\n"]),
    mark=st.booleans(),
    packed=st.booleans(),
    ascii_only=st.booleans(),
    last_end=st.booleans(),
)
def test_what_was_written_is_read_again(
    rows: list[dict[str, Any]], line_end: bytes, mark: bool, packed: bool, ascii_only: bool, last_end: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for row in rows]
    content = (
        (b"\xef\xbb\xbf" if mark and rows else b"") + line_end.join(lines) + (line_end if last_end and rows else b"")
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        path.write_bytes(zipped_up(content) if packed else content)
        findings = Findings()
        found = list(read_json_lines(path, "train", findings, max_bytes=2**30))
    assert found == list(enumerate(rows, start=1))
    assert not findings.sorted()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_explained(content: bytes) -> None:
    """Whatever the bytes: each line is yielded or has a finding, or the whole file is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        path.write_bytes(content)
        findings = Findings()
        try:
            good = [number for number, _ in read_json_lines(path, "train", findings, max_bytes=2**30)]
        except UserInputError:
            return
    bad = [at["line"] for entry in findings.for_report() for at in entry["lines"]]
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if content else []
    expected = len(lines) - (1 if lines and not lines[-1] else 0)
    # A file of nothing but a byte order mark has one empty line.
    assert sorted(good + bad) == list(range(1, max(expected, 1 if content else 0) + 1))
