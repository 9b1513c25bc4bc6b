"""What was resolved is what the optimizer really has, and every optimizer, schedule and loss really trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import bitsandbytes
import pytest
import torch
from tests.trained_runs import make_run, one_thread
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor

from finetune_api.optimization import GPU_OPTIMIZERS, OPTIMIZERS, SCHEDULES, Loss, Optimizer, Schedule
from finetune_api.spec import MethodType
from finetune_trainer.context import StageContext
from finetune_trainer.optimization import decay_steps
from finetune_trainer.training.device import Device
from finetune_trainer.training.fit import _trainer, make_reproducible
from finetune_trainer.training.inputs import load_prepared, load_tokenizer
from finetune_trainer.training.stopping import StopRequest
from finetune_trainer.training.trainer import Checkpointing

CPU = Device("cpu", "float32", "cpu")
CLASSES: dict[Optimizer, type[torch.optim.Optimizer]] = {
    Optimizer.ADAMW: torch.optim.AdamW,
    Optimizer.ADAMW_FUSED: torch.optim.AdamW,
    Optimizer.ADAMW_8BIT: bitsandbytes.optim.AdamW,
    Optimizer.ADAFACTOR: Adafactor,
    Optimizer.LION: bitsandbytes.optim.Lion,
    Optimizer.LION_8BIT: bitsandbytes.optim.Lion,
}
STEPS = 10


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StageContext]:
    """One prepared run a method; each test resolves it otherwise."""
    made: dict[MethodType, StageContext] = {}

    def of(method: MethodType = MethodType.LORA) -> StageContext:
        if method not in made:
            made[method] = make_run(tmp_path_factory.mktemp(method), method=method)
        return made[method]

    return of


def trained(context: StageContext, **resolved: Any) -> Checkpointing:
    """A trainer that went through all steps, without an evaluation or a checkpoint on its way."""
    prepared = load_prepared(context)
    far = {"evaluation_steps": 1000, "checkpoint_steps": 1000}
    values = prepared.resolved.model_copy(update={**far, **resolved})
    make_reproducible(1, CPU)
    tokenizer = load_tokenizer(prepared.base_dir)
    trainer = _trainer(context, prepared, values, CPU, StopRequest(), tokenizer, None)
    trainer._save_checkpoint = lambda *args: None  # type: ignore[method-assign]
    trainer.train()
    return trainer


def losses(trainer: Checkpointing) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rates(trainer: Checkpointing) -> list[float]:
    """The learning rate of each step."""
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def inner(trainer: Checkpointing) -> torch.optim.Optimizer:
    """The optimizer below accelerate's."""
    found: torch.optim.Optimizer = trainer.optimizer.optimizer
    return found


@pytest.mark.parametrize("optimizer", [each for each in OPTIMIZERS if each not in GPU_OPTIMIZERS])
def test_every_optimizer_trains(run: Callable[..., StageContext], optimizer: Optimizer) -> None:
    facts = OPTIMIZERS[optimizer]
    rate = 5e-3 * facts.rate
    trainer = trained(run(), optimizer=optimizer, learning_rate=rate, weight_decay=0.01)
    made = inner(trainer)
    assert type(made) is CLASSES[optimizer]
    assert made.defaults.get("fused") or optimizer is not Optimizer.ADAMW_FUSED
    if "betas" in made.defaults:
        assert tuple(made.defaults["betas"])[:2] == (0.9, facts.beta2)
    if "8bit" in optimizer:
        assert made.args.optim_bits == 8  # type: ignore[attr-defined]
    assert max(rates(trainer)) == pytest.approx(rate)
    assert losses(trainer)[-1] < 0.97 * losses(trainer)[0]


def test_what_an_8_bit_state_takes(run: Callable[..., StageContext]) -> None:
    """Beside weight and gradient, a quarter of AdamW's; small matrices stay in 32 bits (bitsandbytes: below 4,096)."""
    made = inner(trained(run(MethodType.FULL), optimizer=Optimizer.ADAMW_8BIT, learning_rate=1e-3))
    for group in made.param_groups:
        for weight in group["params"]:
            dtype = made.state[weight]["state1"].dtype
            embedded = weight.shape[0] > 200  # transformers keeps embeddings in 32 bits
            assert dtype is (torch.uint8 if weight.numel() >= 4096 and not embedded else torch.float32)


def test_no_decay_on_biases_and_norms(run: Callable[..., StageContext]) -> None:
    trainer = trained(run(MethodType.FULL), weight_decay=0.1, learning_rate=1e-3)
    groups = inner(trainer).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    spared = {id(weight) for weight in groups[1]["params"]}
    names = {name for name, weight in trainer.model.named_parameters() if id(weight) in spared}
    assert names
    assert all("norm" in name or name.endswith("bias") for name in names)
    decayed = [name for name, weight in trainer.model.named_parameters() if id(weight) not in spared]
    assert not [name for name in decayed if "norm" in name or name.endswith("bias")]


