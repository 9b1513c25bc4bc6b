"""`dataset.columns`: what the data calls otherwise gets our names, and a name that no row has is said once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data_rows import read_for

from finetune_api.tasks import Task
from finetune_trainer.errors import UserInputError


def lines(*rows: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.mark.parametrize(
    ("row", "columns", "wanted"),
    [
        ({"review": "good", "stars": 5}, {"text": "review", "label": "stars"}, {"text": "good", "label": 5}),
        ({"review": "good", "text": "other"}, {"text": "review"}, {"text": "good"}),
        ({"source": "a", "target": "b"}, {"source": "target", "target": "source"}, {"source": "b", "target": "a"}),
        ({"text": "a"}, {"text": "text"}, {"text": "a"}),
        ({"a": 1, "rest": 2}, {"text": "a", "label": "a"}, {"rest": 2, "text": 1, "label": 1}),
        ({"second": "b"}, {"text_pair": "second"}, {"text_pair": "b"}),
        (
            {"translation": {"en": "sea", "fr": "mer"}, "id": 1},
            {"source": "translation.en", "target": "translation.fr"},
            {"id": 1, "source": "sea", "target": "mer"},
        ),
        ({"a.b": 1, "a": {"b": 2}}, {"text": "a.b"}, {"a": {"b": 2}, "text": 1}),
        ({"text": None}, {"text": "text"}, {"text": None}),
    ],
)
def test_row_gets_our_names(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], wanted: dict[str, Any]
) -> None:
    found = read_for(Task.SEQ2SEQ, tmp_path / "data", lines(row), **columns)
    assert (found.values, found.faults) == ([wanted], [])


def test_row_without_the_mapped_key_does_not_fall_back_on_one_called_as_ours(tmp_path: Path) -> None:
    """`text` of such a row means something else; the task will say what is missing."""
    content = lines({"review": "good"}, {"text": "id-7"})
    found = read_for(Task.CLASSIFICATION, tmp_path / "data", content, text="review")
    assert found.values == [{"text": "good"}, {}]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_name_that_no_row_has_is_one_clear_error(tmp_path: Path, form: str) -> None:
    rows = [{"Review": f"good {n}", "stars": n} for n in range(3)]
    path = tmp_path / "data"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "csv":
        path.write_text("Review,stars\n" + "".join(f"{row['Review']},{row['stars']}\n" for row in rows))
    else:
        path.write_bytes(lines(*rows) if form == "jsonl" else json.dumps(rows).encode())
    with pytest.raises(UserInputError) as caught:
        read_for(Task.CLASSIFICATION, path, None, f"train.{form}", text_pair="reveiw", label="stars")
    message = caught.value.message
    assert message.startswith("train data: dataset.columns says that `textPair` is called 'reveiw'")
    assert "(is 'Review' meant?)" in message
    assert "the data has 'Review', 'stars'" in message
    assert "dataset.columns.textPair" in caught.value.advice


@pytest.mark.parametrize(
    ("row", "name", "text"),
    [
        ({"a private text, as from a table without header": 1}, "review", "the data has 1 other"),
        ({"text": "x", "a b": 1, "c d": 2}, "review", "the data has 'text' and 2 others"),
        ({"pair": {"en": "x"}}, "pair.de", "the data has 'pair'"),
    ],
)
def test_keys_that_may_be_private_are_not_shown(tmp_path: Path, row: dict[str, Any], name: str, text: str) -> None:
    with pytest.raises(UserInputError) as caught:
        read_for(Task.CLASSIFICATION, tmp_path / "data", lines(row), text=name)
    assert text in caught.value.message
    assert "private" not in caught.value.message


def test_empty_file_has_nothing_to_say_about_columns(tmp_path: Path) -> None:
    assert read_for(Task.CLASSIFICATION, tmp_path / "data", b"", text="review").rows == []
