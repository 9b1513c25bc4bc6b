"""The Job of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from finetune_api.conditions import Stage
from finetune_api.exports import secret_prefix
from finetune_api.job import (
    FineTuneJob,
    canonical,
    evaluation_hash,
    evaluation_inputs,
    package_hash,
    package_inputs,
)
from finetune_api.package import PackageInputs
from finetune_api.placement import ResourceList, Resources
from finetune_api.reasons import AGAIN_CODES, FINAL_CODES
from finetune_api.spec import ComputeSpec, DistributionSpec
from finetune_api.status import RunStatus
from finetune_api.tracking import tracker_prefix
from finetune_operator import names
from finetune_operator.builders import gang, pod
from finetune_operator.builders.metadata import digest, metadata, sealed
from finetune_operator.builders.previous import previous_run
from finetune_operator.builders.run_config_map import CA_CRT
from finetune_operator.builders.shape import SHAPES
from finetune_operator.interruption import grace
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

GRACE_SECONDS = 30  # where nothing has to be saved: a download is begun again by the next attempt


def stage_job(job: FineTuneJob, run: RunStatus, stage: Stage, settings: Settings) -> Manifest:
    """batch/v1 Job: retries are the Job controller's, judged by exit codes."""
    labels = names.labels(job.metadata.name, run.number, stage, run.attempt)
    pod_labels = {**labels, **gang.gang_labels(job, stage)}
    spec: dict[str, Any] = {
        **gang.gang_job(job, stage, settings.backoff_limit),
        # The next pod starts only after the last one is gone: two trainers never write to one folder.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": failure_rules()},
        "template": {"metadata": {"labels": pod_labels}, "spec": _pod(job, run, stage, settings)},
    }
    queued = queue_labels(job, stage)
    if queued:
        spec["suspend"] = True  # the queue lets it go; without one it must not run past every quota
    if SHAPES[stage].bounded and job.spec.compute.active_deadline_seconds:
        spec["activeDeadlineSeconds"] = job.spec.compute.active_deadline_seconds
    annotations = {
        names.ANNOTATION_RUN_HASH: run.hash,
        names.ANNOTATION_INPUTS_HASH: inputs_hash(job, stage),
        names.ANNOTATION_CLAIM: run_claim(job, run),
    }
    if SHAPES[stage].saves:
        annotations[names.ANNOTATION_GRACE] = str(grace(run, settings))
    if SHAPES[stage].measures or SHAPES[stage].judges:
        annotations[names.ANNOTATION_EVALUATION_HASH] = evaluation_hash(job.spec.evaluation)
    if SHAPES[stage].delivers:
        annotations[names.ANNOTATION_PACKAGE_HASH] = package_hash(_package(job, run))
    meta = metadata(job, job_name(job, run, stage), {**labels, **queued}, annotations)
    return sealed({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})


def job_name(job: FineTuneJob, run: RunStatus, stage: Stage) -> str:
    """The name of the stage's Job."""
    return names.stage_name(job.metadata.name, run.number, stage, gang.members(job, stage))


def queue_labels(job: FineTuneJob, stage: Stage) -> dict[str, str]:
    """Labels of a Job that waits in a queue; none of one that does not."""
    compute = job.spec.compute
    if compute.queue_name is None or SHAPES[stage].fetches or SHAPES[stage].reaches_out:
        return {}
    priority = compute.workload_priority_class_name
    return {names.LABEL_QUEUE: compute.queue_name, **({names.LABEL_QUEUE_PRIORITY: priority} if priority else {})}


def run_claim(job: FineTuneJob, run: RunStatus) -> str:
    """The claim that the run's files are on; a run that has not begun takes what the spec names."""
    return run.claim_name or job.spec.output.claim_name


