"""What Prepare refuses, what it names, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.prepared_runs import CHATS, Laptop, chat, lines, rows
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason, Stage
from finetune_api.spec import BaseModelSpec, Hyperparameters, Task


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def laptop(tmp_path: Path, base: Path) -> Laptop:
    return Laptop(tmp_path, base.parent)


def test_broken_lines_are_named_and_nothing_is_left_to_train_on(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = lines(CHATS).splitlines()
    broken[2] = b'{"messages": ['
    broken[4] = json.dumps(chat("private question", "x", tools=[{}])).encode()
    broken[6] = json.dumps({"messages": [{"role": "user", "content": "private question"}]}).encode()
    broken[8] = json.dumps(chat("private <|user|> question", "x")).encode()
    context = laptop.context(laptop.put("train.jsonl", b"\n".join(broken)))
    code, summary = laptop.prepare(context)
    assert (code, summary.ok) == (10, False)
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.DATASET_INVALID
    assert summary.dataset is not None
    assert {problem.check: problem.lines for problem in summary.dataset.problems} == {
        "no_assistant": [7],
        "not_json": [3],
        "special_token": [9],
        "template_tools": [5],
        "tools": [5],
    }
    assert "line 7" in summary.failure.message
    report = json.loads((context.run_dir / "reports" / "dataset.json").read_text())
    assert report["problems"][0]["lines"]
    # The words of the data stay where the data is, on the volume.
    assert any("private question" in example["text"] for each in report["problems"] for example in each["examples"])
    assert "private question" not in summary.model_dump_json() + capsys.readouterr().err
    assert not context.dataset_dir.exists()
    assert not context.report_path(Stage.PREPARE).exists()


def test_thousand_broken_lines_still_fit_the_message(laptop: Laptop) -> None:
    bad: list[dict[str, Any]] = [{"messages": [{"role": f"role{n % 30}", "content": n}]} for n in range(1000)]
    more: list[dict[str, Any]] = [{"prompt": "a", "completion": "b"}, {}, chat("a", "b", functions=[])] * 200
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines([*bad, *more]))))
    assert code == 10
    assert summary.dataset is not None
    assert summary.dataset.problems[0].count == 1000
    assert summary.dataset.problems[0].lines[:3] == [1, 2, 3]


LONG = chat("Tell me more.", "The harbour is quiet in the morning. " * 40)
LATE = chat("The harbour is quiet in the morning. " * 40, "Yes.")


def test_cut_examples_are_refused_unless_allowed(laptop: Laptop) -> None:
    data = laptop.put("train.jsonl", lines([*CHATS, LONG, LATE]))
    held = laptop.put("held.jsonl", lines([chat("Is Fez nice?", "Fez is far from the sea.")]))
    code, summary = laptop.prepare(laptop.context(data, held))
    assert code == 10
    assert summary.failure is not None
    assert "lines 13 and 14" in summary.failure.message
    assert "14.3 %" in summary.failure.message
    assert "maxLostPercent" in summary.failure.advice
    context = laptop.context(data, held, max_lost_percent=20)
    code, summary = laptop.prepare(context)
    assert code == 0
    assert summary.dataset is not None
    assert summary.resolved is not None
    assert (summary.dataset.truncated, summary.dataset.dropped, summary.dataset.train_examples) == (1, 1, 13)
    assert max(len(row["input_ids"]) for row in rows(context, "train")) == summary.resolved.max_length == 256
    assert len(list((context.dataset_dir / "train.jsonl").open())) == 13


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({"base_model": BaseModelSpec(source="pvc://models/tyni")}, FailureReason.SOURCE_UNAVAILABLE, "tiny"),
        ({"hyperparameters": Hyperparameters(max_length=512)}, FailureReason.SPEC_INVALID, "256 tokens"),
        ({"task": Task.COMPLETION}, FailureReason.DATASET_INVALID, "spec.task to Chat"),
    ],
)
def test_mistakes_of_the_specification_are_named(
    laptop: Laptop, change: dict[str, Any], reason: FailureReason, text: str
) -> None:
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(CHATS)), **change))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is reason
    assert text in summary.failure.message


@pytest.mark.parametrize(
    ("train", "held", "text"),
    [
        (b"", None, "no examples in key train.jsonl of ConfigMap travel"),
        (lines(CHATS[:9]), None, "9 example(s), and at least 10"),
        (lines(CHATS[:1] * 10), None, "1 different example"),
        (lines(CHATS), b"", "no examples in key held.jsonl"),
        (lines(CHATS), lines(CHATS[:2]), "every held-out example is also a training example"),
        (json.dumps(CHATS).encode()[:-1], None, "breaks off in line 1"),
    ],
)
def test_too_little_data_is_refused(laptop: Laptop, train: bytes, held: bytes | None, text: str) -> None:
    validation = None if held is None else laptop.put("held.jsonl", held)
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", train), validation))
    assert code == 10
    assert summary.failure is not None
    assert text in summary.failure.message
    assert summary.failure.advice
