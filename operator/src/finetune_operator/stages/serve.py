"""The endpoint: from the model that shall answer to the Deployment and the Service that make it answer.

A decision of its own, with its own observed state, apart from any run: a later version may serve many jobs
from one server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from finetune_api.conditions import FailureReason, Stage
from finetune_api.rollout import SmokeTest
from finetune_api.status import EndpointStatus, ModelStatus, RunStatus
from finetune_operator import names
from finetune_operator.builders.run_config_map import UnreadableError, parse_run_config, read_run_config, run_config
from finetune_operator.builders.server import answers_for_base, endpoint_url, server_deployment, server_service
from finetune_operator.diagnose import Finding, deployment_trouble, look_again_after
from finetune_operator.drift import has_drifted, is_autoscaled
from finetune_operator.plan import Manifest, ObjectRef
from finetune_operator.stages.job_stage import FOREIGN_SECONDS, ensure_config_map, soonest
from finetune_operator.stages.rollout import failure_of, seconds_left
from finetune_operator.stages.turn import awaits_turn
from finetune_operator.stages.view import View, is_deleting, reference


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers now, and what has to be written so that the wanted model does."""

    model: ModelStatus | None = None
    endpoint: EndpointStatus | None = None
    available: bool = False
    settled: bool = False
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    finding: Finding | None = None
    failed: bool = False  # the wanted run's servers will not take over; `finding` says why
    requeue_after: float | None = None
    awaits_turn: bool = False  # they shall be replaced, by servers of the same run, after those of other jobs


def serve(view: View, run: RunStatus, wanted: ModelStatus | None) -> Serving:
    """The old model is reported until the new revision is rolled out."""
    in_service = view.job.status.model
    if wanted is None:
        # A server that is there all the same is left alone: the status was lost, and the run will be found again.
        return Serving(settled=True)
    if view.job.spec.serving.replicas == 0:
        return Serving(model=wanted, settled=True, delete=_server(view))
    name = names.serve_name(view.job.metadata.name)
    in_the_way = [kind for kind in ("Deployment", "Service") if f"{kind}/{name}" in view.foreign]
    if in_the_way:
        text = f"The {in_the_way[0]} {name} belongs to somebody else."
        return Serving(
            model=in_service, finding=Finding(FailureReason.NAME_CONFLICT, text), requeue_after=FOREIGN_SECONDS
        )
    known = _known(view, run, wanted)
    if isinstance(known, Finding):
        return _observe(view, wanted, None, (), known)
    deployment = server_deployment(view.job, known, view.settings, _smoke(view, wanted))
    waits = awaits_turn(view, wanted, deployment)
    if waits:
        deployment = view.observed.deployments[name]
    serving = _observe(view, wanted, deployment, _writes(view, run, wanted, deployment), None)
    return replace(serving, awaits_turn=waits)


def _observe(
    view: View, wanted: ModelStatus, manifest: Manifest | None, apply: tuple[Manifest, ...], finding: Finding | None
) -> Serving:
    """What the servers are doing, while `apply` is on its way."""
    deployment = view.observed.deployments.get(names.serve_name(view.job.metadata.name))
    up_to_date = deployment is not None and manifest is not None and _same(deployment, manifest)
    settled = up_to_date and deployment is not None and _rolled_out(deployment, _replicas(view, deployment))
    model = wanted if settled else view.job.status.model
    pods = _pods(view, wanted, manifest)
    if deployment is not None and not settled and finding is None:
        finding = _refusal(view) or deployment_trouble(deployment, pods, view.now)
    elif deployment is None and finding is None:
        finding = _refusal(view)
    failure = failure_of(view, deployment, pods, finding) if deployment and up_to_date and not settled else None
    available = deployment is not None and model is not None and _count(deployment, "availableReplicas") > 0
    return Serving(
        model=model,
        endpoint=_endpoint(view, model, deployment) if model and deployment else _lost(view, model),
        available=available,
        settled=settled,
        apply=apply,
        finding=failure or finding,
        failed=failure is not None,
        requeue_after=None if settled else _look_again(view, pods),
    )


def _known(view: View, run: RunStatus, wanted: ModelStatus) -> ModelStatus | Finding:
    """All that its server has to know of the model that shall be served. What a former version did not note is in the
    run's snapshot, which of the run in hand is the job's. Else why not."""
    if wanted.task and wanted.base_name:
        return wanted
    name, in_hand = names.run_name(view.job.metadata.name, wanted.run), wanted.run == run.number
    try:
        found = read_run_config(view.observed.config_maps.get(name))
    except UnreadableError as error:
        text = f"The ConfigMap {name} of run {wanted.run} cannot be read: {error}."
        advice = (
            "Use the version of the operator that wrote it, or delete it: it is made anew from the job."
            if in_hand
            else "Use the version of the operator that wrote it, or serve another run."
        )
        return Finding(FailureReason.CONFIG_UNREADABLE, text, advice)
    config = found or (run_config(view.job, run, view.settings) if in_hand else None)
    if config is None:
        advice = "Restore it, or go back to the commit of that run, from which it is made anew."
        return Finding(FailureReason.CONFIG_MISSING, f"The ConfigMap {name} of run {wanted.run} is gone.", advice)
    rank = wanted.rank or config.method.resolved_rank
    return wanted.model_copy(update={"task": config.task, "base_name": config.base_name, "rank": rank})