def inputs_hash(job: FineTuneJob, stage: Stage) -> str:
    """Stands for what a user can change to right a failed stage without starting a new run. As in `run_hash`,
    defaults are left out: a field that a later version adds must not try every failed stage again."""
    spec = job.spec
    refs = [spec.base_model.secret_ref, spec.dataset.secret_ref]
    if SHAPES[stage].delivers:
        refs = [*(export.secret_ref for export in spec.output.exports), *spec.tracking.secrets.values()]
    if SHAPES[stage].judges:
        refs = [spec.evaluation.judge.secret_ref if spec.evaluation.judge else None]
    compute = spec.compute.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return digest([compute, [ref and ref.name for ref in refs]])


def failed_inputs_hash(job: FineTuneJob, stage: Stage) -> str:
    """Stands for all of the spec that tries a failed stage again, where its Job does not tell any more."""
    shape = SHAPES[stage]
    measured = evaluation_hash(job.spec.evaluation) if shape.measures or shape.judges else None
    return digest([inputs_hash(job, stage), job.spec.output.claim_name if shape.fetches else None, measured])


def _package(job: FineTuneJob, run: RunStatus) -> PackageInputs:
    promoted = bool(run.package and run.package.promoted)
    return package_inputs(job.spec, promoted=promoted, measured=measured_by(run))


def measured_by(run: RunStatus) -> str | None:
    """Hash of the settings that the run's figures are by."""
    return run.evaluation.settings_hash if run.evaluation else None


def failure_rules() -> list[dict[str, Any]]:
    """podFailurePolicy: what is never retried, and what is retried without being counted."""
    return [
        {"action": "FailJob", "onExitCodes": _exit_codes(list(FINAL_CODES))},
        {"action": "Ignore", "onExitCodes": _exit_codes(list(AGAIN_CODES))},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _exit_codes(values: list[int]) -> dict[str, Any]:
    return {"containerName": names.CONTAINER, "operator": "In", "values": values}


def _pod(job: FineTuneJob, run: RunStatus, stage: Stage, settings: Settings) -> dict[str, Any]:
    extra_volumes, extra_mounts = _extras(job, run, stage, settings)
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        **pod.command(stage),
        "env": [
            *pod.env(_environment(job, run, stage, settings)),
            *gang.gang_env(job, stage, job_name(job, run, stage)),
        ],
        "resources": _resources(job, stage),
        "terminationMessagePath": "/dev/termination-log",
        # A crash that leaves no summary leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            pod.mount("config", pod.CONFIG_PATH, read_only=True),
            pod.mount("artifacts", pod.ARTIFACTS_PATH),
            pod.mount("tmp", "/tmp"),
            *extra_mounts,
        ],
    }
    secrets = list(_secrets(job, run, stage))
    if secrets:
        container["envFrom"] = secrets
    return pod.pod_spec(
        settings,
        container=container,
        volumes=[
            pod.config_volume(job.metadata.name, run.number),
            pod.claim_volume("artifacts", run_claim(job, run)),
            pod.tmp_volume(_amounts(job, stage)),
            *extra_volumes,
        ],
        grace_seconds=grace(run, settings) if SHAPES[stage].saves else GRACE_SECONDS,
        # Prepare goes where training will: it is the first consumer of the volume and so chooses its zone.
        where=pod.placement(job.spec.compute, job.spec.compute.priority_class_name)
        | gang.gang_pod(job, stage, names.labels(job.metadata.name, run.number, stage)),
        restart_policy="Never",
    )


def _resources(job: FineTuneJob, stage: Stage) -> dict[str, Any]:
    count = gpus(job, stage)
    more = {job.spec.compute.gpu_resource: count} if count else {}
    more |= job.spec.compute.extended_resources if SHAPES[stage].spreads else {}
    return pod.resources(_amounts(job, stage), SHAPES[stage].requests, more)


def gpus(job: FineTuneJob, stage: Stage) -> int:
    """GPUs of a pod of the stage."""
    if SHAPES[stage].fetches or SHAPES[stage].reaches_out:
        return 0
    wanted = job.spec.compute.gpus
    return wanted if SHAPES[stage].spreads else min(wanted, 1)


