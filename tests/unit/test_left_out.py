"""What a stage has no use for is not imported, and what it needs is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.prepared_runs import Laptop

from finetune_api.conditions import Stage
from finetune_api.optimization import Optimizer
from finetune_api.spec import Hyperparameters, MethodSpec
from finetune_api.tasks import MethodType
from finetune_trainer.distribution.environment import GANG
from finetune_trainer.left_out import unused, without

ALONE: dict[str, str] = {}
IN_A_GANG = {GANG: "/tmp/gang"}


@pytest.mark.parametrize(
    ("stage", "method", "optimizer", "environment", "left_out"),
    [
        (Stage.TRAIN, MethodType.LORA, Optimizer.AUTO, ALONE, {"wandb", "mlflow", "bitsandbytes", "deepspeed"}),
        (Stage.TRAIN, MethodType.LORA, Optimizer.AUTO, IN_A_GANG, {"wandb", "mlflow", "bitsandbytes"}),
        (Stage.TRAIN, MethodType.QLORA, Optimizer.AUTO, ALONE, {"wandb", "mlflow", "deepspeed"}),
        (Stage.TRAIN, MethodType.FULL, Optimizer.LION_8BIT, ALONE, {"wandb", "mlflow", "deepspeed"}),
        (Stage.TRAIN, MethodType.FULL, Optimizer.PAGED_ADAMW, ALONE, {"wandb", "mlflow", "deepspeed"}),
        (Stage.PREPARE, MethodType.QLORA, Optimizer.AUTO, ALONE, {"wandb", "mlflow", "bitsandbytes"}),
        (Stage.EVALUATE, MethodType.QLORA, Optimizer.AUTO, ALONE, {"wandb", "mlflow", "bitsandbytes"}),
        (Stage.SERVE, MethodType.QLORA, Optimizer.AUTO, ALONE, {"wandb", "mlflow", "bitsandbytes"}),
        (Stage.PACKAGE, MethodType.LORA, Optimizer.AUTO, ALONE, {"bitsandbytes"}),
    ],
)
def test_a_stage_keeps_what_it_needs(
    tmp_path: Path,
    stage: Stage,
    method: MethodType,
    optimizer: Optimizer,
    environment: dict[str, str],
    left_out: set[str],
) -> None:
    laptop = Laptop(tmp_path / "laptop", tmp_path)
    spec = MethodSpec(type=method, rank=4 if method.adapter else None)
    hyperparameters = Hyperparameters(optimizer=optimizer)
    config = laptop.context(laptop.put("a.jsonl", b""), hyperparameters=hyperparameters).config
    config = config.model_copy(update={"method": spec})
    assert set(unused(stage, config, environment)) == left_out


def test_what_is_left_out_is_not_there_for_a_while() -> None:
    with without(["this", "no_such_library", "json"]):
        assert importlib.util.find_spec("this") is None
        with pytest.raises(ModuleNotFoundError):
            import this  # noqa: F401
        import json  # was imported before, and stays

        assert json.loads("1") == 1
    assert "this" not in sys.modules
    assert importlib.util.find_spec("this") is not None


def test_the_entry_point_of_all_stages_brings_no_library_of_one() -> None:
    """Each would cost every stage its time, and tqdm reads when it is imported whether it shall draw."""
    program = "import sys, finetune_trainer.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    brought = set(done.stdout.split())
    assert "finetune_trainer.frame" in brought
    assert not brought & {"tqdm", "boto3", "huggingface_hub", "torch", "transformers", "datasets"}
