"""What `auto` means. Every rule is a pure function of the data's and the model's sizes; docs/data.md has the table.

epochs          OpenAI's rule (cookbook, "Data preparation and analysis for chat model fine-tuning"): 3, more when
                that is fewer than 100 examples in all (at most 25), fewer when it is more than 25,000.
batch size      the largest power of two, at most 32, that leaves at least 100 optimizer steps. 32: LoRA loses
                quality with larger batches (Thinking Machines, "LoRA Without Regret", 2025).
learning rate   2e-4 for adapters, ten times the 2e-5 of full fine-tuning (TRL's guide; "LoRA Without Regret"), times
                learningRateMultiplier. A twentieth of it for Preference: TRL's default is 1e-6, and its example for
                adapters ten times that for all weights (trl/scripts/dpo.py); more makes both answers unlikely.
                A fifth of it with Lion. How the rate goes on, and all that moves weights: `optimization.py`.
beta            0.1, as in the paper (arXiv 2305.18290) and TRL; Preference only.
max length      the 99th percentile of the rendered examples, rounded up to 128, at most the model's context.
distribution    the fastest strategy that fits into 80 % of a device's memory: distribution/sharding.py.
micro batch     the largest divisor of a process's share of the batch within 8,192 tokens, 32 rows (8 on a CPU) and
                80 % of the memory. Prepare assumes 24 GiB a GPU; Train does it again with the device that it has.
evaluation      ten times in a training, and in long ones about every 15 minutes; checkpoints likewise.
packing         where the examples of a row are kept apart at no cost: by training/packed_attention.py where the
                architecture's attention is of the plain kind, on a GPU also by flash attention where it is installed.
                Elsewhere transformers builds a mask of length squared: right, but slower, so only when asked for.
precision       bfloat16 on a GPU, float32 on a CPU. No packing with NEFTune, whose noise it would lessen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from finetune_api.conditions import FailureReason
from finetune_api.optimization import ATTENTIONS, Attention
from finetune_api.optimization import Precision as WantedPrecision
from finetune_api.run_config import RunConfig
from finetune_api.spec import Packing
from finetune_api.status import Estimate, LengthStats, ResolvedValues
from finetune_api.tasks import Task
from finetune_trainer.distribution.batches import split
from finetune_trainer.distribution.plan import ASSUMED_GPU_BYTES, Cut, Devices, Workload, applied, cut, device_bytes
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape, estimate, step_seconds
from finetune_trainer.methods.kind import Precision
from finetune_trainer.optimization import (
    flash_attention_installed,
    resolve_attention,
    resolve_checkpointing,
    resolve_optimization,
    resolve_optimizer,
)
from finetune_trainer.remedies import check_fit, gpu_memory
from finetune_trainer.tasks.kind import Facts

TARGET_EPOCHS, MIN_TARGET, MAX_TARGET, MAX_EPOCHS = 3, 100, 25_000, 25
MAX_BATCH = 32
MIN_STEPS = 100
BETA = 0.1
PAIR = 2  # a forward pass holds two conversations for each example of Preference
LENGTH_STEP = 128  # tokens; a multiple of what matrix units want
EVALUATIONS = 10
LONGEST_INTERVAL = 900  # seconds of work that an interruption may cost
NO_FACTS = Facts()
FLASH = ATTENTIONS[Attention.FLASH_ATTENTION_2]


@dataclass(frozen=True, slots=True)
class DataSizes:
    """What is trained on and measured, after the cut to max_length: rows (examples, or windows of them), and tokens;
    `longest` is the longest row."""

    train_rows: int
    train_tokens: int
    validation_tokens: int
    longest: int


@dataclass(frozen=True, slots=True)
class Resolution:
    values: ResolvedValues
    estimate: Estimate
    notes: list[str]


def resolve_epochs(examples: int) -> int:
    if examples * TARGET_EPOCHS < MIN_TARGET:
        return min(MAX_EPOCHS, MIN_TARGET // examples)
    if examples * TARGET_EPOCHS > MAX_TARGET:
        return max(1, MAX_TARGET // examples)
    return TARGET_EPOCHS


def resolve_batch(examples: int, epochs: int) -> int:
    most = examples * epochs // MIN_STEPS
    return min(MAX_BATCH, 1 << max(0, most.bit_length() - 1))


def resolve_max_length(wanted: int | str, lengths: LengthStats, context: int) -> int:
    """Tokens. Raises UserInputError (SpecInvalid) when more is asked for than the model's context takes."""
    if isinstance(wanted, int):
        if context and wanted > context:
            raise UserInputError(
                f"hyperparameters.maxLength {wanted} is more than the {context} tokens of the model's context",
                advice=f"set it to at most {context}, or use a model with a longer context",
                reason=FailureReason.SPEC_INVALID,
            )
        return wanted
    rounded = math.ceil(lengths.p99 / LENGTH_STEP) * LENGTH_STEP
    return min(rounded, context) if context else rounded


def expected_devices(config: RunConfig) -> Devices:
    """Those that the job names. Prepare has none of them; Train cuts anew to what it finds."""
    limit = config.memory_limit_bytes
    on_cpu = limit if limit is None else limit // config.processes
    on_gpu = gpu_memory(config) or ASSUMED_GPU_BYTES
    return Devices(config.processes, config.gpus > 0, on_gpu if config.gpus else on_cpu)


def resolve(
    config: RunConfig,
    data: DataSizes,
    shape: ModelShape,
    max_length: int,
    revision: str,
    cores: int,
    facts: Facts = NO_FACTS,
) -> Resolution:
    """All values of the run, and what it will need. Sizes are those after the cut to `max_length`."""
    wanted = config.hyperparameters
    shape = replace(
        shape,
        recomputes=resolve_checkpointing(wanted, config.gpus),
        optimizer=resolve_optimizer(wanted, config.gpus),
    )
    course = _course(config, data, shape, max_length, cores)
    values = _values(config, course, max_length, revision, facts)
    return Resolution(
        values,
        _needs(course, data, values),
        check_fit(config, course.work, course.expected.choice, course.devices),
    )


