"""The run's ConfigMap: the one thing that a pod reads of the control plane."""

from __future__ import annotations

from pydantic import ValidationError

from finetune_api.distribution import processes_of
from finetune_api.fields import quantity
from finetune_api.job import SNAPSHOT_INPUTS, FineTuneJob, content_hash
from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.status import RunStatus
from finetune_operator import names
from finetune_operator.builders.metadata import metadata
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

RUN_JSON = "run.json"
CA_CRT = "ca.crt"


def run_config(job: FineTuneJob, run: RunStatus, settings: Settings) -> RunConfig:
    """The snapshot of the spec that all stages of the run work from."""
    spec, meta = job.spec, job.metadata
    limits = spec.compute.resources.limits
    return RunConfig(
        namespace=meta.namespace,
        job=meta.name,
        uid=meta.uid,
        run=run.number,
        hash=run.hash,
        trigger=run.trigger,
        occasion=run.occasion,
        continued_from=run.continued_from,
        base_name=names.base_name(spec, run.continued_from),
        tuned_name=names.tuned_name(meta.name, spec, run.continued_from),
        evaluation=spec.evaluation,
        gpus=spec.compute.gpus,
        processes=processes_of(spec.compute),
        distribution=spec.compute.distribution,
        gpu_memory_bytes=int(quantity(spec.compute.gpu_memory)) if spec.compute.gpu_memory else None,
        memory_limit_bytes=int(quantity(limits.memory)) if limits and limits.memory else None,
        paths=RunPaths(
            run=names.run_folder(meta.namespace, meta.name, run.number, run.hash),
            models=names.models_folder(meta.namespace),
        ),
        policy=settings.source_policy,
        **{name: getattr(spec, name) for name in SNAPSHOT_INPUTS},
    )


def run_config_map(job: FineTuneJob, run: RunStatus, settings: Settings) -> Manifest:
    """Immutable: a run is never edited, and the kubelet need not watch it."""
    config = run_config(job, run, settings)
    data = {RUN_JSON: config.model_dump_json(by_alias=True, exclude_none=True, indent=2)}
    if settings.progress_ca:
        data[CA_CRT] = settings.progress_ca
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(
            job,
            names.run_name(job.metadata.name, run.number),
            names.labels(job.metadata.name, run.number),
            {
                names.ANNOTATION_RUN_HASH: run.hash,
                names.ANNOTATION_CONTENT_HASH: content_hash(job.spec),
                names.ANNOTATION_TRIGGER: run.trigger.value,
                **({names.ANNOTATION_OCCASION: run.occasion} if run.occasion else {}),
            },
        ),
        "immutable": True,
        "data": data,
    }


class UnreadableError(Exception):
    """There is a snapshot, but this version cannot make sense of it. The text says where and why."""


def read_run_config(config_map: Manifest | None) -> RunConfig | None:
    """The snapshot in a run's ConfigMap, of whichever version; None when there is none. Raises UnreadableError."""
    if config_map is None:
        return None
    text = (config_map.get("data") or {}).get(RUN_JSON)
    if not text:
        raise UnreadableError(f"it has no {RUN_JSON}")
    try:
        return RunConfig.from_record(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnreadableError(f"{RUN_JSON}{place and f', {place}'}: {first['msg']}") from error


def parse_run_config(config_map: Manifest | None) -> RunConfig | None:
    """The snapshot, where it does not matter why there is none."""
    try:
        return read_run_config(config_map)
    except UnreadableError:
        return None
