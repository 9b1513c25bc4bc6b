"""A run that goes on from another one's model, stage by stage: with its adapter, and on the merged model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.prepared_runs import CHATS, PLACES, Laptop, lines
from tests.tiny_models import make_tiny_chat_model
from tests.trained_runs import one_thread

from finetune_api.base_model import BaseModelSpec, ContinueMode, FineTuneJobRef
from finetune_api.conditions import Stage
from finetune_api.lineage import ContinuedFrom
from finetune_api.reports import EvaluateReport, Summary, model_status
from finetune_api.spec import Hyperparameters, MethodSpec, MethodType, Task
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext

STAGES = (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE)
PAIRS = [
    {"prompt": f"Is {place} far?", "chosen": f"{place} is near.", "rejected": "Ask somebody else."} for place in PLACES
]
BRIEF = Hyperparameters(epochs=2, batch_size=4, learning_rate="5e-3")
MODES = (ContinueMode.CONTINUE, ContinueMode.STACK)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def done(context: StageContext, root: Path) -> list[Summary]:
    found = []
    for stage in STAGES:
        log = root / "termination-log"
        assert frame.run_stage(stage, context, log) == 0, log.read_text()
        found.append(Summary.model_validate_json(context.report_path(stage).read_bytes()))
    return found


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    root = tmp_path_factory.mktemp("laptop")
    make_tiny_chat_model(root / "bases" / "tiny")
    made = Laptop(root, root / "bases")
    (root / "artifacts").mkdir()
    (root / "sources" / "pvc" / "results").symlink_to(root / "artifacts")
    return made


@pytest.fixture(scope="module")
def chat(laptop: Laptop) -> tuple[StageContext, ContinuedFrom]:
    """A tuned chat, and how another run goes on from it."""
    context = laptop.context(laptop.put("chat.jsonl", lines(CHATS)), hyperparameters=BRIEF)
    prepared, trained, _ = done(context, laptop.root)
    assert trained.model is not None
    assert prepared.resolved is not None
    model = model_status(trained.model, claim="results", run=1, name="travel").model_copy(
        update={"task": Task.CHAT, "method": MethodType.LORA, "rank": 4, "source": "pvc://models/tiny@abc"}
    )
    return context, ContinuedFrom(job="travel", mode=ContinueMode.CONTINUE, model=model)


@pytest.fixture(scope="module")
def polite(laptop: Laptop, chat: tuple[StageContext, ContinuedFrom]) -> dict[ContinueMode, StageContext]:
    """The chat's preferences, learned in both ways."""
    made = {}
    for mode in MODES:
        context = laptop.context(
            laptop.put("pairs.jsonl", lines(PAIRS)),
            task=Task.PREFERENCE,
            base_model=BaseModelSpec(fine_tune_job=FineTuneJobRef(name="travel")),
            hyperparameters=BRIEF,
        )
        paths = context.config.paths.model_copy(update={"run": f"team-a/{mode}/runs/1-01234567"})
        update: dict[str, Any] = {
            "job": f"polite-{mode.lower()}",
            "base_name": "tiny" if mode is ContinueMode.CONTINUE else "travel-r1",
            "method": MethodSpec(),
            "paths": paths,
            "continued_from": chat[1].model_copy(update={"mode": mode}),
        }
        made[mode] = replace(context, config=context.config.model_copy(update=update))
        done(made[mode], laptop.root)
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def prepared(context: StageContext) -> Summary:
    return Summary.model_validate_json(context.report_path(Stage.PREPARE).read_bytes())


@pytest.mark.parametrize("mode", MODES)
def test_it_is_compared_with_what_it_began_as(polite: dict[ContinueMode, StageContext], mode: ContinueMode) -> None:
    """The base of a preference prefers nothing: the tuned chat, not the model below it."""
    report = EvaluateReport.model_validate_json((polite[mode].evaluation_dir / "report.json").read_bytes())
    assert report.evaluation.base is not None
    assert report.evaluation.tuned is not None
    assert report.evaluation.base.loss == pytest.approx(0.6931, abs=1e-3)
    assert report.evaluation.tuned.loss < 0.69
    lineage = json.loads((polite[mode].model_dir / "lineage.json").read_text())
    assert [(each["job"], each["run"], each["mode"]) for each in lineage["lineage"]] == [("travel", 1, mode)]
    assert lineage["source"] == "pvc://models/tiny@abc"


def test_continue_moves_the_very_adapter(
    chat: tuple[StageContext, ContinuedFrom], polite: dict[ContinueMode, StageContext]
) -> None:
    context = polite[ContinueMode.CONTINUE]
    first, before, after = weights(chat[0].model_dir), weights(context.continued_dir), weights(context.model_dir)
    assert first.keys() == before.keys() == after.keys()
    assert all(torch.equal(first[name], before[name]) for name in first)
    assert not all(torch.equal(first[name], after[name]) for name in first)
    found = prepared(context)
    assert found.resolved is not None
    assert found.resolved.lora_rank == 4  # the chat's, not the default of 16
    assert found.base_path == prepared(chat[0]).base_path


def test_stack_trains_on_the_merged_model(
    chat: tuple[StageContext, ContinuedFrom], polite: dict[ContinueMode, StageContext]
) -> None:
    context = polite[ContinueMode.STACK]
    found = prepared(context)
    assert found.resolved is not None
    assert found.resolved.lora_rank == 16  # one of its own
    merged = context.artifacts / str(found.base_path)
    assert merged.name.startswith("travel-r1@")
    base = load_file(context.artifacts / str(prepared(chat[0]).base_path) / "model.safetensors")
    adapter, whole = weights(chat[0].model_dir), load_file(merged / "model.safetensors")
    name = next(key for key in adapter if key.endswith("q_proj.lora_A.weight"))
    layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
    delta = adapter[name.replace("lora_A", "lora_B")] @ adapter[name] * 2  # alpha is twice the rank
    assert torch.allclose(whole[layer], base[layer] + delta, atol=1e-5)


def test_a_model_that_was_changed_is_refused(
    laptop: Laptop, polite: dict[ContinueMode, StageContext], tmp_path: Path
) -> None:
    context = polite[ContinueMode.STACK]
    assert context.config.continued_from is not None
    other = context.config.continued_from.model.model_copy(update={"sha256": "0" * 64})
    changed = context.config.model_copy(
        update={
            "continued_from": context.config.continued_from.model_copy(update={"model": other}),
            "paths": context.config.paths.model_copy(update={"run": "team-a/changed/runs/1-01234567"}),
        }
    )
    log = tmp_path / "log"
    assert frame.run_stage(Stage.PREPARE, replace(context, config=changed), log) == 10
    assert "the model of run 1 of travel was changed since it was promoted" in log.read_text()
    assert artifacts.is_complete(context.model_dir)
