"""Every loss really trains: what it asks for comes nearer on pairs, labels and texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.integration.test_cells_preference import TRAIN, job, run_stages, teach_both
from tests.trained_runs import one_thread

from finetune_api.conditions import Stage
from finetune_api.optimization import PREFERENCE_LOSSES, Loss
from finetune_api.spec import MethodType
from finetune_trainer.context import StageContext
from finetune_trainer.tasks.preference_scoring import log_probabilities
from finetune_trainer.training.device import Device
from finetune_trainer.training.fit import _trainer, make_reproducible
from finetune_trainer.training.inputs import load_prepared, load_tokenizer
from finetune_trainer.training.stopping import StopRequest

CPU = Device("cpu", "float32", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """Prepared pairs, and a model that answers with either."""
    root = tmp_path_factory.mktemp("pairs")
    teach_both(root / "models" / "tiny", 60)
    context = job(root, root / "models", MethodType.LORA, TRAIN, epochs=2, batch_size=9)
    run_stages(context, Stage.PREPARE)
    return context


@pytest.mark.parametrize("loss", list(PREFERENCE_LOSSES))
def test_every_preference_loss_prefers(pairs: StageContext, loss: Loss) -> None:
    prepared = load_prepared(pairs)
    values = prepared.resolved.model_copy(
        update={"loss": loss, "label_smoothing": 0.1 if loss is Loss.ROBUST else None, "evaluation_steps": 1000}
    )
    make_reproducible(1, CPU)
    trainer = _trainer(pairs, prepared, values, CPU, StopRequest(), load_tokenizer(prepared.base_dir), None)
    assert trainer.loss_types == [PREFERENCE_LOSSES[loss]]
    assert trainer.label_smoothing == (0.1 if loss is Loss.ROBUST else 0.0)
    trainer._save_checkpoint = lambda *args: None  # type: ignore[method-assign]
    rows = prepared.rows("train").to_list()
    before = _margins(trainer, rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    gained = (_margins(trainer, rows) - before).mean()
    assert gained > 0.2  # nats of the better answers over the worse, in 8 steps


def _margins(trainer: Any, rows: list[dict[str, list[int]]]) -> Any:
    chosen, rejected = np.asarray(log_probabilities(trainer.model.eval(), rows)).T
    return chosen - rejected
