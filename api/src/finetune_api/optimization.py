"""How weights are moved: optimizers, schedules and losses by their libraries' names, and what is known of each.

One table each, for admission (what goes together), the trainer (what the library calls it), the estimate and the
documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.base import Named
from finetune_api.tasks import Task


class Optimizer(Named):
    """By transformers' names (`OptimizerNames`), in PascalCase."""

    AUTO = "auto"
    ADAMW = "AdamW"
    ADAMW_FUSED = "AdamWFused"
    ADAMW_8BIT = "AdamW8bit"
    PAGED_ADAMW = "PagedAdamW"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"
    ADAFACTOR = "Adafactor"
    LION = "Lion"
    LION_8BIT = "Lion8bit"


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """`library_name` is transformers' word for it, `state_bytes` what it keeps a trained parameter beside weight and
    gradient, `rate` the factor on AdamW's learning rate. `on_cpu` is what a processor has in its place."""

    library_name: str
    state_bytes: float
    rate: float = 1.0
    beta2: float = 0.999
    on_cpu: Optimizer | None = None

    @property
    def needs_gpu(self) -> bool:
        return self.on_cpu is not None


_BLOCK = 256  # values of an 8-bit state that share a float32 scale (bitsandbytes)
_BYTE = 1 + 4 / _BLOCK
# Lion: a third to a tenth of AdamW's rate, and beta2 0.99 (arXiv 2302.06675, sections 4.1 and 5).
LION_RATE, LION_BETA2 = 0.2, 0.99
OPTIMIZERS: Mapping[Optimizer, OptimizerFacts] = {
    Optimizer.ADAMW: OptimizerFacts("adamw_torch", 8),
    Optimizer.ADAMW_FUSED: OptimizerFacts("adamw_torch_fused", 8),
    Optimizer.ADAMW_8BIT: OptimizerFacts("adamw_8bit", 2 * _BYTE),
    # bitsandbytes pages a GPU's memory out to the host's; on a CPU it warns and keeps everything as it is.
    Optimizer.PAGED_ADAMW: OptimizerFacts("paged_adamw_32bit", 8, on_cpu=Optimizer.ADAMW),
    Optimizer.PAGED_ADAMW_8BIT: OptimizerFacts("paged_adamw_8bit", 2 * _BYTE, on_cpu=Optimizer.ADAMW_8BIT),
    Optimizer.ADAFACTOR: OptimizerFacts("adafactor", 0),  # a row and a column for each matrix
    Optimizer.LION: OptimizerFacts("lion_32bit", 4, LION_RATE, LION_BETA2),
    Optimizer.LION_8BIT: OptimizerFacts("lion_8bit", _BYTE, LION_RATE, LION_BETA2),
}
GPU_OPTIMIZERS = tuple(each for each, facts in OPTIMIZERS.items() if facts.needs_gpu)


class Schedule(Named):
    """By transformers' names (`SchedulerType`), in PascalCase."""

    AUTO = "auto"
    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"
    CONSTANT_WITH_WARMUP = "ConstantWithWarmup"
    COSINE_WITH_MIN_LR = "CosineWithMinLr"
    INVERSE_SQRT = "InverseSqrt"
    WARMUP_STABLE_DECAY = "WarmupStableDecay"


SCHEDULES: Mapping[Schedule, str] = {
    Schedule.COSINE: "cosine",
    Schedule.LINEAR: "linear",
    Schedule.CONSTANT: "constant",
    Schedule.CONSTANT_WITH_WARMUP: "constant_with_warmup",
    Schedule.COSINE_WITH_MIN_LR: "cosine_with_min_lr",
    Schedule.INVERSE_SQRT: "inverse_sqrt",
    Schedule.WARMUP_STABLE_DECAY: "warmup_stable_decay",
}


class Loss(Named):
    """By TRL's names for language and preferences, by PyTorch's for labels."""

    AUTO = "auto"
    NLL = "NLL"
    DFT = "DFT"
    SIGMOID = "Sigmoid"
    SIGMOID_NORM = "SigmoidNorm"
    HINGE = "Hinge"
    IPO = "IPO"
    ROBUST = "Robust"
    NCA_PAIR = "NcaPair"
    BCO_PAIR = "BcoPair"
    SPPO_HARD = "SppoHard"
    APO_ZERO = "ApoZero"
    APO_DOWN = "ApoDown"
    CROSS_ENTROPY = "CrossEntropy"
    WEIGHTED_CROSS_ENTROPY = "WeightedCrossEntropy"


# TRL's DPO trainer, its `loss_type`. Left out: those that look at a whole micro batch at once (aot), so that its size
# would matter; the one that prefers nothing (sft); exo_pair, which cannot do without label smoothing; and discopop,
# whose slope at the beginning, where model and base are alike, leads to the worse answer (it is not convex there).
PREFERENCE_LOSSES: Mapping[Loss, str] = {
    Loss.SIGMOID: "sigmoid",
    Loss.SIGMOID_NORM: "sigmoid_norm",
    Loss.HINGE: "hinge",
    Loss.IPO: "ipo",
    Loss.ROBUST: "robust",
    Loss.NCA_PAIR: "nca_pair",
    Loss.BCO_PAIR: "bco_pair",
    Loss.SPPO_HARD: "sppo_hard",
    Loss.APO_ZERO: "apo_zero",
    Loss.APO_DOWN: "apo_down",
}
_LANGUAGE = (Loss.NLL, Loss.DFT)
_LABELS = (Loss.CROSS_ENTROPY, Loss.WEIGHTED_CROSS_ENTROPY)
# What each task can be trained by; the first is `auto`.
LOSSES: Mapping[Task, tuple[Loss, ...]] = {
    Task.CHAT: _LANGUAGE,
    Task.COMPLETION: _LANGUAGE,
    Task.PREFERENCE: tuple(PREFERENCE_LOSSES),
    Task.CLASSIFICATION: _LABELS,
    Task.TOKEN_CLASSIFICATION: _LABELS,
    Task.SEQ2SEQ: (Loss.NLL,),
    Task.QUESTION_ANSWERING: (Loss.CROSS_ENTROPY,),
}
# Why labels cannot be smoothed, for the tasks in which they cannot.
NOT_SMOOTHED: Mapping[Task, str] = {
    Task.CHAT: "TRL's loss never holds the probabilities of all tokens at once, which smoothing needs",
    Task.COMPLETION: "TRL's loss never holds the probabilities of all tokens at once, which smoothing needs",
    Task.QUESTION_ANSWERING: "an answer begins and ends at one place, and the others are not a little right",
}


class Switch(Named):
    AUTO = "auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Precision(Named):
    """Float16 is left out: it needs a loss scale, and whatever has it has BFloat16 or is better off with Float32."""

    AUTO = "auto"
    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class Attention(Named):
    """By transformers' names."""

    AUTO = "auto"
    SDPA = "SDPA"
    EAGER = "Eager"
    FLASH_ATTENTION_2 = "FlashAttention2"


ATTENTIONS: Mapping[Attention, str] = {
    Attention.SDPA: "sdpa",
    Attention.EAGER: "eager",
    Attention.FLASH_ATTENTION_2: "flash_attention_2",
}
