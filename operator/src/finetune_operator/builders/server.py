"""The Deployment and the Service of the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.conditions import Stage
from finetune_api.job import FineTuneJob, canonical
from finetune_api.rollout import SMOKE_TOKENS, SmokeTest
from finetune_api.run_config import RunPaths, ServedRun
from finetune_api.spec import Engine, FineTuneJobSpec
from finetune_api.status import ModelStatus
from finetune_api.tasks import TASKS
from finetune_operator import names
from finetune_operator.builders import ask_vllm, pod
from finetune_operator.builders.metadata import digest, metadata, sealed
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

# A pod that was removed from the Service still gets requests until every kube-proxy knows; it waits for them.
PRE_STOP_SECONDS = 5
MIN_READY_SECONDS = 2  # a server that falls over at once never counts as available
STARTUP_PERIOD = 2
ASK_PERIOD, ASK_START_SECONDS = 10, 10  # of a probe that starts Python
ASK_VLLM = Path(ask_vllm.__file__).read_text(encoding="utf-8")
REQUESTS = {"cpu": "250m", "memory": "1Gi"}  # when the user says nothing; see shape.py
ADDRESS = ("--host", "0.0.0.0", "--port", str(names.PORT))

# vllm/config/lora.py, MaxLoRARanks. 1 is left out: it saves nothing, and rank 1 fits into 8.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def serving_gpus(spec: FineTuneJobSpec) -> int:
    """GPUs of one server."""
    return min(spec.compute.gpus, 1) if spec.serving.gpus == "auto" else spec.serving.gpus


def _gpus(spec: FineTuneJobSpec) -> dict[str, int]:
    count = serving_gpus(spec)
    return {spec.compute.gpu_resource: count} if count else {}


def engine(spec: FineTuneJobSpec) -> Engine:
    """What `auto` means: vLLM where there is a GPU and the model is one that it serves."""
    if spec.serving.engine is not Engine.AUTO:
        return spec.serving.engine
    return Engine.VLLM if serving_gpus(spec) and TASKS[spec.task].decoder else Engine.NATIVE


def answers_for_base(spec: FineTuneJobSpec, model: ModelStatus) -> bool:
    """vLLM has one set of weights: beside a whole tuned model it cannot answer for the base. A base that was never
    taught to label, tag or answer says nothing that is worth a name."""
    if not TASKS[spec.task].generates:
        return False
    return engine(spec) is Engine.NATIVE or model.kind == "Adapter"


def vllm_rank(rank: int) -> int:
    """The smallest --max-lora-rank that vLLM accepts for an adapter of this rank."""
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def endpoint_url(job: FineTuneJob) -> str:
    """Base URL for an OpenAI client inside the cluster."""
    return f"http://{names.serve_name(job.metadata.name)}.{job.metadata.namespace}.svc:{names.PORT}/v1"


def served_run(job: FineTuneJob, model: ModelStatus) -> ServedRun:
    """What the server is told. Raises ValidationError where the model does not say its task and its base's name."""
    folder = names.path_of(model.uri).rpartition("/")[0]
    return ServedRun.model_validate(
        {
            "namespace": job.metadata.namespace,
            "job": job.metadata.name,
            "run": model.run,
            "task": model.task,
            "base_name": model.base_name,
            "tuned_name": model.name,
            "paths": RunPaths(run=folder, models=names.models_folder(job.metadata.namespace)),
        }
    )


def server_deployment(job: FineTuneJob, model: ModelStatus, settings: Settings, smoke: SmokeTest) -> Manifest:
    """The servers of one run, of which `model` says all. A new one must be ready, and so have answered `smoke`, before
    an old one goes."""
    labels = names.labels(job.metadata.name, model.run, Stage.SERVE, 1)
    made = _pod(job, model, settings, smoke)
    marks = {names.ANNOTATION_TEMPLATE_HASH: digest(made)}
    spec: dict[str, Any] = {
        "replicas": job.spec.serving.replicas,
        "minReadySeconds": MIN_READY_SECONDS,
        "progressDeadlineSeconds": job.spec.serving.progress_deadline_seconds,
        "revisionHistoryLimit": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": names.serve_selector(job.metadata.name)},
        "template": {"metadata": {"labels": dict(labels), "annotations": marks}, "spec": made},
    }
    meta = metadata(job, names.serve_name(job.metadata.name), labels)
    return sealed({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})


def server_service(job: FineTuneJob) -> Manifest:
    """One address for the servers of every run."""
    name = names.serve_name(job.metadata.name)
    labels = {names.MANAGED_BY: "finetune-operator", **names.serve_selector(job.metadata.name)}
    spec = {
        "type": "ClusterIP",
        "selector": names.serve_selector(job.metadata.name),
        "ports": [{"name": "http", "port": names.PORT, "targetPort": "http", "protocol": "TCP"}],
    }
    return sealed({"apiVersion": "v1", "kind": "Service", "metadata": metadata(job, name, labels), "spec": spec})


