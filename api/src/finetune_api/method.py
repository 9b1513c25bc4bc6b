"""How the weights change."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.fields import ModuleName, distinct
from finetune_api.tasks import MethodType


class Initialization(Named):
    """Of the adapter's matrices, by PEFT's names. Those that change the base's weights are not offered."""

    DEFAULT = "default"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"


def _only_adapters(field: str, attribute: str) -> Rule:
    return Rule(
        f"!has(self.{field})",
        f"method.{field}: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
        lambda method: method.type.adapter or getattr(method, attribute) is None,
        unless="self.type != 'Full'",
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
            "!has(self.doubleQuantization)",
            "method.doubleQuantization: only QLoRA quantises; remove it or set method.type to QLoRA",
            lambda method: method.type is MethodType.QLORA or method.double_quantization is None,
            unless="self.type == 'QLoRA'",
        ),
        Rule(
            "!has(self.initialization) || self.initialization == 'default'",
            "method.initialization: DoRA has its own; remove it",
            lambda method: method.type is not MethodType.DORA or method.initialization in (None, "default"),
            unless="self.type != 'DoRA'",
        ),
    )

    @property
    def resolved_rank(self) -> int:
        return self.rank or 16

    @property
    def resolved_alpha(self) -> int:
        return self.alpha or 2 * self.resolved_rank
