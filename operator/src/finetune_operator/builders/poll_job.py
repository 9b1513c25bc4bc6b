"""The Job that looks at a dataset's sources. It is no stage: it belongs to no run, and ends none.

It sees what Prepare sees of the data, and nothing else: neither the model's Secret nor any volume that is written to.
It selects no node: a look must not make an autoscaler start a GPU machine.
"""

from __future__ import annotations

from typing import Any

from finetune_api.dataset_poll import PollOrder
from finetune_api.job import FineTuneJob, canonical
from finetune_api.spec import Placement
from finetune_api.status import RunStatus
from finetune_operator import names
from finetune_operator.builders import pod
from finetune_operator.builders.metadata import metadata, sealed
from finetune_operator.builders.stage_job import GRACE_SECONDS, dataset_volumes, failure_rules, scratch_only
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

POLL = "Poll"  # in the place of a stage, in labels and as the trainer's command
REQUESTS = {"cpu": "50m", "memory": "128Mi"}  # it imports neither PyTorch nor datasets: 72 MiB
DEADLINE_SECONDS = 600  # a volume that nobody can mount, an image that nobody can pull: the next look comes later
RETRIES = 2


def poll_job(job: FineTuneJob, run: RunStatus, order: PollOrder, moment: int, settings: Settings) -> Manifest:
    """batch/v1 Job. `order`: what the run has read; `moment`: by which the look is known."""
    labels = {
        names.MANAGED_BY: "finetune-operator",
        names.LABEL_JOB: names.cut(job.metadata.name),
        names.LABEL_STAGE: POLL,
    }
    spec = {
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": failure_rules()},
        "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(job, run, order, settings)},
    }
    name = names.poll_name(job.metadata.name, moment)
    meta = metadata(job, name, labels, {names.ANNOTATION_POLLED_RUN: str(run.number)})
    return sealed({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})


def _pod(job: FineTuneJob, run: RunStatus, order: PollOrder, settings: Settings) -> dict[str, Any]:
    told = {"FINETUNE_POLL": canonical(order.to_wire())}
    volumes, mounts = dataset_volumes(job)
    scratch = scratch_only(job.spec.compute.resources)
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["finetune-trainer"],
        "args": [POLL.lower(), "--config", f"{pod.CONFIG_PATH}/run.json", "--sources", pod.SOURCES_PATH],
        "env": pod.env(pod.BASE_ENV | pod.DOWNLOAD_ENV | dict(settings.source_env) | told),
        "resources": pod.resources(scratch, REQUESTS),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [pod.mount("config", pod.CONFIG_PATH, read_only=True), pod.mount("tmp", "/tmp"), *mounts],
    }
    if secret := job.spec.dataset.secret_ref:
        container["envFrom"] = [{"secretRef": {"name": secret.name, "optional": False}}]
    return pod.pod_spec(
        settings,
        container=container,
        volumes=[pod.config_volume(job.metadata.name, run.number), pod.tmp_volume(scratch), *volumes],
        grace_seconds=GRACE_SECONDS,
        where=pod.placement(Placement(tolerations=job.spec.compute.tolerations), None),
        restart_policy="Never",
    )
