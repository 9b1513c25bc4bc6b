"""Training of encoders: a step is the same however it is split into forward passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.tiny_encoders import make_tiny_encoder
from transformers import AutoTokenizer, PreTrainedModel

from finetune_api.optimization import Loss
from finetune_api.status import ResolvedValues
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.encoder_trainer import balanced_weights, label_loss
from finetune_trainer.tasks.kind import Facts, Measured, TaskKind, TrainerParts
from finetune_trainer.tasks.question_answering import QuestionAnswering
from finetune_trainer.tasks.token_classification import TokenClassification
from finetune_trainer.training.progress import ProgressCallback
from finetune_trainer.training.stopping import StopRequest

TAGGED = [
    {"tokens": ["Anna", "left", "Bern"] * count, "tags": ["B-PER", "O", "B-LOC"] * count} for count in (1, 4, 2, 9)
]
ASKED = [
    {"question": "Who left?", "context": "the parcel " * count + "Anna left Bern.", "answers": ["Anna"]}
    for count in (1, 7, 2, 5)
]


def weights_after_a_step(
    root: Path, kind: TaskKind, lines: list[dict[str, Any]], rows_at_once: int, **resolved: Any
) -> tuple[dict[str, torch.Tensor], float]:
    """(the trained weights, the loss that was logged) of one step over all lines."""
    folder = make_tiny_encoder(root / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form = kind.example_format(tokenizer, frozenset(), re.compile(r"(?!)"))
    rows = [dict(form.encode(form.normalise(line))) for line in lines]
    data = Dataset.from_list([{name: list(column) for name, column in row.items()} for row in rows])
    torch.manual_seed(0)
    model = kind.auto_model.from_pretrained(folder, **kind.model_options(form.facts))

    def measure(model: PreTrainedModel, between_batches: Callable[[], None]) -> Measured:
        raise AssertionError("nothing is measured in one step")

    arguments = {
        "output_dir": str(root / "out"),
        "per_device_train_batch_size": rows_at_once,
        "gradient_accumulation_steps": len(lines) // rows_at_once,
        "max_steps": 1,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    values = ResolvedValues.model_construct(**resolved)
    extra = {
        "measure": measure,
        "progress": ProgressCallback(root / "progress.json", 0),
        "stop": StopRequest(),
        "resumed": None,
    }
    trainer = kind.trainer(
        TrainerParts(model, tokenizer, values, arguments, data, data.select([0]), form.facts, folder, extra)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {name: value.detach().clone() for name, value in model.named_parameters()}, losses[0]


@pytest.mark.parametrize(
    ("kind", "lines"), [(TokenClassification(), TAGGED), (QuestionAnswering(), ASKED)], ids=["tags", "answers"]
)
def test_a_step_is_the_same_however_it_is_split(tmp_path: Path, kind: TaskKind, lines: list[dict[str, Any]]) -> None:
    """The lines differ in length and in labels, so that a mean of means would be another number."""
    whole, loss = weights_after_a_step(tmp_path / "whole", kind, lines, len(lines))
    split, split_loss = weights_after_a_step(tmp_path / "split", kind, lines, 1)

    assert split_loss == pytest.approx(loss, rel=1e-3)
    assert 0.1 < loss < 10
    for name, value in whole.items():
        assert torch.allclose(value, split[name], atol=1e-6), name


CLASSIFIED = [{"text": "boat " * count, "label": "sea" if count > 1 else "land"} for count in (1, 4, 2, 9)]


@pytest.mark.parametrize(
    ("kind", "lines"), [(TokenClassification(), TAGGED), (Classification(), CLASSIFIED)], ids=["tags", "labels"]
)
@pytest.mark.parametrize("smoothing", [None, 0.2])
def test_weighted_and_smoothed_losses_do_not_depend_on_the_split(
    tmp_path: Path, kind: TaskKind, lines: list[dict[str, Any]], smoothing: float | None
) -> None:
    settings = {"loss": Loss.WEIGHTED_CROSS_ENTROPY, "label_smoothing": smoothing}
    plain, plain_loss = weights_after_a_step(tmp_path / "plain", kind, lines, len(lines))
    whole, loss = weights_after_a_step(tmp_path / "whole", kind, lines, len(lines), **settings)
    split, split_loss = weights_after_a_step(tmp_path / "split", kind, lines, 1, **settings)
    assert split_loss == pytest.approx(loss, rel=1e-3)
    assert any(not torch.allclose(value, plain[name], atol=1e-6) for name, value in whole.items())
    assert plain_loss != pytest.approx(loss, rel=1e-4)
    for name, value in whole.items():
        assert torch.allclose(value, split[name], atol=1e-6), name


def test_the_losses_of_labels_by_hand() -> None:
    """Three labels, of which the last occurs once in ten; one place that is not learned."""
    scores = torch.tensor([[[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [1.0, -1.0, 3.0]]])
    batch = {"input_ids": torch.zeros(1, 3, dtype=torch.long), "labels": torch.tensor([[0, IGNORED, 2]])}
    values = ResolvedValues.model_construct(loss=Loss.WEIGHTED_CROSS_ENTROPY, label_smoothing=0.3)
    facts = Facts(labels=("a", "b", "c"), counts=(6, 3, 1))
    loss, _ = label_loss(values, facts)(lambda **inputs: SimpleNamespace(logits=scores), batch)  # type: ignore[arg-type]
    weights = [10 / 18, 10 / 9, 10 / 3]
    assert balanced_weights(facts.counts).tolist() == pytest.approx(weights)
    logs = scores.log_softmax(-1)[0]
    wanted = 0.0
    for place, label in ((0, 0), (2, 2)):
        spread = -sum(weights[other] * float(logs[place, other]) for other in range(3)) / 3
        wanted += 0.7 * -weights[label] * float(logs[place, label]) + 0.3 * spread
    assert float(loss) == pytest.approx(wanted / 2, rel=1e-6)
