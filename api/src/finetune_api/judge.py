"""The judge: another model that says which of two answers is better, base's or tuned model's."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Rule
from finetune_api.dataset import SecretRef

JUDGE_CHECK = "judge"
"""Name by which a gate rule calls the judge, as if it were a check."""
API_KEY = "OPENAI_API_KEY"


class JudgeSpec(ApiModel):
    """Any OpenAI-compatible endpoint. It is sent questions and answers of the held-out data."""

    url: str = Field(
        min_length=8,
        max_length=512,
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="Base URL of the endpoint, up to and with /v1: https://HOST/v1, or http:// inside the cluster.",
    )
    model: str = Field(min_length=1, max_length=253, description="Name by which the endpoint knows the judging model.")
    secret_ref: SecretRef | None = Field(
        default=None,
        description=f"Secret with the key {API_KEY}. Only the pod that asks the judge sees it.",
    )
    rubric: str = Field(
        default="Prefer the answer that is more correct and more helpful.",
        min_length=1,
        max_length=4096,
        description="What makes an answer the better one, in words.",
    )
    answers: Int = Field(
        default=32,
        ge=1,
        le=200,
        description="Held-out questions whose answers are judged at most; two requests each, one in either order.",
    )
    timeout_seconds: Int = Field(
        default=60, ge=1, le=600, description="Longest wait for one verdict, seconds. 1 to 600."
    )
    rules: ClassVar = (
        Rule(
            "!self.url.contains('..')",
            "judge.url: '..' is not allowed; write the endpoint's base URL, for example https://HOST/v1",
            lambda judge: ".." not in judge.url,
        ),
    )
