"""How a promoted run takes over: what its servers are asked before, and what is kept when they fail."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Rule, StatusModel
from finetune_api.conditions import FailureReason
from finetune_api.failure import Time

SMOKE_TOKENS = 128  # of the answer to the smoke test that are waited for


class SmokeTest(ApiModel):
    """What each new server is asked before it takes over. No part of a run."""

    prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="What is asked. Absent: a question of the held-out examples where the task generates text, a short "
        "sample elsewhere; any answer will do that is not empty.",
    )
    contains: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description=f"Text that must be in the first {SMOKE_TOKENS} tokens of the answer (temperature 0); in the JSON "
        "of the answer where the task predicts, for example a label. Absent: the answer must not be empty.",
    )
    timeout_seconds: Int = Field(default=120, ge=1, le=3600, description="Seconds that the answer may take. 1 to 3600.")
    rules: ClassVar = (
        Rule(
            "has(self.prompt) || !has(self.contains)",
            "serving.smokeTest.contains: say in serving.smokeTest.prompt what is asked, or remove it",
            lambda smoke: smoke.prompt is not None or smoke.contains is None,
        ),
    )

    def fault(self, answer: str) -> str | None:
        """What is wrong with an answer, in a sentence; None when it will do."""
        if not answer.strip():
            return "the answer is empty"
        if self.contains is not None and self.contains not in answer:
            return f"the answer does not contain {self.contains!r}; it is {answer.strip()[:400]!r}"
        return None


class Rollback(StatusModel):
    """Why the servers of a run did not take over. It is tried again when serving changes or serving.run names it."""

    reason: FailureReason = Field(description="One of a closed list.")
    message: Annotated[str, Field(max_length=1024)] = Field(default="", description="The original message.")
    time: Time | None = Field(default=None, description="When the run before was put back.")
    pinned: bool = Field(default=False, description="Whether serving.run named it then.")
    settings_hash: Annotated[str, Field(max_length=64)] = Field(
        default="", description="Of spec.serving, as it was then. Another one: it is tried again."
    )
