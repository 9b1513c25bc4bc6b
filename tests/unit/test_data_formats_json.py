"""JSON documents: read item by item whatever their layout, SQuAD flattened, broken ones named by line and column."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data_rows import read_file

from finetune_trainer.data.formats import json_document
from finetune_trainer.data.formats.open_file import open_file
from finetune_trainer.data.problems import Findings
from finetune_trainer.errors import UserInputError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(min_size=1), VALUES, max_size=4), max_size=8),
    indent=st.sampled_from([None, 0, 2]),
    wrapped=st.booleans(),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_what_was_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    indent: int | None,
    wrapped: bool,
    ascii_only: bool,
    chunk: int,
) -> None:
    document: Any = {"version": [1, {"x": "]"}], "data": rows, "end": 12} if wrapped else rows
    content = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if not ascii_only and "\\ud" in json.dumps(document):
        return  # lone surrogates cannot be written as UTF-8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_document, "CHUNK", chunk)
        patch.setattr(json_document, "SLACK", 16)
        found = read_file(tmp_path_factory.getbasetemp() / "document", content, "a.json")
    assert found.rows == list(enumerate(rows, start=1))
    assert not found.faults


def squad(*paragraphs: Any) -> bytes:
    return json.dumps({"version": "v2.0", "data": [{"title": "Boats", "paragraphs": list(paragraphs)}]}).encode()


ANSWER = {"text": "harbour", "answer_start": 4}


def test_nested_squad_becomes_a_row_a_question(tmp_path: Path) -> None:
    content = squad(
        {
            "context": "The harbour.",
            "qas": [
                {"id": "1", "question": "Where?", "answers": [ANSWER, ANSWER]},
                {"id": "2", "question": "Who?", "is_impossible": True, "answers": [], "plausible_answers": [ANSWER]},
            ],
        },
        {"context": "Empty.", "qas": []},
    )
    found = read_file(tmp_path / "data", content, "dev.json")
    both = {"text": ["harbour", "harbour"], "answer_start": [4, 4]}
    none: dict[str, Any] = {"text": [], "answer_start": []}
    assert found.rows == [
        (1, {"question": "Where?", "context": "The harbour.", "answers": both}),
        (2, {"question": "Who?", "context": "The harbour.", "answers": none, "is_impossible": True}),
    ]


@pytest.mark.parametrize(
    ("content", "rows", "where"),
    [
        (b'{"data": [{"paragraphs": 7}]}', [], "data[0]"),
        (b'{"data": [{"paragraphs": []}, "x"]}', [], "data[1]"),
        (squad({"qas": []}), [], "data[0].paragraphs[0]"),
        (squad("text"), [], "data[0].paragraphs[0]"),
        (squad({"context": "c", "qas": ["x"]}), [], "data[0].paragraphs[0].qas[0]"),
        (squad({"context": "c", "qas": [{"question": "q", "answers": ["x"]}]}), [], "data[0].paragraphs[0].qas[0]"),
        (
            squad({"context": "c", "qas": [{"question": "q", "answers": {"text": []}}]}),
            [],
            "data[0].paragraphs[0].qas[0]",
        ),
        (squad({"context": "c", "qas": [{}, {"question": "q"}]}), [2], "data[0].paragraphs[0].qas[0]"),
    ],
)
def test_squad_of_another_form_has_its_place(tmp_path: Path, content: bytes, rows: list[int], where: str) -> None:
    found = read_file(tmp_path / "data", content)
    assert [number for number, _ in found.rows] == rows
    assert found.faults == [("squad_form", [1], where)]
    assert f"(first: question 1, {where})" in found.texts["squad_form"]


def test_items_that_are_no_objects_are_named(tmp_path: Path) -> None:
    found = read_file(tmp_path / "data", b'[{"a": 1}, 7, {"a": 2}, null, "x", [{}]]')
    assert [number for number, _ in found.rows] == [1, 3]
    assert found.faults == [("not_object", [2, 4, 5, 6], "")]


LINES = b'[\n  {"a": 1},\n  {"a": 2}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES, "breaks off in line 3"),
        (LINES + b"\n", "breaks off in line 4"),
        (LINES + b",\n", "breaks off in line 4"),
        (LINES + b',\n{"text": "cut he', "line 4, column 10"),
        (LINES + b"\n  {'a'", "line 4, column 3: expecting , or ]"),
        (LINES + b",\n  {'a': 1}\n]" + b" " * 100 + b'"x"', "line 4, column 4: Expecting property name"),
        (LINES + b",\n  {'a': 1}\n]", "line 4, column 4: Expecting property name"),
        (LINES + b",\n]", "line 4, column 1"),
        (LINES + b",\n" + b"[" * 200_000, "nested too deeply"),
        (LINES + b',\n{"a": NaN}]', "NaN is not JSON"),
        (LINES + b',\n{"a": 1, "a": 2}]', "an object has the key 'a' twice"),
        (LINES + b',\n{"a": ' + b"1" * 5000 + b"}]", "line 4, column 1"),
        (LINES + b',\n{"a": "\xff"}]', "not UTF-8"),
        (LINES + b"]\n{}", "more text"),
        (b"[1]\n[2]\n", "more text"),
        (b'{"data": []', "breaks off in line 1"),
        (b'{"data": [] "x"}', "expecting , or }"),
        (b'{"data": [], 7}', "line 1, column 14"),
    ],
)
def test_broken_document_names_line_and_column(tmp_path: Path, content: bytes, message: str) -> None:
    for chunk in (3, 2**16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_document, "CHUNK", chunk)
            with pytest.raises(UserInputError) as caught:
                read_file(tmp_path / "data", content, "a.json")
        assert message in caught.value.message
        assert caught.value.advice


def test_item_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_document, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(json_document, "CHUNK", 100)
    content = b'[{"a": 1},\n {"a": "' + b"x" * 5000 + b'"}]'
    with pytest.raises(UserInputError, match="line 2, column 2: the value that begins here is longer"):
        read_file(tmp_path / "data", content)


def test_large_document_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("w") as file:
        row = json.dumps({"text": "x" * 1000})
        file.write("[" + ",".join([row] * 20_000) + "]")
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_file(path, "a.json", "train", Findings(), max_bytes=2**30).rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 8 * 2**20 < path.stat().st_size
