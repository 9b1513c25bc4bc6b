"""The model that is tuned: from a source, or what another job has made."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.dataset import SecretRef
from finetune_api.fields import NAME, Source


class ContinueMode(Named):
    """How a run goes on from another one's model."""

    AUTO = "auto"
    STACK = "Stack"
    CONTINUE = "Continue"


class FineTuneJobRef(ApiModel):
    """A run of a job in the same namespace."""

    name: str = Field(
        description="Name of the FineTuneJob; an earlier run of the job itself is one, too.",
        min_length=1,
        max_length=253,
        pattern=NAME,
    )
    run: Int | None = Field(
        default=None,
        ge=1,
        le=1000000,
        description="Number of the run, which must be promoted. Absent: the one that was promoted last when this "
        "run begins, which is recorded; a later one counts from a new spec.rerunToken on.",
    )
    mode: ContinueMode = Field(
        default=ContinueMode.AUTO,
        description="Continue: go on with its adapter, as it is. Stack: merge it into its base, and train something "
        "new on that. auto: Continue where it is an adapter of LoRA or QLoRA, and `method` is one of the two and asks "
        "for no other adapter; else Stack.",
    )


class BaseModelSpec(ApiModel):
    """The model that is tuned."""

    source: Source | None = Field(
        default=None,
        description="Where the base model lies: hf://OWNER/NAME, pvc://CLAIM/FOLDER or s3://BUCKET/PREFIX. "
        "A folder in Hugging Face format with safetensors weights.",
    )
    fine_tune_job: FineTuneJobRef | None = Field(
        default=None, description="In place of a source: go on from what a job of this namespace has made."
    )
    revision: str | None = Field(
        default=None,
        description="Commit of a hub model, 40 hexadecimal digits. "
        "When absent, the newest is resolved once and recorded.",
        min_length=40,
        max_length=40,
        pattern=r"^[0-9a-f]{40}$",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the prepare pod (HF_TOKEN, HF_ENDPOINT, "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).",
    )
    rules: ClassVar = (
        Rule(
            "has(self.source) != has(self.fineTuneJob)",
            "baseModel: give exactly one of source and fineTuneJob",
            lambda model: (model.source is None) != (model.fine_tune_job is None),
        ),
        Rule(
            "!has(self.source) || !self.source.startsWith('https://')",
            "baseModel.source: a model is a folder, which https:// cannot list; use hf://, pvc:// or s3://",
            lambda model: not model.is_at("https://"),
        ),
        Rule(
            "!has(self.source) || !self.source.startsWith('hf://') || self.source.matches('^hf://[^/]+/[^/]+$')",
            "baseModel.source: write hf://OWNER/NAME; a commit goes into baseModel.revision",
            lambda model: not model.is_at("hf://") or model.source.count("/") == 3,
        ),
        Rule(
            "!has(self.revision) || (has(self.source) && self.source.startsWith('hf://'))",
            "baseModel.revision: only a hub model (hf://) has a revision; remove it",
            lambda model: model.revision is None or model.is_at("hf://"),
        ),
        Rule(
            "!has(self.secretRef) || !has(self.fineTuneJob)",
            "baseModel.secretRef: nothing is fetched for fineTuneJob; remove it",
            lambda model: model.secret_ref is None or model.fine_tune_job is None,
        ),
    )

    def is_at(self, scheme: str) -> bool:
        """Whether there is a source, and it begins so."""
        return self.source is not None and self.source.startswith(scheme)

    @property
    def told(self) -> str:
        """The model as a user wrote it, for messages."""
        return self.source if self.source is not None else f"baseModel.fineTuneJob {self._job_told}"

    @property
    def _job_told(self) -> str:
        ref = self.fine_tune_job
        return "" if ref is None else ref.name + (f" run {ref.run}" if ref.run else "")
