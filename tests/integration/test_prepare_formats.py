"""Every form of data through the whole stage: the same examples come out, whatever they lay in."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.prepared_runs import CHATS, PLACES, Laptop, lines
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model
from tests.tiny_seq2seq import make_tiny_seq2seq

from finetune_api.conditions import Stage
from finetune_api.dataset import Columns
from finetune_api.reports import Summary
from finetune_api.spec import DataFile, Task
from finetune_trainer.context import StageContext
from finetune_trainer.masking import IGNORED
from finetune_trainer.training.inputs import load_prepared, load_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a base `tiny` of each kind."""
    root = tmp_path_factory.mktemp("models")
    make_tiny_chat_model(root / "causal" / "tiny")
    make_tiny_encoder(root / "encoder" / "tiny")
    make_tiny_seq2seq(root / "seq2seq" / "tiny")
    return root


@pytest.fixture
def laptop(tmp_path: Path, models: Path) -> Laptop:
    return Laptop(tmp_path, models / "causal")


def with_columns(context: StageContext, **columns: str) -> StageContext:
    dataset = context.config.dataset.model_copy(update={"columns": Columns(**columns)})
    return dataclasses.replace(context, config=context.config.model_copy(update={"dataset": dataset}))


def prepared(laptop: Laptop, data: DataFile, task: Task, **columns: str) -> tuple[Summary, list[dict[str, Any]]]:
    """The summary, and all examples in whatever order the split put them."""
    context = laptop.context(data, task=task, max_lost_percent=5)
    if columns:
        context = with_columns(context, **columns)
    context.report_path(Stage.PREPARE).unlink(missing_ok=True)
    code, summary = laptop.prepare(context)
    assert code == 0, summary.failure
    ready = load_prepared(context)
    return summary, [*ready.examples("train"), *ready.examples("validation")]


def refused(laptop: Laptop, data: DataFile, task: Task = Task.CHAT, **columns: str) -> Summary:
    context = laptop.context(data, task=task)
    code, summary = laptop.prepare(with_columns(context, **columns) if columns else context)
    assert code == 10
    assert summary.failure is not None
    return summary