SHAPES: dict[Schedule, Callable[[float], float]] = {
    # Share of the peak at a share of the way from the end of the warm-up to the end of the training.
    Schedule.COSINE: lambda x: (1 + math.cos(math.pi * x)) / 2,
    Schedule.LINEAR: lambda x: 1 - x,
    Schedule.CONSTANT_WITH_WARMUP: lambda x: 1,
    Schedule.COSINE_WITH_MIN_LR: lambda x: 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2,
}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_schedule_is_what_its_name_says(run: Callable[..., StageContext], schedule: Schedule) -> None:
    warmup = 0 if schedule is Schedule.CONSTANT else 2
    trainer = trained(run(), schedule=schedule, warmup_steps=warmup)
    assert isinstance(trainer.lr_scheduler, LambdaLR)
    found = [rate / 5e-3 for rate in rates(trainer)]
    assert len(found) == STEPS
    assert losses(trainer)[-1] < losses(trainer)[0]
    if schedule is Schedule.CONSTANT:
        assert found == pytest.approx([1] * STEPS)
        return
    assert found[:3] == pytest.approx([0, 0.5, 1])
    if shape := SHAPES.get(schedule):
        assert found[warmup:] == pytest.approx([shape(n / (STEPS - warmup)) for n in range(STEPS - warmup)])
    elif schedule is Schedule.INVERSE_SQRT:
        assert found[warmup:] == sorted(found[warmup:], reverse=True)
        assert found[-1] > 0.4
    else:
        assert found[warmup : STEPS - decay_steps(STEPS) + 1] == pytest.approx([1] * (STEPS - warmup - 1))
        assert found[-1] < 1


def test_gradients_are_clipped_to_the_norm_that_was_resolved(run: Callable[..., StageContext]) -> None:
    """With plain gradient descent's cousin: what reaches the optimizer is as long as allowed, or as it is."""
    for wanted, expected in ((1e-3, 1e-3), (0.0, None)):
        trainer = _with_recorded_gradients(run(), max_grad_norm=wanted)
        lengths = trainer.lengths  # type: ignore[attr-defined]
        assert (
            all(length == pytest.approx(expected, rel=1e-3) for length in lengths) if expected else max(lengths) > 1e-2
        )


def _with_recorded_gradients(context: StageContext, **resolved: Any) -> Checkpointing:
    prepared = load_prepared(context)
    values = prepared.resolved.model_copy(update={"evaluation_steps": 1000, "checkpoint_steps": 1000, **resolved})
    make_reproducible(1, CPU)
    trainer = _trainer(context, prepared, values, CPU, StopRequest(), load_tokenizer(prepared.base_dir), None)
    trainer._save_checkpoint = lambda *args: None  # type: ignore[method-assign]
    trainer.lengths = []  # type: ignore[attr-defined]
    handler = trainer.callback_handler
    stock = handler.on_pre_optimizer_step

    def record(*args: Any) -> Any:
        gradients = [weight.grad.norm() for weight in trainer.model.parameters() if weight.grad is not None]
        trainer.lengths.append(float(torch.stack(gradients).norm()))  # type: ignore[attr-defined]
        return stock(*args)

    handler.on_pre_optimizer_step = record
    trainer.args.max_steps = 3
    trainer.train()
    return trainer


def test_dft_trains_and_weighs_likely_tokens(run: Callable[..., StageContext]) -> None:
    """Each token's loss times its probability: below the likelihood's, and the likelihood falls."""
    plain, dft = trained(run(), loss=Loss.NLL), trained(run(), loss=Loss.DFT)
    assert losses(dft)[0] < 0.2 * losses(plain)[0]
    before, after = (_held_out(each) for each in (trained(run(), learning_rate=1e-12), dft))
    assert after < before


def _held_out(trainer: Checkpointing) -> float:
    return float(trainer.evaluate()["eval_loss"])


def test_noise_is_there_in_training_only(run: Callable[..., StageContext]) -> None:
    plain, noisy = trained(run()), trained(run(), neftune_alpha=50.0)
    assert losses(noisy)[0] != pytest.approx(losses(plain)[0], rel=1e-6)
    assert losses(noisy)[-1] < losses(noisy)[0]
    assert _held_out(noisy) == _held_out(noisy)  # the hook is gone, and evaluation had none of it


def test_activations_that_are_computed_again_change_nothing(run: Callable[..., StageContext]) -> None:
    kept, again = (trained(run(), gradient_checkpointing=wanted) for wanted in (False, True))
    assert losses(again) == pytest.approx(losses(kept), rel=1e-5)
    assert again.model.is_activation_checkpointing
    assert not kept.model.is_activation_checkpointing


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_is_the_one_that_was_resolved(run: Callable[..., StageContext], attention: str) -> None:
    trainer = trained(run(), attention=attention, epochs=1)
    assert trainer.model.config._attn_implementation == attention
