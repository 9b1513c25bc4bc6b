"""The Job that removes files of finished runs from a claim. It is no stage: it belongs to no run, and ends none."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from finetune_api.conditions import ExitCode
from finetune_api.job import FineTuneJob, canonical
from finetune_api.retention import RemovalOrder
from finetune_operator import names
from finetune_operator.builders import pod
from finetune_operator.builders.metadata import metadata, sealed
from finetune_operator.builders.stage_job import GRACE_SECONDS, scratch_only
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

REMOVE = "Remove"  # in the place of a stage, in labels and as the trainer's command
REQUESTS = {"cpu": "50m", "memory": "128Mi"}


def removal_job(job: FineTuneJob, claim: str, order: RemovalOrder, settings: Settings) -> Manifest:
    """batch/v1 Job. What it was told is read back from its annotation: the rest of a Job is not kept in memory."""
    told = canonical(order.wire)
    labels = {
        names.MANAGED_BY: "finetune-operator",
        names.LABEL_JOB: names.cut(job.metadata.name),
        names.LABEL_STAGE: REMOVE,
    }
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["finetune-trainer"],
        "args": [REMOVE.lower(), "--artifacts", pod.ARTIFACTS_PATH],
        "env": pod.env({**pod.BASE_ENV, **pod.OFFLINE_ENV, "FINETUNE_REMOVE": told}),
        "resources": pod.resources(scratch_only(job.spec.compute.resources), REQUESTS),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [pod.mount("artifacts", pod.ARTIFACTS_PATH), pod.mount("tmp", "/tmp")],
    }
    codes = {"containerName": names.CONTAINER, "operator": "In", "values": [ExitCode.USER_INPUT]}
    spec = {
        "backoffLimit": settings.backoff_limit,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
        "template": {
            "metadata": {"labels": dict(labels)},
            "spec": pod.pod_spec(
                settings,
                container=container,
                volumes=[pod.claim_volume("artifacts", claim), pod.tmp_volume(job.spec.compute.resources)],
                grace_seconds=GRACE_SECONDS,
                where=pod.placement(job.spec.compute, job.spec.compute.priority_class_name),
                restart_policy="Never",
            ),
        },
    }
    meta = metadata(job, names.removal_name(job.metadata.name), labels, {names.ANNOTATION_REMOVE: told})
    return sealed({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})


def order_of(job: Manifest) -> RemovalOrder | None:
    """What a removal Job was told; None where that cannot be read."""
    try:
        return RemovalOrder.from_record(names.annotation(job, names.ANNOTATION_REMOVE) or "")
    except ValidationError:
        return None
