"""`run.json`, the one thing that a stage pod reads of the control plane, and the part of it that a server is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.conditions import Trigger
from finetune_api.lineage import ContinuedFrom
from finetune_api.spec import (
    BaseModelSpec,
    DatasetSpec,
    DistributionSpec,
    EvaluationSpec,
    Hyperparameters,
    MethodSpec,
    Task,
)


class RunPaths(StatusModel):
    """Folders of the run, relative to the root of the artifact volume."""

    run: str = Field(description="NAMESPACE/JOB/runs/NUMBER-HASH8")
    models: str = Field(description="NAMESPACE/models: base models, shared by the namespace's jobs")


class SourcePolicy(StatusModel):
    """What Prepare may fetch. Set by the platform, not by the user."""

    https_hosts: list[str] = Field(
        default=[], description="Hosts that https:// sources may name; `*.example.com` for all below. Empty: none."
    )
    allow_private_addresses: bool = Field(
        default=False, description="Whether such a host may resolve to a private address."
    )
    max_bytes: int = Field(default=50 * 2**30, description="Largest file, bytes.")
    timeout_seconds: int = Field(default=3600, description="Longest download, seconds.")


class PreviousRun(StatusModel):
    """The model that Evaluate measures as the baseline Previous. Paths are relative to the root of its claim."""

    run: int
    path: str = Field(description="Folder of the adapter or model.")
    base_path: str | None = Field(default=None, description="Folder of its base model.")
    claim: str | None = Field(
        default=None, description="Where it lies on another claim than the run: mounted at SOURCES/pvc/CLAIM."
    )
    mounted: bool = Field(default=True, description="False: that claim may be gone, so that the pod was not given it.")


class ServedRun(StatusModel):
    """What a server has to know of its run. All of it follows from the status of the model, so that it can be served
    where the snapshot is lost: after a restore, say."""

    schema_version: Literal["v1alpha1"] = "v1alpha1"
    namespace: str
    job: str
    run: int
    task: Task
    base_name: str = Field(description="Name by which the endpoint answers for the base model.")
    tuned_name: str = Field(description="Name by which the endpoint answers for the tuned model.")
    paths: RunPaths


class RunConfig(ServedRun):
    """The immutable snapshot of a run. A pod finds it at --config; the roots of the volumes come as flags."""

    uid: str = ""
    hash: str
    trigger: Trigger = Trigger.CREATED
    occasion: str | None = Field(default=None, description="What the trigger came with, for example a time.")
    base_model: BaseModelSpec
    continued_from: ContinuedFrom | None = Field(default=None, description="What base_model.fine_tune_job came to.")
    dataset: DatasetSpec
    method: MethodSpec
    hyperparameters: Hyperparameters
    evaluation: EvaluationSpec
    gpus: int = 0
    processes: int = Field(default=1, description="Training processes, on all nodes.")
    distribution: DistributionSpec = DistributionSpec()
    gpu_memory_bytes: int | None = Field(default=None, description="Memory of one GPU, if the job says it.")
    memory_limit_bytes: int | None = Field(default=None, description="Memory of the training pod, if limited.")
    policy: SourcePolicy = SourcePolicy()