def _amounts(job: FineTuneJob, stage: Stage) -> Resources:
    """What the user gives the stage. Who only fetches needs no GPU machine's CPUs and memory, but a quota of scratch
    space asks each pod for an amount."""
    given = job.spec.compute.resources
    return scratch_only(given) if SHAPES[stage].fetches or SHAPES[stage].judges else given


def scratch_only(given: Resources) -> Resources:
    """What a quota of scratch space asks of each pod, without a GPU machine's CPUs and memory."""
    requests, limits = (
        ResourceList(ephemeral_storage=part.ephemeral_storage) if part and part.ephemeral_storage else None
        for part in (given.requests, given.limits)
    )
    return Resources(requests=requests, limits=limits)


def _environment(job: FineTuneJob, run: RunStatus, stage: Stage, settings: Settings) -> dict[str, str]:
    result = dict(pod.BASE_ENV)
    shape = SHAPES[stage]
    if shape.fetches:
        result |= pod.DOWNLOAD_ENV | dict(settings.source_env)
    else:
        result |= pod.OFFLINE_ENV
        result["FINETUNE_GPUS"] = str(gpus(job, stage))  # run.json may be older than compute
        result["FINETUNE_IMAGE"] = settings.trainer_image  # for the report: a container does not know its own
    if shape.spreads:
        result |= _spread(job.spec.compute)
    if shape.reaches_out:
        result |= dict(settings.source_env)  # a proxy stands before registries and judges, too
    if shape.delivers:
        result["FINETUNE_PACKAGE"] = _package(job, run).model_dump_json(by_alias=True, exclude_defaults=True)
    if shape.measures or shape.judges:
        result["FINETUNE_EVALUATION"] = canonical(_evaluation(job))  # as with GPUs
    if shape.measures and run.cost and run.cost.training:
        result["FINETUNE_COST"] = canonical(run.cost.training.to_wire())  # for the report
    if shape.measures and (previous := previous_run(job, run, run_claim(job, run))):
        result["FINETUNE_PREVIOUS"] = canonical(previous.to_wire())
    if shape.reports and settings.progress_url:
        meta = job.metadata
        path = f"/progress/v1alpha1/namespaces/{meta.namespace}/jobs/{meta.name}/runs/{run.number}"
        result["KUBEFLOW_TRAINER_SERVER_URL"] = settings.progress_url.rstrip("/") + path
        result["KUBEFLOW_TRAINER_SERVER_CA_CERT"] = f"{pod.CONFIG_PATH}/{CA_CRT}"
        result["KUBEFLOW_TRAINER_SERVER_TOKEN"] = f"{pod.TOKEN_PATH}/token"
    return result


def _evaluation(job: FineTuneJob) -> dict[str, Any]:
    """What Evaluate measures by, and the gate, which the report tells beside the figures."""
    gate = job.spec.evaluation.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={"gate"})
    return evaluation_inputs(job.spec.evaluation) | gate


def _spread(compute: ComputeSpec) -> dict[str, str]:
    """What the trainer's `distribution` reads beside FINETUNE_GPUS; one process needs neither."""
    result = {"FINETUNE_PROCESSES": str(compute.processes)} if compute.processes else {}
    if compute.distribution != DistributionSpec():
        result["FINETUNE_DISTRIBUTION"] = canonical(compute.distribution.to_wire())
    return result


