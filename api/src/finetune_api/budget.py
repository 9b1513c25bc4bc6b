"""`spec.budget`: what a run may spend on GPUs."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Rule
from finetune_api.fields import ruled

AMOUNT = "^[0-9]{1,9}([.][0-9]{1,6})?$"  # and one digit that is not 0


def _is_amount(value: int | str) -> bool:
    if isinstance(value, int):
        return 0 < value <= 999999999
    return bool(re.search(AMOUNT, value) and re.search("[1-9]", value))


_CHECKED, _DECLARED = ruled(
    Rule(
        f"type(self) == int ? self > 0 && self <= 999999999 : (self.matches('{AMOUNT}') && self.matches('[1-9]'))",
        'budget: write a whole number above 0, or a decimal in quotes: "7.5"; the unit is GPU hours, or the currency '
        "of the platform",
        _is_amount,
    )
)
Amount = Annotated[
    Int | Annotated[str, Field(max_length=16)],
    _CHECKED,
    _DECLARED,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


class BudgetSpec(ApiModel):
    """What each run may spend, over all its interruptions and retries. No part of a run: a change trains nothing anew,
    and a raised budget goes on from the checkpoint."""

    max_gpu_hours: Amount | None = Field(
        default=None,
        description="GPU hours: one GPU held for an hour, also while its pod loads or waits for its peers. A training "
        "that is estimated at more is not begun; a run that has used them saves a checkpoint and gives its GPUs back.",
    )
    max_cost: Amount | None = Field(
        default=None,
        description="Cost of the GPU hours, in the currency of the platform (`prices` of the chart). Without a price "
        "for the job's GPUs no stage begins.",
    )
    rules: ClassVar = (
        Rule(
            "has(self.maxGpuHours) || has(self.maxCost)",
            "budget: name an upper bound: maxGpuHours, maxCost, or both; or remove it",
            lambda budget: budget.max_gpu_hours is not None or budget.max_cost is not None,
        ),
    )

    @property
    def gpu_seconds(self) -> Decimal | None:
        """maxGpuHours in seconds."""
        return None if self.max_gpu_hours is None else Decimal(self.max_gpu_hours) * 3600

    @property
    def cost(self) -> Decimal | None:
        """maxCost as a number."""
        return None if self.max_cost is None else Decimal(self.max_cost)


HAS_GPUS = "self.compute.gpus > 0"
BUDGET_NEEDS_GPUS = Rule(
    "!has(self.budget)",
    "budget: it counts GPU hours, and compute.gpus is 0; remove it, or set compute.gpus",
    lambda spec: spec.budget is None or spec.compute.gpus > 0,
    unless=HAS_GPUS,
)
