"""Two processes of this machine train what one would: the same losses, a complete model, whatever the strategy.

The trainings are real (gloo, DeepSpeed on the CPU, FSDP2). 17 examples in steps of 4 make a last step of one example,
in which one of the processes has nothing to learn. `make soak` has the strategies that are left out here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.gangs import Cell, as_pod, train_cells
from tests.trained_runs import chats, make_run

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.spec import MethodType
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
from finetune_trainer.training.fitted import fitted

EXAMPLES, STEPS = 17, 5
# Sums in another order, float32: the largest difference seen is 2e-6 of the loss.
SAME_LOSS = 1e-5
SAME_WEIGHT = 2e-4

ALONE = ("None", "None")
SPREAD = [
    ("DDP", "None"),
    ("ZeRO1", "None"),
    ("ZeRO2", "None"),
    ("ZeRO2", "CPU"),
    ("ZeRO3", "None"),
    ("ZeRO3", "CPU"),
    ("FSDP2", "None"),
    ("ZeRO1", "CPU"),
]
QUICK = {("DDP", "None"), ("ZeRO3", "None"), ("FSDP2", "None")}
METHODS = (MethodType.LORA, MethodType.FULL)


def cell(root: Path, method: MethodType, strategy: str, offload: str) -> Cell:
    alone = strategy == "None"
    context = make_run(
        root / f"{method}-{strategy}-{offload}",
        method=method,
        train=chats(EXAMPLES),
        resolved={
            "epochs": 1,
            "total_steps": STEPS,
            "evaluation_steps": 3,
            "checkpoint_steps": 3,
            "micro_batch_size": 4 if alone else 1,  # two passes of each of two processes
        },
    )
    return Cell(context, 1 if alone else 2, {"strategy": strategy, "offload": offload}, pods=strategy == "DDP")


Trained = tuple[Cell, Summary]


def trained(root: Path, wanted: list[tuple[str, str]]) -> dict[tuple[MethodType, str, str], Trained]:
    names = [(method, *each) for method in METHODS for each in (ALONE, *wanted)]
    cells = [cell(root, *name) for name in names]
    return dict(zip(names, zip(cells, train_cells(cells, root), strict=True), strict=True))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[MethodType, str, str], Trained]:
    return trained(tmp_path_factory.mktemp("quick"), [each for each in SPREAD if each in QUICK])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[MethodType, str, str], Trained]:
    return trained(tmp_path_factory.mktemp("slow"), [each for each in SPREAD if each not in QUICK])


def losses(cell: Cell) -> list[float]:
    """Every training and held-out loss, in order."""
    state = json.loads((cell.context.checkpoints_dir / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] for name in ("loss", "eval_loss") if name in entry]


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    return load_file(next(cell.context.model_dir.glob("*.safetensors")))


def assert_as_alone(
    found: dict[tuple[MethodType, str, str], Trained], method: MethodType, strategy: str, offload: str
) -> None:
    (one, alone), (many, together) = found[method, *ALONE], found[method, strategy, offload]
    assert alone.ok, alone.failure
    assert together.ok, together.failure
    resolved = together.resolved
    assert resolved is not None
    assert (resolved.strategy, resolved.offload, resolved.processes) == (strategy, offload, 2)
    assert (resolved.micro_batch_size, resolved.gradient_accumulation, resolved.batch_size) == (1, 2, 4)
    assert together.steps == alone.steps == STEPS
    assert losses(many) == pytest.approx(losses(one), rel=SAME_LOSS)
    before, after = weights(one), weights(many)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.allclose(tensor.float(), after[name].float(), atol=SAME_WEIGHT), name
    assert together.model is not None
    assert together.model.sha256 == artifacts.verify(many.context.model_dir)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("strategy", "offload"), [each for each in SPREAD if each in QUICK])
def test_two_processes_train_as_one(
    quick: dict[tuple[MethodType, str, str], Trained], method: MethodType, strategy: str, offload: str
) -> None:
    assert_as_alone(quick, method, strategy, offload)


def test_the_first_pod_needs_no_other_to_prove_what_all_have_trained(
    quick: dict[tuple[MethodType, str, str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have ended well, and never start again; the first one fell before it had made the model."""
    context = without_its_model(quick[MethodType.LORA, "DDP", "None"][0].context, tmp_path)
    found = {}
    for node in (1, 0):
        for name, value in as_pod(node, 2).items():
            monkeypatch.setenv(name, value)
        assert not context.model_dir.exists()
        assert frame.run_stage(Stage.TRAIN, context, tmp_path / "words") == 0
        found[node] = Summary.model_validate_json((tmp_path / "words").read_text())
    assert found[0].steps == found[1].steps == STEPS
    assert found[1].model is None, "one that was lost after the last step has nothing to do"
    assert found[0].model is not None
    assert found[0].model.sha256 == artifacts.verify(context.model_dir)
    assert found[0].resolved is not None
    assert (found[0].resolved.processes, found[0].resolved.strategy) == (2, "DDP")


def test_what_all_have_trained_is_trained_again_when_no_checkpoint_of_it_is_sound(
    quick: dict[tuple[MethodType, str, str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = without_its_model(quick[MethodType.LORA, "DDP", "None"][0].context, tmp_path)
    for weights in context.checkpoints_dir.glob("*/adapter_model.safetensors"):
        weights.write_bytes(b"damaged")
    for name, value in as_pod(0, 2).items():
        monkeypatch.setenv(name, value)
    assert fitted(context.run_dir)
    assert frame.run_stage(Stage.TRAIN, context, tmp_path / "words") != 0
    assert "has no sound checkpoint" in (tmp_path / "words").read_text()
    assert fitted(context.run_dir) is None


def without_its_model(there: StageContext, tmp_path: Path) -> StageContext:
    """The run as it is on the volume after the last step, before the model is made; a copy."""
    context = replace(there, artifacts=Path(shutil.copytree(there.artifacts, tmp_path / "artifacts")))
    shutil.rmtree(context.model_dir)
    return context


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("strategy", "offload"), [each for each in SPREAD if each not in QUICK])
def test_so_do_the_other_strategies(
    slow: dict[tuple[MethodType, str, str], Trained], method: MethodType, strategy: str, offload: str
) -> None:
    assert_as_alone(slow, method, strategy, offload)


def test_a_checkpoint_has_every_process_files(quick: dict[tuple[MethodType, str, str], Trained]) -> None:
    folder = quick[MethodType.FULL, "ZeRO3", "None"][0].context.checkpoints_dir / f"checkpoint-{STEPS}"
    listed = set(json.loads((folder / artifacts.MANIFEST).read_text())["files"])
    shards = {name for name in listed if "_rank_" in name}
    assert len(shards) >= 2
    assert {"rng_state_0.pth", "rng_state_1.pth", "layout.json", "model.safetensors"} <= listed
