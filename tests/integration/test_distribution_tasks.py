"""Every task, and every method of Chat, trains in two processes as in one. Run by `make soak`; Preference always."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.gangs import Cell, train_cells
from tests.integration.test_cells_classification import one_label, several_labels
from tests.integration.test_cells_preference import pair
from tests.integration.test_cells_question_answering import questions
from tests.integration.test_cells_token_classification import tagged
from tests.prepared_runs import PLACES, Laptop, chat, lines
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model
from tests.tiny_seq2seq import make_tiny_seq2seq, pairs

from finetune_api.conditions import Stage
from finetune_api.spec import Hyperparameters, MethodSpec, MethodType, Task
from finetune_trainer import frame
from finetune_trainer.context import StageContext

EXAMPLES, BATCH, STEPS = 13, 4, 4  # the last step has one example
SAME_LOSS = 1e-4  # Preference's is a small difference of large sums

Rows = Sequence[Mapping[str, Any]]


def preferences(count: int) -> Rows:
    return [pair(PLACES[number % len(PLACES)], f"week {number}") for number in range(count)]


def one_label_each(count: int) -> Rows:
    return one_label(count, 1)


def labels(count: int) -> Rows:
    return several_labels(count, 1)


def tags(count: int) -> Rows:
    return tagged(count, 1)


def asked(count: int) -> Rows:
    return questions(count, 1)


def translations(count: int) -> Rows:
    return pairs(count)


def chats(count: int) -> Rows:
    towns = [PLACES[number % len(PLACES)] for number in range(count)]
    return [chat(f"Is {town} nice in week {number}?", f"Yes, {town} is nice.") for number, town in enumerate(towns)]


CASES: list[tuple[Task, MethodType, str, Callable[[int], Rows], str]] = [
    (Task.PREFERENCE, MethodType.LORA, "DDP", preferences, "chat"),
    (Task.PREFERENCE, MethodType.LORA, "ZeRO2", preferences, "chat"),
    (Task.CLASSIFICATION, MethodType.LORA, "DDP", one_label_each, "encoder"),
    (Task.CLASSIFICATION, MethodType.FULL, "ZeRO2", labels, "encoder"),
    (Task.TOKEN_CLASSIFICATION, MethodType.LORA, "DDP", tags, "encoder"),
    (Task.QUESTION_ANSWERING, MethodType.FULL, "DDP", asked, "encoder"),
    (Task.SEQ2SEQ, MethodType.LORA, "DDP", translations, "seq2seq"),
    (Task.CHAT, MethodType.QLORA, "DDP", chats, "chat"),
    (Task.CHAT, MethodType.QLORA, "ZeRO2", chats, "chat"),
    (Task.CHAT, MethodType.DORA, "DDP", chats, "chat"),
    (Task.CHAT, MethodType.DORA, "ZeRO1", chats, "chat"),
]
QUICK, SLOW = CASES[:1], CASES[1:]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a base `tiny` each."""
    root = tmp_path_factory.mktemp("bases")
    make_tiny_chat_model(root / "chat" / "tiny")
    make_tiny_encoder(root / "encoder" / "tiny")
    make_tiny_seq2seq(root / "seq2seq" / "tiny", "t5", copying=0)
    return {folder.name: folder for folder in root.iterdir()}


def prepared(root: Path, models: Path, task: Task, method: MethodType, rows: Rows) -> StageContext:
    """A run that Prepare has left, of EXAMPLES examples; the others are held out."""
    laptop = Laptop(root, models)
    train, held_out = (lines([dict(row) for row in part]) for part in (rows[:EXAMPLES], rows[EXAMPLES:]))
    context = laptop.context(
        laptop.put("train.jsonl", train),
        laptop.put("held.jsonl", held_out),
        task=task,
        hyperparameters=Hyperparameters(epochs=1, batch_size=BATCH, evaluation_steps=2, learning_rate_multiplier="10"),
    )
    spec = MethodSpec(type=method, rank=4 if method.adapter else None)
    context = replace(context, config=context.config.model_copy(update={"method": spec}))
    message = root / "termination-log"
    assert frame.run_stage(Stage.PREPARE, context, message) == 0, message.read_text()
    return context


def losses(context: StageContext) -> list[float]:
    state = json.loads((context.checkpoints_dir / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] for name in ("loss", "eval_loss") if name in entry]


def assert_as_alone(root: Path, models: Mapping[str, Path], cases: list[Any]) -> None:
    cells = []
    for number, (task, method, strategy, make, base) in enumerate(cases):
        for name, processes in (("one", 1), ("two", 2)):
            folder = root / f"{number}-{name}"
            context = prepared(folder, models[base], task, method, make(EXAMPLES + 3))
            cells.append(Cell(context, processes, {"strategy": strategy if processes > 1 else "None"}))
    summaries = train_cells(cells, root)
    for case, one, two, alone, together in zip(
        cases, cells[::2], cells[1::2], summaries[::2], summaries[1::2], strict=True
    ):
        assert alone.ok, (case, alone.failure)
        assert together.ok, (case, together.failure)
        assert together.resolved is not None
        assert (together.resolved.strategy, together.resolved.processes) == (case[2], 2)
        assert losses(two.context) == pytest.approx(losses(one.context), rel=SAME_LOSS), case[:3]


def test_preferences(tmp_path: Path, models: dict[str, Path]) -> None:
    assert_as_alone(tmp_path, models, QUICK)


@pytest.mark.soak
def test_all_others(tmp_path: Path, models: dict[str, Path]) -> None:
    assert_as_alone(tmp_path, models, SLOW)