def ordered(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def parquet(rows: list[dict[str, Any]], **metadata: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    described = table.replace_schema_metadata({key: json.dumps(value) for key, value in metadata.items()})
    pq.write_table(described, sink, row_group_size=5)
    return sink.getvalue()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """As a program writes it that keeps lists as JSON."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in row.items()})
    return text.getvalue().encode("utf-8-sig")


def share_gpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in row["messages"]]
    return {"conversations": turns, "id": "x"}


def alpaca(row: dict[str, Any]) -> dict[str, Any]:
    question, answer = (message["content"] for message in row["messages"])
    return {"instruction": question, "input": "", "output": answer}


def test_chat_is_the_same_out_of_every_form(laptop: Laptop) -> None:
    """Nested messages out of Parquet and JSON out of CSV cells included."""
    files = {
        "train.jsonl": lines(CHATS),
        "train.jsonl.gz": gzip.compress(lines(CHATS)),
        "train.json": json.dumps(CHATS, indent=2).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": CHATS}).encode(),
        "train.parquet": parquet(CHATS),
        "train.csv": table(CHATS),
        "semicolons.csv": table(CHATS, ";"),
        "train.tsv": table(CHATS, "\t"),
        "sharegpt.json": json.dumps([share_gpt(row) for row in CHATS]).encode(),
        "alpaca.csv": table([alpaca(row) for row in CHATS]),
    }
    found = {}
    for name, content in files.items():
        summary, examples = prepared(laptop, laptop.put(name, content), Task.CHAT)
        assert ordered(examples) == ordered(CHATS), name
        assert summary.dataset is not None
        found[name] = {problem.check for problem in summary.dataset.problems} - {"few_examples"}
    assert {name: checks for name, checks in found.items() if checks} == {
        "sharegpt.json": {"converted_sharegpt"},
        "alpaca.csv": {"converted_alpaca"},
    }


def test_plain_text_is_learned_whole(laptop: Laptop) -> None:
    texts = [f"{place} lies by the sea." for place in PLACES]
    data = laptop.put("verses.csv", table([{"verse": text} for text in texts]))
    summary, examples = prepared(laptop, data, Task.COMPLETION, text="verse")
    assert ordered(examples) == ordered([{"prompt": "", "completion": text} for text in texts])
    context = laptop.context(data, task=Task.COMPLETION)
    tokenizer = load_tokenizer(context.artifacts / str(summary.base_path))
    for row in load_prepared(context).rows("train"):
        learned = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
        assert learned.endswith(".<|end|>")
        assert learned.removesuffix("<|end|>") in texts
        assert row["labels"] == row["input_ids"]


REVIEWS = [{"Review": f"{place} is {kind}", "stars": kind} for place in PLACES for kind in ("good", "bad")]


def test_classification_from_a_spreadsheet(laptop: Laptop, models: Path) -> None:
    laptop.mount(models / "encoder")
    data = laptop.put("reviews.csv", table(REVIEWS, ";"))
    summary, examples = prepared(laptop, data, Task.CLASSIFICATION, text="Review", label="stars")
    assert ordered(examples) == ordered([{"text": row["Review"], "label": row["stars"]} for row in REVIEWS])
    assert summary.dataset is not None
    assert [entry.label for entry in summary.dataset.labels] == ["bad", "good"]


TAGGED = [{"words": ["Anna", "left", place], "ner_tags": [1, 0, 2]} for place in PLACES]
NAMES = {"ner_tags": {"feature": {"names": ["O", "B-PER", "B-LOC"], "_type": "ClassLabel"}, "_type": "List"}}


def test_tags_from_parquet_with_names_and_from_cells_are_the_same(laptop: Laptop, models: Path) -> None:
    laptop.mount(models / "encoder")
    wanted = [{"tokens": row["words"], "tags": ["B-PER", "O", "B-LOC"]} for row in TAGGED]
    content = parquet(TAGGED, huggingface={"info": {"features": NAMES}})
    _, examples = prepared(
        laptop, laptop.put("ner.parquet", content), Task.TOKEN_CLASSIFICATION, tokens="words", tags="ner_tags"
    )
    assert ordered(examples) == ordered(wanted)
    _, examples = prepared(laptop, laptop.put("ner.csv", table(wanted)), Task.TOKEN_CLASSIFICATION)
    assert ordered(examples) == ordered(wanted)


def test_nested_squad_is_answered(laptop: Laptop, models: Path) -> None:
    laptop.mount(models / "encoder")
    articles = [
        {
            "title": place,
            "paragraphs": [
                {
                    "context": f"Anna left {place}.",
                    "qas": [
                        {"id": "1", "question": "Where?", "answers": [{"text": place, "answer_start": 10}]},
                        {"id": "2", "question": "When?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
        for place in PLACES
    ]
    data = laptop.put("squad.json", json.dumps({"version": "v2.0", "data": articles}).encode())
    _, examples = prepared(laptop, data, Task.QUESTION_ANSWERING)
    assert len(examples) == 2 * len(PLACES)
    assert {
        "question": "Where?",
        "context": "Anna left Porto.",
        "answers": {"text": ["Porto"], "answer_start": [10]},
    } in examples
    assert {example["question"]: example["answers"]["text"] for example in examples}["When?"] == []


def test_translations_inside_objects_are_reached_by_name(laptop: Laptop, models: Path) -> None:
    laptop.mount(models / "seq2seq")
    rows = [{"id": n, "translation": {"en": f"one {n}", "fr": f"two {n}"}} for n in range(12)]
    columns = {"source": "translation.en", "target": "translation.fr"}
    for name, content in (("pairs.parquet", parquet(rows)), ("pairs.json", json.dumps(rows).encode())):
        _, examples = prepared(laptop, laptop.put(name, content), Task.SEQ2SEQ, **columns)
        assert ordered(examples) == ordered([{"source": f"one {n}", "target": f"two {n}"} for n in range(12)])


def test_saved_folder_on_a_claim_is_prepared(laptop: Laptop) -> None:
    saved = laptop.root / "sources" / "pvc" / "data" / "chats"
    datasets.Dataset.from_list(CHATS).save_to_disk(str(saved), num_shards=2)
    summary, examples = prepared(laptop, DataFile(source="pvc://data/chats"), Task.CHAT)
    assert ordered(examples) == ordered(CHATS)
    assert summary.dataset is not None
    assert len(summary.dataset.sha256) == 64


def test_train_and_held_out_data_may_have_different_forms(laptop: Laptop) -> None:
    held = laptop.put("held.parquet", parquet(CHATS[10:]))
    code, summary = laptop.prepare(laptop.context(laptop.put("train.csv", table(CHATS[:10])), held))
    assert code == 0
    assert summary.dataset is not None
    assert (summary.dataset.train_examples, summary.dataset.validation_examples) == (10, 2)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", table(REVIEWS)), ("a.jsonl", lines(REVIEWS)), ("a.parquet", parquet(REVIEWS))]
)
def test_columns_that_there_are_are_named_where_one_is_missing(
    laptop: Laptop, models: Path, name: str, content: bytes
) -> None:
    laptop.mount(models / "encoder")
    summary = refused(laptop, laptop.put(name, content), Task.CLASSIFICATION)
    assert summary.failure is not None
    assert "the line has no `text`" in summary.failure.message
    assert "(the train data has 'Review', 'stars')" in summary.failure.advice


def test_bad_rows_are_counted_as_their_form_does(laptop: Laptop) -> None:
    broken = [*CHATS[:6], {"messages": [{"role": "user", "content": "private question"}]}, *CHATS[6:]]
    for name, content, place in (
        ("train.parquet", parquet(broken), "train data, row 7: "),
        ("train.json", json.dumps(broken).encode(), "train data, item 7: "),
        ("train.csv", table(broken), "train data, line 8: "),
    ):
        summary = refused(laptop, laptop.put(name, content))
        assert summary.failure is not None
        assert summary.failure.message.startswith(place), name
        assert "private" not in summary.model_dump_json()
        assert summary.dataset is not None
        assert [problem.check for problem in summary.dataset.problems] == ["no_assistant"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message", "advice"),
    [
        ("train.jsonl", parquet(CHATS), {}, "named .jsonl (JSON Lines), but it holds Parquet", "rename"),
        ("train.csv", b"messages\n", {}, "a header and no row", "add the rows"),
        ("train.json", b"[]", {}, "no examples in key train.json of ConfigMap travel", "add examples"),
        (
            "train.jsonl",
            lines(CHATS),
            {"messages": "mesages"},
            "`messages` is called 'mesages', and no example has it (is 'messages' meant?)",
            "dataset.columns.messages",
        ),
        (
            "train.csv",
            table([{"dialog": row["messages"]} for row in CHATS]),
            {"messages": "dialogue"},
            "no column is called so (is 'dialog' meant?); the data has 'dialog'",
            "dataset.columns.messages",
        ),
    ],
)
def test_unusable_file_ends_prepare_with_a_remedy(
    laptop: Laptop, name: str, content: bytes, columns: dict[str, str], message: str, advice: str
) -> None:
    summary = refused(laptop, laptop.put(name, content), **columns)
    assert summary.failure is not None
    assert message in summary.failure.message
    assert advice in summary.failure.advice
