"""`spec.promotion`: who says that a run which passed its gate may answer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Named, Rule


class PromotionMode(Named):
    AUTOMATIC = "Automatic"
    MANUAL = "Manual"


class Approval(ApiModel):
    """One run, and which model exactly: what was looked at is what will answer."""

    run: Int = Field(ge=1, le=1000000, description="Number of the run that is approved.")
    digest: str = Field(
        min_length=12,
        max_length=64,
        pattern=r"^[0-9a-f]{12,64}$",
        description="SHA-256 of its model as in status.run.model.sha256, 12 hexadecimal digits of it or more.",
    )

    def covers(self, run: int, sha256: str) -> bool:
        """Whether this very model of this run is meant."""
        return run == self.run and sha256.startswith(self.digest)


class PromotionSpec(ApiModel):
    """When a run that passed its gate takes over. No part of a run: a change trains nothing."""

    mode: PromotionMode = Field(
        default=PromotionMode.AUTOMATIC,
        description="Automatic: at once. Manual: when `approved` names it; until then the run before answers.",
    )
    approved: Approval | None = Field(
        default=None,
        description="Manual: the run that may answer. Once promoted a run stays so; serving.run goes back.",
    )
    rules: ClassVar = (
        Rule(
            "self.mode == 'Manual' || !has(self.approved)",
            "promotion.approved: only the mode Manual asks for it; remove it or set promotion.mode to Manual",
            lambda promotion: promotion.mode is PromotionMode.MANUAL or promotion.approved is None,
        ),
    )

    def allows(self, run: int, sha256: str) -> bool:
        """Whether this model of this run may answer, once it has passed its gate."""
        if self.mode is PromotionMode.AUTOMATIC:
            return True
        return self.approved is not None and self.approved.covers(run, sha256)