def _pod(job: FineTuneJob, model: ModelStatus, settings: Settings, smoke: SmokeTest) -> dict[str, Any]:
    spec, served = job.spec, served_run(job, model)
    vllm = engine(spec) is Engine.VLLM
    container = {
        "name": names.CONTAINER,
        "imagePullPolicy": settings.image_pull_policy,
        **(_vllm(model, served, settings) if vllm else _native(served, settings, smoke)),
        "ports": [{"name": "http", "containerPort": names.PORT, "protocol": "TCP"}],
        "resources": pod.resources(spec.serving.resources, REQUESTS, _gpus(spec)),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        **(_vllm_probes(spec, served, smoke) if vllm else _probes(spec, "/readyz", "/healthz")),
        "volumeMounts": [
            pod.mount("artifacts", pod.ARTIFACTS_PATH, read_only=True),
            pod.mount("tmp", "/tmp"),
            pod.mount("shm", "/dev/shm"),
        ],
    }
    return pod.pod_spec(
        settings,
        container=container,
        volumes=[
            pod.claim_volume("artifacts", names.claim_of(model.uri)),
            pod.tmp_volume(spec.serving.resources),
            pod.SHM_VOLUME,
        ],
        grace_seconds=settings.serve_grace_seconds,
        where=pod.placement(spec.serving, spec.compute.priority_class_name),
        restart_policy="Always",
    )


def _native(served: ServedRun, settings: Settings, smoke: SmokeTest) -> dict[str, Any]:
    told = {"FINETUNE_SERVED": canonical(served.to_wire())}
    asked = {} if smoke == SmokeTest() else {"FINETUNE_SMOKE": canonical(smoke.to_wire())}
    return {
        "image": settings.trainer_image,
        **pod.command(Stage.SERVE, *ADDRESS),
        "env": pod.env({**pod.BASE_ENV, **pod.OFFLINE_ENV, **told, **asked}),
    }


def _vllm(model: ModelStatus, served: ServedRun, settings: Settings) -> dict[str, Any]:
    own = f"{pod.ARTIFACTS_PATH}/{names.path_of(model.uri)}"
    base = f"{pod.ARTIFACTS_PATH}/{names.path_of(model.base_uri or model.uri)}"
    # By itself vLLM computes in float16 what is stored in float32 or float16. An earlier version did not note it.
    dtype = ["--dtype", model.precision] if model.precision else []
    if model.kind == "Adapter":
        lora = ["--enable-lora", "--lora-modules", f"{model.name}={own}"]
        rank = ["--max-lora-rank", str(vllm_rank(model.rank or VLLM_RANKS[-1]))]
        args = [base, "--served-model-name", served.base_name, *lora, *rank, *dtype, *ADDRESS]
    else:
        args = [own, "--served-model-name", model.name, *dtype, *ADDRESS]
    caches = {"VLLM_CACHE_ROOT": "/tmp/vllm", "VLLM_NO_USAGE_STATS": "1"}
    return {
        "image": settings.vllm_image,
        "command": ["vllm", "serve"],
        "args": args,
        "env": pod.env({**pod.BASE_ENV, **pod.OFFLINE_ENV, **caches}),
    }


def _vllm_probes(spec: FineTuneJobSpec, served: ServedRun, smoke: SmokeTest) -> dict[str, Any]:
    """vLLM's own, but for the first: it is ready when it has answered the smoke test."""
    route = TASKS[served.task].route
    wanted = {
        "url": f"http://127.0.0.1:{names.PORT}{route}",
        "chat": route.endswith("/chat/completions"),
        "model": served.tuned_name,
        "prompt": smoke.prompt,
        "contains": smoke.contains,
        "report": f"{pod.ARTIFACTS_PATH}/{served.paths.run}/evaluation/report.json",
        "tokens": SMOKE_TOKENS,
        "timeout": smoke.timeout_seconds,
    }
    probes = _probes(spec, "/health", "/health")
    startup = {
        "exec": {"command": ["python3", "-c", ASK_VLLM, canonical(wanted)]},
        "timeoutSeconds": smoke.timeout_seconds + ASK_START_SECONDS,
        "periodSeconds": ASK_PERIOD,
        "failureThreshold": -(-spec.serving.progress_deadline_seconds // ASK_PERIOD),
    }
    return {**probes, "startupProbe": startup}


def _probes(spec: FineTuneJobSpec, ready: str, alive: str) -> dict[str, Any]:
    def get(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 5}

    return {
        "startupProbe": {
            **get(ready),
            "periodSeconds": STARTUP_PERIOD,
            # Loading tens of gigabytes from network storage takes its time.
            "failureThreshold": -(-spec.serving.progress_deadline_seconds // STARTUP_PERIOD),
        },
        "readinessProbe": {**get(ready), "periodSeconds": 5, "failureThreshold": 2},
        # A busy server may be slow to answer; it is restarted only after a minute of silence.
        "livenessProbe": {**get(alive), "periodSeconds": 10, "failureThreshold": 6},
    }
