"""The resource itself, and what identifies a run of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from finetune_api import API_VERSION, KIND
from finetune_api.base import StatusModel
from finetune_api.conditions import Trigger
from finetune_api.package import PackageInputs
from finetune_api.spec import IN_PROMPT, Baseline, EvaluationSpec, FineTuneJobSpec, ServingSpec
from finetune_api.status import FineTuneJobStatus


class ObjectMeta(StatusModel):
    """The part of Kubernetes' metadata that decisions read."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default={})


class FineTuneJob(StatusModel):
    """One fine-tuning, from data to a served model."""

    api_version: str = API_VERSION
    kind: str = KIND
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()

    @property
    def key(self) -> str:
        """namespace/name."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


# Of the spec, what training depends on: the run's snapshot has it, and with the token it makes the run's hash.
SNAPSHOT_INPUTS = ("task", "base_model", "dataset", "method", "hyperparameters")


def training_inputs(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What a run depends on. Values that equal their default are left out, so that a field
    which a later version adds with a default does not change the hash of older jobs."""
    dump = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        include={*SNAPSHOT_INPUTS, "rerun_token"},
    )
    for part in ("baseModel", "dataset"):
        dump.get(part, {}).pop("secretRef", None)  # another password is not another run
    return dump


def run_hash(spec: FineTuneJobSpec) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the run's inputs in canonical JSON."""
    return _hash(training_inputs(spec))


def content_hash(spec: FineTuneJobSpec) -> str:
    """The run's hash but for the token: what is the same in a rerun."""
    return run_hash(spec.model_copy(update={"rerun_token": None}))


RECURRING = (Trigger.SCHEDULE, Trigger.DATASET_CHANGED)
"""Triggers of which each occasion is a run of the same inputs. A rerun's word is one of the inputs."""


def occasion_hash(inputs: str, trigger: Trigger, occasion: str | None) -> str:
    """What identifies a run of these inputs (a `run_hash`): for a recurring trigger with the occasion, so that each
    occasion is one run, whoever comes to make it, and how often."""
    if trigger not in RECURRING:
        return inputs
    return _hash({"inputs": inputs, "trigger": trigger.value, "occasion": occasion})


def evaluation_inputs(spec: EvaluationSpec) -> dict[str, Any]:
    """What a measurement depends on: all of `evaluation` but the gate, which is judged anew at any time.

    Itself an EvaluationSpec. Without defaults, as in `training_inputs`; and the base, which is measured always, is
    left out, so that what means the same is the same.
    """
    dump = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"gate", "baselines"})
    more = sorted(set(spec.baselines) - {Baseline.BASE})
    if not set(IN_PROMPT) & set(more):
        dump.pop("fewShotExamples", None)
    if not spec.checks:
        dump.pop("checkAnswers", None)
    dump.get("judge", {}).pop("secretRef", None)  # another key is not another measurement
    return {**dump, "baselines": more} if more else dump


def evaluation_hash(spec: EvaluationSpec) -> str:
    """Stands for how a model is measured, as `run_hash` does for how it is made."""
    return _hash(evaluation_inputs(spec))


def package_inputs(spec: FineTuneJobSpec, *, promoted: bool, measured: str | None) -> PackageInputs:
    """What is to be made of a run that was measured (`measured`: by which settings): exports only of a promoted one."""
    tracked = {"tracking": spec.tracking, "measured": measured} if spec.tracking.trackers else {}
    return PackageInputs(exports=spec.output.exports if promoted else [], **tracked)


def package_hash(inputs: PackageInputs) -> str:
    """Stands for what a run is packaged as."""
    return _hash(inputs.settings)


def rollout_hash(serving: ServingSpec) -> str:
    """Stands for how a server is made and asked: what a user can change to have a failed rollout tried again."""
    return _hash(serving.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"run", "replicas"}))


def canonical(value: dict[str, Any]) -> str:
    """One text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
