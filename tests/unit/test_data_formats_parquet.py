"""Parquet by row groups: nested columns, labels with names, what is no text, and damaged files."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data_rows import read_file

from finetune_trainer.data.formats import columnar, parquet
from finetune_trainer.errors import UserInputError

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
]


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def test_nested_conversations_are_plain_objects_without_the_keys_of_others(tmp_path: Path) -> None:
    path = write(tmp_path / "data", pa.Table.from_pylist([{"messages": CHAT}, {"messages": CHAT[:1]}]))
    found = read_file(path, None, "a.parquet")
    without_null = [{key: value for key, value in message.items() if value is not None} for message in CHAT]
    assert found.rows == [(1, {"messages": without_null}), (2, {"messages": CHAT[:1]})]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_rows_of_many_groups_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", batch)
    rows = [{"text": f"text {n}", "label": n} for n in range(250)]
    path = write(tmp_path / "data", pa.Table.from_pylist(rows), row_group_size=40)
    assert read_file(path, None).rows == list(enumerate(rows, start=1))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array([1.5, float("nan"), None]), [1.5, None, None]),
        (pa.array([True, None]), [True, None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array([datetime.date(2026, 1, 2)]), ["2026-01-02"]),
        (pa.array([datetime.datetime(2026, 1, 2, 3, 4)], pa.timestamp("ms")), ["2026-01-02T03:04:00"]),
        (pa.array([decimal.Decimal("1.20")]), ["1.20"]),
        (pa.array([[datetime.date(2026, 1, 2)]]), [["2026-01-02"]]),
        (pa.array([[("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int32())), [[["a", 1], ["b", 2]]]),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [[1, 2]]),
        (pa.array([], pa.string()), []),
    ],
)
def test_values_are_as_json_has_them(tmp_path: Path, values: pa.Array, wanted: list[Any]) -> None:
    found = read_file(write(tmp_path / "data", pa.table({"x": values})), None)
    assert [row["x"] for row in found.values] == wanted
    json.dumps(found.values)


def test_bytes_are_left_out_and_said(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "picture": [b"\x89PNG"], "nested": [[{"bytes": b"x", "path": "p"}]]})
    found = read_file(write(tmp_path / "data", table), None)
    assert found.values == [{"text": "a"}]
    assert found.faults == [("bytes_column", [0], "")]
    assert "'picture'" in found.texts["bytes_column"]


def test_numbered_labels_get_the_names_that_the_file_has(tmp_path: Path) -> None:
    label = {"names": ["O", "B-LOC"], "_type": "ClassLabel"}
    features = {
        "label": label,
        "tags": {"feature": label, "_type": "List"},
        "old": [label],
        "text": {"dtype": "string"},
    }
    rows = [{"label": 1, "tags": [0, 1], "old": [1], "text": "1"}, {"label": -1, "tags": [7], "old": [], "text": "0"}]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    assert read_file(write(tmp_path / "data", table), None).values == [
        {"label": "B-LOC", "tags": ["O", "B-LOC"], "old": ["B-LOC"], "text": "1"},
        {"label": None, "tags": [7], "old": [], "text": "0"},  # below 0 stands for no label
    ]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "label", "label"])
    with pytest.raises(UserInputError, match="the Parquet file names a column twice: 'label'"):
        read_file(write(tmp_path / "data", table), None)


@pytest.mark.parametrize(
    "metadata",
    ["{", "[]", "7", '{"info": 7}', '{"info": {"features": {"label": 7}}}', '{"info": {"features": {"label": []}}}'],
)
def test_strange_metadata_changes_nothing(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"label": [1]}).replace_schema_metadata({"huggingface": metadata})
    assert read_file(write(tmp_path / "data", table), None).values == [{"label": 1}]


def test_text_that_is_no_utf8_is_a_row_with_a_fault(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    found = read_file(write(tmp_path / "data", pa.table({"text": texts})), None)
    assert found.rows == [(1, {"text": "a"}), (3, {"text": "c"})]
    assert found.faults == [("not_utf8", [2], "")]


def test_huge_row_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "MAX_ROW_BYTES", 1000)
    table = pa.table({"text": ["a", "x" * 5000, "c"]})
    found = read_file(write(tmp_path / "data", table), None)
    assert ([number for number, _ in found.rows], found.faults) == ([1, 3], [("line_too_long", [2], "")])


def test_small_file_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data", pa.table({"text": ["x" * 10_000] * 2000}))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserInputError, match="more than 1000000 bytes once unpacked"):
        read_file(path, None, max_bytes=1_000_000)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "data", pa.table({"text": [f"text {n}" * 20 for n in range(500)]})).read_bytes()
    broken = {"cut short": whole[:-200], "only a beginning": b"PAR1", "a hole": whole[:200] + bytes(400) + whole[600:]}
    for what, content in broken.items():
        with pytest.raises(UserInputError, match="Parquet file is damaged") as caught:
            read_file(tmp_path / "broken", content)
        assert "again" in caught.value.advice, what


def test_file_of_bytes_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no column of texts or numbers"):
        read_file(write(tmp_path / "data", pa.table({"picture": [b"x"]})), None)