def _secrets(job: FineTuneJob, run: RunStatus, stage: Stage) -> Iterator[dict[str, Any]]:
    """envFrom of the stages that see Secrets. Two registries may want two passwords, so those of the exports have
    a prefix each."""
    if SHAPES[stage].fetches:
        refs = [job.spec.base_model.secret_ref, job.spec.dataset.secret_ref]
        for name in dict.fromkeys(ref.name for ref in refs if ref):
            yield {"secretRef": {"name": name, "optional": False}}
    judge = job.spec.evaluation.judge
    if SHAPES[stage].judges and judge and judge.secret_ref:
        yield {"secretRef": {"name": judge.secret_ref.name, "optional": False}}
    if SHAPES[stage].delivers:
        inputs = _package(job, run)
        for tracker, secret in inputs.tracking.secrets.items():
            yield {"prefix": tracker_prefix(tracker), "secretRef": {"name": secret.name, "optional": False}}
        for export in inputs.exports:
            if export.secret_ref:
                chosen = {"name": export.secret_ref.name, "optional": False}
                yield {"prefix": secret_prefix(export.name), "secretRef": chosen}


Volumes = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def _extras(job: FineTuneJob, run: RunStatus, stage: Stage, settings: Settings) -> Volumes:
    """Volumes and mounts beside configuration, artifacts and /tmp."""
    if SHAPES[stage].fetches:
        return _source_volumes(job, run)
    if SHAPES[stage].reaches_out:
        return [], []
    volumes: list[dict[str, Any]] = [pod.SHM_VOLUME]
    mounts = [pod.mount("shm", "/dev/shm")]
    if SHAPES[stage].reports and settings.progress_url:
        volumes.append(_token_volume(settings))
        mounts.append(pod.mount("progress-token", pod.TOKEN_PATH, read_only=True))
    previous = previous_run(job, run, run_claim(job, run)) if SHAPES[stage].measures else None
    if previous and previous.claim and previous.mounted:
        volumes.append(pod.claim_volume("previous", previous.claim))
        mounts.append(pod.mount("previous", f"{pod.SOURCES_PATH}/pvc/{previous.claim}", read_only=True))
    return volumes, mounts


def _token_volume(settings: Settings) -> dict[str, Any]:
    token = {"audience": settings.progress_audience, "expirationSeconds": pod.TOKEN_SECONDS, "path": "token"}
    return {"name": "progress-token", "projected": {"sources": [{"serviceAccountToken": token}]}}


def _source_volumes(job: FineTuneJob, run: RunStatus) -> Volumes:
    """What Prepare reads, each claim and ConfigMap once, read-only."""
    return _mounted(job, _claims(job, run), run_claim(job, run))


def dataset_volumes(job: FineTuneJob) -> Volumes:
    """The part of it that is data, for who mounts nothing else."""
    return _mounted(job, _data_claims(job))


def _mounted(job: FineTuneJob, claims: Iterable[str], artifacts: str | None = None) -> Volumes:
    """`artifacts`: the claim that is mounted already."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for index, claim in enumerate(dict.fromkeys(claims)):
        name = "artifacts" if claim == artifacts else f"source-{index}"
        if name != "artifacts":
            volumes.append(pod.claim_volume(name, claim))
        mounts.append(pod.mount(name, f"{pod.SOURCES_PATH}/pvc/{claim}", read_only=True))
    for index, config in enumerate(dict.fromkeys(_config_maps(job))):
        volumes.append({"name": f"data-{index}", "configMap": {"name": config}})
        mounts.append(pod.mount(f"data-{index}", f"{pod.SOURCES_PATH}/configmap/{config}", read_only=True))
    return volumes, mounts


def _claims(job: FineTuneJob, run: RunStatus) -> Iterator[str]:
    source = job.spec.base_model.source
    if source and source.startswith("pvc://"):
        yield names.claim_of(source)
    yield from _data_claims(job)
    if run.continued_from is not None:
        model = run.continued_from.model
        yield from (names.claim_of(uri) for uri in (model.uri, model.base_uri) if uri)


def _data_claims(job: FineTuneJob) -> Iterator[str]:
    sources = (file.source for _, file in job.spec.dataset.files)
    yield from (names.claim_of(source) for source in sources if source and source.startswith("pvc://"))


def _config_maps(job: FineTuneJob) -> Iterator[str]:
    for _, file in job.spec.dataset.files:
        if file.config_map_ref:
            yield file.config_map_ref.name
