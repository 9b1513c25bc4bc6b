"""`status.run.cost`: the GPU time that a run has used, and what that costs."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.failure import Count, Time, Word

MOST_KINDS = 16  # of usage; one more for each GPU and each change of its price
MOST_LABELS = 16  # of a pod's node selector, as far as a price is looked for by them
DecimalText = Annotated[str, Field(max_length=32)]
"""A number that must not be rounded by whoever reads JSON: money."""


class GpuUse(StatusModel):
    """GPU time at one price."""

    gpu: Word = Field(description="The price's name, or without one the resource, for example nvidia.com/gpu.")
    gpu_seconds: Count = Field(default=0, description="Seconds x GPUs that pods of the run held.")
    price: DecimalText | None = Field(default=None, description="Of a GPU hour at the time of use.")
    currency: Word | None = Field(default=None, description="Of the price.")
    node_labels: list[Word] = Field(
        default=[],
        max_length=MOST_LABELS,
        description="Without a price: values of the labels by which nodes were selected, for when there is one.",
    )


class CostSum(StatusModel):
    """GPU hours, and what they cost."""

    gpu_hours: DecimalText = Field(description="GPU hours.")
    amount: DecimalText | None = Field(default=None, description="Their cost; absent without a price.")
    currency: Word | None = Field(default=None, description="Of the amount.")

    @property
    def told(self) -> str:
        """1.52 GPU hours, 6.38 EUR."""
        return f"{self.gpu_hours} GPU hours" + (f", {self.amount} {self.currency}" if self.amount else "")


class CostStatus(StatusModel):
    """What a run has used, over all its attempts. Counted is the time in which its pods held GPUs."""

    gpu_hours: DecimalText = Field(default="0.00", description="GPU hours.")
    amount: DecimalText | None = Field(default=None, description="Their cost; absent without a price.")
    currency: Word | None = Field(default=None, description="Of the amount.")
    unpriced_gpu_hours: DecimalText | None = Field(
        default=None, description="Of the GPU hours, those that the amount lacks, because they had no price."
    )
    gpus: Count = Field(default=0, description="GPUs that are held now.")
    time: Time | None = Field(default=None, description="Until when it is counted.")
    estimate: CostSum | None = Field(
        default=None,
        description="What the training was expected to use: its estimated time x GPUs x nodes. Loading and checkpoints "
        "come on top.",
    )
    training: CostSum | None = Field(
        default=None, description="What had been used when the training was done; the measurement comes on top."
    )
    usage: list[GpuUse] = Field(default=[], max_length=MOST_KINDS, description="The same, by GPU and price.")

    @property
    def whole(self) -> CostSum:
        """What was used until now."""
        return CostSum(gpu_hours=self.gpu_hours, amount=self.amount, currency=self.currency)

    @property
    def gpu_seconds(self) -> int:
        """Seconds x GPUs."""
        return sum(use.gpu_seconds for use in self.usage)

    def spent(self, currency: str | None) -> Decimal:
        """The cost of what was used at a price in this currency, exactly."""
        priced = (use for use in self.usage if use.price is not None and use.currency == currency)
        return sum((Decimal(use.gpu_seconds) * Decimal(use.price or 0) / 3600 for use in priced), Decimal(0))