@dataclass(frozen=True, slots=True)
class _Course:
    """How the training will go. `rows`: conversations that an example is; `passes`: forward passes of each process in a
    step; `tokens` and `seconds` of a step, in the mean."""

    work: Workload
    devices: Devices
    expected: Cut
    rows: int
    epochs: int
    steps: int
    passes: int
    tokens: float
    seconds: float


def _course(config: RunConfig, data: DataSizes, shape: ModelShape, max_length: int, cores: int) -> _Course:
    wanted = config.hyperparameters
    precision: Precision = "bfloat16" if config.gpus and wanted.precision is not WantedPrecision.FLOAT32 else "float32"
    epochs = wanted.epochs if isinstance(wanted.epochs, int) else resolve_epochs(data.train_rows)
    batch = wanted.batch_size if isinstance(wanted.batch_size, int) else resolve_batch(data.train_rows, epochs)
    rows = PAIR if config.task is Task.PREFERENCE else 1
    devices = expected_devices(config)
    longest = min(max_length, data.longest) * rows
    work = Workload(config.task, config.method.type, shape, batch, longest, precision)
    expected = cut(work, devices, config.distribution)
    steps = epochs * math.ceil(data.train_rows / batch)  # the last one of an epoch may be smaller
    tokens = data.train_tokens * rows * epochs / steps
    passes = split(batch, devices.processes, expected.micro).passes
    gpus = devices.processes if devices.gpu else 0
    seconds = step_seconds(shape, tokens=tokens, passes=passes, gpus=gpus, cores=cores)
    return _Course(work, devices, expected, rows, epochs, steps, passes, tokens, seconds)


def _values(config: RunConfig, course: _Course, max_length: int, revision: str, facts: Facts) -> ResolvedValues:
    wanted, shape = config.hyperparameters, course.work.shape
    evaluation_steps, checkpoint_steps = _intervals(config, course.steps, course.seconds)
    lora = config.method.type.adapter
    packing = _packing(config, shape)
    values = ResolvedValues(
        epochs=course.epochs,
        batch_size=course.work.batch,
        micro_batch_size=course.expected.micro,
        gradient_accumulation=course.passes,
        max_length=max_length,
        total_steps=course.steps,
        evaluation_steps=evaluation_steps,
        checkpoint_steps=checkpoint_steps,
        packing=packing,
        precision=course.work.precision,
        attention=resolve_attention(
            wanted,
            shape.attentions,
            course.work.precision,
            packing=packing,
            plain=shape.plain_rows,
            installed=flash_attention_installed(),
        ),
        gradient_checkpointing=shape.recomputes,
        lora_rank=config.method.resolved_rank if lora else None,
        lora_alpha=config.method.resolved_alpha if lora else None,
        beta=float(wanted.beta or BETA) if config.task is Task.PREFERENCE else None,
        revision=revision,
        model_parameters=shape.parameters,
        trainable_parameters=shape.trainable,
        **resolve_optimization(config, facts, steps=course.steps, evaluation_steps=evaluation_steps),
    )
    return applied(values, course.expected, course.devices.processes)


def _needs(course: _Course, data: DataSizes, values: ResolvedValues) -> Estimate:
    work = course.work
    needs = estimate(
        work.shape,
        rows=values.micro_batch_size,
        length=work.length,
        precision=work.precision,
        seconds_per_step=course.seconds,
        steps=course.steps,
        evaluations=math.ceil(course.steps / values.evaluation_steps),
        evaluation_tokens=data.validation_tokens * course.rows,
        train_tokens_per_step=course.tokens,
    )
    each = device_bytes(work, values.micro_batch_size, course.expected.choice, course.devices.processes)
    return needs.model_copy(update={"memory_bytes": each})


def _intervals(config: RunConfig, steps: int, seconds: float) -> tuple[int, int]:
    """Optimizer steps between evaluations, and between checkpoints. One that is `auto` follows the other."""
    evaluation, checkpoint = config.hyperparameters.evaluation_steps, config.hyperparameters.checkpoint_steps
    auto = max(1, min(math.ceil(steps / EVALUATIONS), int(LONGEST_INTERVAL / seconds)))
    if not isinstance(evaluation, int):
        evaluation = checkpoint if isinstance(checkpoint, int) else auto
    return evaluation, checkpoint if isinstance(checkpoint, int) else evaluation


def _packing(config: RunConfig, shape: ModelShape) -> bool:
    """Raises UserInputError (SpecInvalid) when packing is asked for and would let examples see each other."""
    choice = config.hyperparameters.packing
    if config.task is Task.PREFERENCE:
        return False  # a row is one of two answers
    if choice is Packing.AUTO:
        wanted = config.hyperparameters
        free = wanted.attention is Attention.AUTO
        flash = shape.packable and flash_attention_installed() and FLASH in shape.attentions
        flash = flash and (free or wanted.attention is Attention.FLASH_ATTENTION_2)
        return wanted.neftune_alpha == "auto" and ((free and shape.plain_rows) or (config.gpus > 0 and flash))
    if choice is Packing.ENABLED and not shape.packable:
        raise UserInputError(
            "hyperparameters.packing Enabled: this model's architecture cannot keep examples in one row apart, so that "
            "each would be trained on with those before it in view",
            advice="leave hyperparameters.packing out, or set it to Disabled",
            reason=FailureReason.SPEC_INVALID,
        )
    return choice is Packing.ENABLED