def _smoke(view: View, model: ModelStatus) -> SmokeTest:
    """What new servers are asked. Those of the run in service what it has answered: another test is for the run that
    would take over, and must not keep out a server that only replaces a lost one."""
    endpoint = view.job.status.endpoint
    if endpoint is not None and endpoint.run == model.run:
        return endpoint.smoke_test
    return view.job.spec.serving.smoke_test


def _writes(view: View, run: RunStatus, wanted: ModelStatus, deployment: Manifest) -> tuple[Manifest, ...]:
    result: list[Manifest] = []
    if wanted.run == run.number:
        result += ensure_config_map(view, run)
    name = deployment["metadata"]["name"]
    service = server_service(view.job)
    for existing, desired in (
        (view.observed.deployments.get(name), deployment),
        (view.observed.services.get(name), service),
    ):
        if existing is None or (not is_deleting(existing) and not _same(existing, desired)):
            result.append(desired)
    return tuple(result)


def _server(view: View) -> tuple[ObjectRef, ...]:
    """Deployment and Service, where they exist."""
    name, namespace = names.serve_name(view.job.metadata.name), view.job.metadata.namespace
    existing = [
        (("apps/v1", "Deployment"), view.observed.deployments.get(name)),
        (("v1", "Service"), view.observed.services.get(name)),
    ]
    return tuple(
        reference({"apiVersion": kind[0], "kind": kind[1], **manifest}, namespace)
        for kind, manifest in existing
        if manifest is not None and not is_deleting(manifest)
    )


def _same(existing: Manifest, desired: Manifest) -> bool:
    """The hash tells that something else is wanted now, the fields that somebody changed what we made."""
    key = names.ANNOTATION_SPEC_HASH
    return names.annotation(existing, key) == names.annotation(desired, key) and not has_drifted(existing, desired)


def _replicas(view: View, deployment: Manifest) -> int:
    """The spec's, unless an autoscaler has set another number."""
    if is_autoscaled(deployment):
        return int((deployment.get("spec") or {}).get("replicas") or 0)
    return view.job.spec.serving.replicas


def _rolled_out(deployment: Manifest, replicas: int) -> bool:
    """As `kubectl rollout status` has it: the new revision is there, available, and alone."""
    status: dict[str, Any] = deployment.get("status") or {}
    generation = int(deployment["metadata"].get("generation") or 0)
    updated = _count(deployment, "updatedReplicas")
    return (
        int(status.get("observedGeneration") or 0) >= generation
        and updated >= replicas
        and _count(deployment, "availableReplicas") >= replicas
        and _count(deployment, "unavailableReplicas") == 0
        and int(status.get("replicas") or updated) <= updated
    )


def _count(deployment: Manifest, key: str) -> int:
    return int((deployment.get("status") or {}).get(key) or 0)


def _look_again(view: View, pods: list[Manifest]) -> float | None:
    left = seconds_left(view, pods)
    return soonest(look_again_after(pods, view.now), left + 1 if left is not None and left > 0 else None)


def _pods(view: View, wanted: ModelStatus, manifest: Manifest | None) -> list[Manifest]:
    """The servers of the wanted run, as they are wanted now: not those that they replace."""
    key, template = names.ANNOTATION_TEMPLATE_HASH, manifest["spec"]["template"] if manifest else {}
    return [
        pod
        for pod in view.observed.pods
        if names.label(pod, names.LABEL_STAGE) == Stage.SERVE.value
        and names.run_of(pod) == wanted.run
        and names.annotation(pod, key) in (None, names.annotation(template, key))
        and not is_deleting(pod)
    ]


def _endpoint(view: View, model: ModelStatus, deployment: Manifest) -> EndpointStatus:
    spec = view.job.spec
    return EndpointStatus(
        url=endpoint_url(view.job),
        model=model.name,
        base_model=_base_name(view, model) if answers_for_base(spec, model) else "",
        run=model.run,
        ready_replicas=_count(deployment, "readyReplicas"),
        smoke_test=_smoke(view, model),
    )


def _lost(view: View, model: ModelStatus | None) -> EndpointStatus | None:
    """The endpoint of the run in service while its Deployment is made anew: it knows what its servers have answered."""
    endpoint = view.job.status.endpoint
    if endpoint is None or model is None or endpoint.run != model.run:
        return None
    return endpoint.model_copy(update={"ready_replicas": 0})


def _base_name(view: View, model: ModelStatus) -> str:
    """The base model of the run that answers, which may be another one than the spec's."""
    if model.base_name:
        return model.base_name
    config = parse_run_config(view.observed.config_maps.get(names.run_name(view.job.metadata.name, model.run)))
    return config.base_name if config else names.base_name(view.job.spec)


def _refusal(view: View) -> Finding | None:
    refused = view.observed.apply_failure
    if refused is None or refused.message.startswith("Job "):  # one that looks or removes, which no server needs
        return None
    return Finding(refused.reason, refused.message)
