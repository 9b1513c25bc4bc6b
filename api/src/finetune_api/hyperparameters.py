"""The knobs of training. What each means when it is `auto` says docs/training.md, with its source."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.fields import PERCENT, Auto, IntOrAuto, Multiplier, ruled
from finetune_api.optimization import Attention, Loss, Optimizer, Precision, Schedule, Switch

BETA = r"^(0\.[0-9]{0,5}[1-9][0-9]{0,5}|1(\.[0-9]{1,6})?|2(\.0{1,6})?)$"
LEARNING_RATE = "^([1-9]([.][0-9]{1,4})?e-0?[1-9]|0[.]0{0,8}[1-9][0-9]{0,8})$"
DECIMAL = "^[0-9]{1,4}([.][0-9]{1,6})?$"
SHARE = "^[0-9]{1,2}([.][0-9]{1,2})?%$"
MOST_WARMUP = 100_000  # optimizer steps


class Packing(Named):
    AUTO = "auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


def _decimal(field: str, low: str, high: str, example: str, *, below: bool = False) -> tuple[Any, Any]:
    """The halves of `auto` or a decimal in quotes between two bounds, of which `below` excludes the upper."""
    end = f"to below {high}" if below else f"to {high}"

    def holds(text: str) -> bool:
        if text == "auto":
            return True
        if not re.search(DECIMAL, text):
            return False
        value = float(text)
        return float(low) <= value and (value < float(high) if below else value <= float(high))

    return ruled(
        Rule(
            f"self == 'auto' || (self.matches('{DECIMAL}') && double(self) >= double('{low}') && "
            f"double(self) {'<' if below else '<='} double('{high}'))",
            f'hyperparameters.{field}: write auto, or a decimal in quotes from {low} {end}, for example "{example}"',
            holds,
        )
    )


def is_warmup(value: int | str) -> bool:
    """`auto`, steps, or a percentage below 100."""
    if isinstance(value, int):
        return 0 <= value <= MOST_WARMUP
    return value == "auto" or bool(re.search(SHARE, value))


_WARMUP = ruled(
    Rule(
        f"type(self) == int ? self >= 0 && self <= {MOST_WARMUP} : self == 'auto' || self.matches('{SHARE}')",
        f"hyperparameters.warmup: write auto, a number of optimizer steps from 0 to {MOST_WARMUP}, or their share of "
        'the training: "5%"',
        is_warmup,
    )
)
_RATE = ruled(
    Rule(
        f"self.matches('{LEARNING_RATE}')",
        'hyperparameters.learningRate: write a number above 0 and below 1 in quotes, for example "2e-4" or "0.0002"',
        lambda text: bool(re.search(LEARNING_RATE, text)),
    )
)
# The API server asks the rules of the default {} too, before it fills in what is in it.
_UNFILLED = "!has(self.schedule)"
_Text = Annotated[str, Field(max_length=12)]
_DECAY = _decimal("weightDecay", "0", "1", "0.01")
_SMOOTHING = _decimal("labelSmoothing", "0", "0.5", "0.1", below=True)
_NORM = _decimal("maxGradNorm", "0", "1000", "0.5")
_NOISE = _decimal("neftuneAlpha", "0", "100", "5")
_INT_OR_STRING = Field(json_schema_extra={"x-kubernetes-int-or-string": True})
Warmup = Annotated[Int | _Text, _WARMUP[0], _WARMUP[1], _INT_OR_STRING]
LearningRate = Annotated[_Text, _RATE[0], _RATE[1]]
WeightDecay = Annotated[_Text, _DECAY[0], _DECAY[1]]
LabelSmoothing = Annotated[_Text, _SMOOTHING[0], _SMOOTHING[1]]
GradNorm = Annotated[_Text, _NORM[0], _NORM[1]]
Noise = Annotated[_Text, _NOISE[0], _NOISE[1]]


class EarlyStopping(ApiModel):
    """End the training when the held-out loss does not fall any more."""

    patience: Int = Field(
        default=3, ge=1, le=100, description="Evaluations without improvement after which the training ends."
    )
    min_improvement: str = Field(
        default="0%",
        max_length=10,
        pattern=PERCENT,
        description="By how much the held-out loss must fall to count as improvement, in percent of the lowest so far.",
    )

    @property
    def least(self) -> float:
        """The same as a share: 0.01 for 1 %."""
        return float(self.min_improvement.rstrip("%")) / 100


class Hyperparameters(ApiModel):
    """What `auto` resolved to is recorded in `status.run.resolved`."""

    epochs: Annotated[Int | Auto, IntOrAuto("hyperparameters.epochs", 1, 100)] = Field(
        default="auto", description="Passes over the training data. `auto` or 1 to 100."
    )
    batch_size: Annotated[Int | Auto, IntOrAuto("hyperparameters.batchSize", 1, 256)] = Field(
        default="auto", description="Examples per optimizer step, over all devices. `auto` or 1 to 256."
    )
    learning_rate_multiplier: Multiplier = Field(
        default="auto",
        description="Factor on the method's own learning rate (2e-4 for adapters, 2e-5 for Full; a twentieth of it for "
        'Preference): `auto` (1), a whole number, or a decimal in quotes, for example "1.8".',
    )
    learning_rate: LearningRate | None = Field(
        default=None,
        description='Peak learning rate in place of a multiplier, in quotes, for example "2e-4".',
    )
    schedule: Schedule = Field(
        default=Schedule.AUTO,
        description="How the learning rate goes on after its warm-up, by transformers' names. `auto`: Cosine, to 0.",
    )
    warmup: Warmup = Field(
        default="auto",
        description="Optimizer steps in which the learning rate rises from 0: a number of them, or their share of the "
        'training, for example "5%". `auto`: 3 %.',
    )
    optimizer: Optimizer = Field(
        default=Optimizer.AUTO,
        description="By transformers' names. `auto`: AdamWFused on a GPU, AdamW on a CPU. Those of 8 bits keep a "
        "quarter of the state; Paged ones move it to the host's memory when the GPU's is short.",
    )
    weight_decay: WeightDecay = Field(
        default="auto", description='Decoupled weight decay, "0" to "1"; not on biases and norms. `auto`: 0.'
    )
    max_grad_norm: GradNorm = Field(
        default="auto", description='Norm to which gradients are clipped; "0" clips nothing. `auto`: 1.'
    )
    loss: Loss = Field(
        default=Loss.AUTO,
        description="What is minimised. Chat and Completion: NLL or DFT. Preference: TRL's DPO losses. Classification "
        "and TokenClassification: CrossEntropy, or WeightedCrossEntropy, in which rare labels count more. `auto`: "
        "NLL, Sigmoid, CrossEntropy.",
    )
    label_smoothing: LabelSmoothing = Field(
        default="auto",
        description="Share of the probability that the loss wants spread over all labels; for Preference with the "
        'loss Robust the share of pairs that are taken to be the wrong way round. "0" to below "0.5". `auto`: 0; '
        "0.1 for Robust.",
    )
    neftune_alpha: Noise = Field(
        default="auto",
        description='Noise on the embeddings while training (NEFTune), "0" to "100"; usual are 5 to 15. `auto`: none.',
    )
    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="End the training when the held-out loss does not fall any more. Absent: train all epochs; the "
        "best checkpoint is taken either way.",
    )
    max_length: Annotated[Int | Auto, IntOrAuto("hyperparameters.maxLength", 16, 131072)] = Field(
        default="auto", description="Longest example, in tokens; what is longer is cut. `auto` or 16 to 131072."
    )
    packing: Packing = Field(
        default=Packing.AUTO,
        description="Several short examples in one row, without seeing each other. `auto`: where the attention "
        "implementation keeps them apart.",
    )
    precision: Precision = Field(
        default=Precision.AUTO, description="Arithmetic. `auto`: BFloat16 on a GPU that has it, Float32 otherwise."
    )
    attention: Attention = Field(
        default=Attention.AUTO,
        description="Implementation, by transformers' names. `auto`: FlashAttention2 for packed rows where it is "
        "installed; otherwise SDPA where the architecture has it, else Eager.",
    )
    gradient_checkpointing: Switch = Field(
        default=Switch.AUTO,
        description="Compute activations again in the backward pass instead of keeping them: less memory, a third "
        "more arithmetic. `auto`: on a GPU.",
    )
    evaluation_steps: Annotated[Int | Auto, IntOrAuto("hyperparameters.evaluationSteps", 1, 100000)] = Field(
        default="auto", description="Optimizer steps between two evaluations. `auto` or 1 to 100000."
    )
    checkpoint_steps: Annotated[Int | Auto, IntOrAuto("hyperparameters.checkpointSteps", 1, 100000)] = Field(
        default="auto", description="Optimizer steps between two checkpoints. `auto` or 1 to 100000."
    )
    beta: str | None = Field(
        default=None,
        max_length=8,
        pattern=BETA,
        description='Preference: how strongly the model is held to its base, above "0" to "2". Default "0.1".',
    )
    seed: Int = Field(default=42, ge=0, le=2147483647, description="Seed of every random choice.")
    rules: ClassVar = (
        Rule(
            "!has(self.learningRate) || self.learningRateMultiplier == 'auto'",
            "hyperparameters: give learningRate or learningRateMultiplier, not both; remove one",
            lambda spec: spec.learning_rate is None or spec.learning_rate_multiplier == "auto",
        ),
        Rule(
            "self.schedule != 'Constant' || self.warmup == 'auto' || self.warmup == 0",
            "hyperparameters.warmup: the schedule Constant has none; set schedule to ConstantWithWarmup or remove it",
            lambda spec: spec.schedule is not Schedule.CONSTANT or spec.warmup in ("auto", 0),
            unless=_UNFILLED,
        ),
        Rule(
            "self.neftuneAlpha == 'auto' || self.packing != 'Enabled'",
            "hyperparameters.packing: NEFTune's noise is measured by the length of an example, which packed rows "
            "hide; set packing to auto, or remove neftuneAlpha",
            lambda spec: spec.neftune_alpha == "auto" or spec.packing is not Packing.ENABLED,
            unless=_UNFILLED,
        ),
        Rule(
            "self.attention != 'FlashAttention2' || self.precision != 'Float32'",
            "hyperparameters.attention: FlashAttention2 computes in 16 bits; set precision to auto, or attention to "
            "SDPA",
            lambda spec: spec.attention is not Attention.FLASH_ATTENTION_2 or spec.precision is not Precision.FLOAT32,
            unless=_UNFILLED,
        ),
    )
