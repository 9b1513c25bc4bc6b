"""What optimizer, schedule, loss and attention become, and what Prepare refuses because it makes no sense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.test_prepare_resolve import SHAPE, config, sizes

from finetune_api.conditions import FailureReason
from finetune_api.method import MethodSpec
from finetune_api.optimization import OPTIMIZERS, Loss, Optimizer, Schedule
from finetune_api.spec import MethodType, Task
from finetune_api.status import ResolvedValues
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import memory_bytes
from finetune_trainer.optimization import optimizer_arguments
from finetune_trainer.resolve import resolve
from finetune_trainer.tasks.kind import Facts

SEVERAL = Facts(labels=("a", "b"), counts=(1, 1), multi_label=True)


def resolved(gpus: int = 0, task: Task = Task.CHAT, facts: Facts = Facts(), **knobs: Any) -> ResolvedValues:  # noqa: B008
    """1,000 examples: 189 steps, measured every 19."""
    run = config(gpus, **knobs).model_copy(update={"task": task})
    return resolve(run, sizes(1000), SHAPE, 256, "r", 2, facts).values


def refused(match: str, advice: str, **knobs: Any) -> None:
    with pytest.raises(UserInputError, match=match) as caught:
        resolved(**knobs)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert advice in caught.value.advice


def test_auto_on_a_processor_and_on_a_gpu() -> None:
    cpu, gpu = resolved(0), resolved(1)
    assert (cpu.optimizer, gpu.optimizer) == (Optimizer.ADAMW, Optimizer.ADAMW_FUSED)
    assert (cpu.gradient_checkpointing, gpu.gradient_checkpointing) == (False, True)
    assert (cpu.precision, gpu.precision) == ("float32", "bfloat16")
    for values in (cpu, gpu):
        assert (values.schedule, values.weight_decay, values.max_grad_norm) == (Schedule.COSINE, 0.0, 1.0)
        assert (values.loss, values.label_smoothing, values.neftune_alpha) == (Loss.NLL, None, None)
        assert (values.learning_rate, values.warmup_steps, values.attention) == (2e-4, 6, "sdpa")
        assert values.early_stopping_patience is None


@pytest.mark.parametrize(("task", "loss"), [(Task.PREFERENCE, Loss.SIGMOID), (Task.CLASSIFICATION, Loss.CROSS_ENTROPY)])
def test_the_loss_is_the_tasks(task: Task, loss: Loss) -> None:
    assert resolved(task=task).loss is loss


def test_what_is_given_is_taken() -> None:
    values = resolved(
        1,
        learning_rate="3e-5",
        schedule="Linear",
        warmup="10%",
        optimizer="PagedAdamW8bit",
        weight_decay="0.01",
        max_grad_norm="0",
        loss="DFT",
        neftune_alpha="5",
        precision="Float32",
        attention="Eager",
        gradient_checkpointing="Disabled",
        early_stopping={"patience": 2, "min_improvement": "0.5%"},
    )
    assert (values.learning_rate, values.warmup_steps, values.schedule) == (3e-5, 19, Schedule.LINEAR)
    assert (values.optimizer, values.weight_decay) == (Optimizer.PAGED_ADAMW_8BIT, 0.01)
    assert (values.max_grad_norm, values.loss, values.neftune_alpha) == (0.0, Loss.DFT, 5.0)
    assert (values.precision, values.attention, values.gradient_checkpointing) == ("float32", "eager", False)
    assert (values.early_stopping_patience, values.early_stopping_improvement) == (2, 0.005)
    told = optimizer_arguments(values)
    assert (told["optim"], told["lr_scheduler_type"], told["warmup_steps"]) == ("paged_adamw_8bit", "linear", 19)


def test_a_rate_of_the_optimizers_own() -> None:
    assert resolved(optimizer="Lion").learning_rate == pytest.approx(2e-4 * OPTIMIZERS[Optimizer.LION].rate)
    assert resolved(optimizer="Lion", learning_rate="1e-4").learning_rate == 1e-4
    assert resolved(optimizer="Lion", learning_rate_multiplier="2", task=Task.PREFERENCE).learning_rate == (
        pytest.approx(4e-6)
    )


def test_robust_takes_some_pairs_for_wrong() -> None:
    assert resolved(task=Task.PREFERENCE, loss="Robust").label_smoothing == 0.1
    assert resolved(task=Task.PREFERENCE, loss="Robust", label_smoothing="0.2").label_smoothing == 0.2


@pytest.mark.parametrize(("schedule", "steps"), [("Constant", 0), ("ConstantWithWarmup", 6), ("Cosine", 6)])
def test_a_constant_has_no_warm_up(schedule: str, steps: int) -> None:
    assert resolved(schedule=schedule).warmup_steps == steps


def test_a_run_of_an_earlier_version_trains_as_it_would_have() -> None:
    old = resolved().model_copy(
        update=dict.fromkeys(["optimizer", "schedule", "weight_decay", "max_grad_norm", "loss", "attention"])
    )
    told = optimizer_arguments(old)
    assert (told["optim"], told["lr_scheduler_type"]) == ("adamw_torch", "cosine")
    assert (told["weight_decay"], told["max_grad_norm"], told["neftune_noise_alpha"]) == (0.0, 1.0, None)


def test_a_warm_up_that_never_ends() -> None:
    refused("warmup 189 is 189 optimizer steps, and the training has 189", "fewer than 189 steps", warmup=189)
    refused("of which the last 38 go down", "fewer than 151", warmup="80%", schedule="WarmupStableDecay")


def test_early_stopping_that_comes_too_late() -> None:
    late = {"patience": 9}
    refused("at step 190 at the earliest, and the training has 189", "lower evaluationSteps", early_stopping=late)
    assert resolved(early_stopping={"patience": 8}).early_stopping_patience == 8


@pytest.mark.parametrize(("knob", "value"), [("loss", "WeightedCrossEntropy"), ("label_smoothing", "0.1")])
def test_several_labels_an_example(knob: str, value: str) -> None:
    field = {"loss": "loss", "label_smoothing": "labelSmoothing"}[knob]
    refused(
        f"hyperparameters.{field}: the examples of this data have several labels",
        f"remove hyperparameters.{field}",
        task=Task.CLASSIFICATION,
        facts=SEVERAL,
        **{knob: value},
    )


def test_attention_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    refused("the trainer image does not have the package flash_attn", "auto", gpus=1, attention="FlashAttention2")
    old = replace(SHAPE, attentions=("eager",))
    with pytest.raises(UserInputError, match="architecture has no SDPA; it has Eager"):
        resolve(config(attention="SDPA"), sizes(1000), old, 256, "r", 2)
    monkeypatch.setattr("finetune_trainer.resolve.flash_attention_installed", lambda: True)
    assert resolved(1).attention == "flash_attention_2"  # and packed
    assert (resolved(1, neftune_alpha="5").packing, resolved(1, neftune_alpha="5").attention) == (False, "sdpa")


def test_what_optimizer_and_recomputation_save() -> None:
    def needs(method: MethodType, **knobs: Any) -> int:
        shape = replace(SHAPE, method=MethodSpec(type=method), trainable=SHAPE.parameters)
        run = config(1, MethodSpec(type=method), **knobs)
        return resolve(run, sizes(1000), shape, 256, "r", 2).estimate.memory_bytes

    full = needs(MethodType.FULL)
    assert full - needs(MethodType.FULL, optimizer="AdamW8bit") == pytest.approx(6 * SHAPE.parameters, rel=0.01)
    assert full - needs(MethodType.FULL, optimizer="Lion") == pytest.approx(4 * SHAPE.parameters, rel=0.01)
    assert needs(MethodType.FULL, gradient_checkpointing="Disabled") > 1.2 * full
    assert memory_bytes(SHAPE, rows=1, length=100, precision="bfloat16") == memory_bytes(
        replace(SHAPE, recomputes=True), rows=1, length=100, precision="bfloat16"
    )
