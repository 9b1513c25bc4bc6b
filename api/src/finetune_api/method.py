"""How the weights change, and the knobs of training."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.fields import Auto, IntOrAuto, ModuleName, Multiplier, distinct
from finetune_api.tasks import MethodType

BETA = r"^(0\.[0-9]{0,5}[1-9][0-9]{0,5}|1(\.[0-9]{1,6})?|2(\.0{1,6})?)$"


class Packing(Named):
    AUTO = "auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Initialization(Named):
    """Of the adapter's matrices, by PEFT's names. Those that change the base's weights are not offered."""

    DEFAULT = "default"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"


def _only_adapters(field: str, attribute: str) -> Rule:
    return Rule(
        f"self.type != 'Full' || !has(self.{field})",
        f"method.{field}: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
        lambda method: method.type.adapter or getattr(method, attribute) is None,
    )


class MethodSpec(ApiModel):
    """How the weights change."""

    type: MethodType = Field(
        default=MethodType.LORA,
        description="LoRA trains small adapter matrices. QLoRA does so on a base in 4 bits: a third of the memory, "
        "slower. DoRA trains direction and size apart: a little better at small ranks, slower, and merged into the "
        "base for serving. Full trains all weights.",
    )
    rank: Int | None = Field(default=None, ge=1, le=512, description="Rank of the adapter. Default 16.")
    alpha: Int | None = Field(default=None, ge=1, le=2048, description="Alpha of the adapter. Default twice the rank.")
    dropout: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^0(\.[0-9]{1,4})?$",
        description='Dropout before the adapter, "0" to "0.9999". Default "0".',
    )
    target_modules: Annotated[list[ModuleName], Field(min_length=1, max_length=64), AfterValidator(distinct)] | None = (
        Field(
            default=None,
            description="Names of the linear layers that get an adapter. Default: all of them but the output layer.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        )
    )
    rs_lora: bool | None = Field(
        default=None,
        alias="rsLoRA",
        description="Scale the adapter by alpha / sqrt(rank) instead of alpha / rank: for ranks of 64 and more.",
    )
    initialization: Initialization | None = Field(
        default=None, description="How the adapter's matrices begin, by PEFT's names. Default: default."
    )
    double_quantization: bool | None = Field(
        default=None, description="QLoRA: quantise the scales too, 0.4 bits a weight less. Default true."
    )
    rules: ClassVar = (
        _only_adapters("rank", "rank"),
        _only_adapters("alpha", "alpha"),
        _only_adapters("dropout", "dropout"),
        _only_adapters("targetModules", "target_modules"),
        _only_adapters("rsLoRA", "rs_lora"),
        _only_adapters("initialization", "initialization"),
        Rule(
            "self.type == 'QLoRA' || !has(self.doubleQuantization)",
            "method.doubleQuantization: only QLoRA quantises; remove it or set method.type to QLoRA",
            lambda method: method.type is MethodType.QLORA or method.double_quantization is None,
        ),
        Rule(
            "self.type != 'DoRA' || !has(self.initialization) || self.initialization == 'default'",
            "method.initialization: DoRA has its own; remove it",
            lambda method: method.type is not MethodType.DORA or method.initialization in (None, "default"),
        ),
    )

    @property
    def resolved_rank(self) -> int:
        return self.rank or 16

    @property
    def resolved_alpha(self) -> int:
        return self.alpha or 2 * self.resolved_rank


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
    max_length: Annotated[Int | Auto, IntOrAuto("hyperparameters.maxLength", 16, 131072)] = Field(
        default="auto", description="Longest example, in tokens; what is longer is cut. `auto` or 16 to 131072."
    )
    packing: Packing = Field(
        default=Packing.AUTO,
        description="Several short examples in one row, without seeing each other. `auto`: where the attention "
        "implementation keeps them apart.",
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
