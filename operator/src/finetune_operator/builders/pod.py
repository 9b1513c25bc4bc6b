"""The parts that all pods share: hardening (Pod Security `restricted`), volumes, resources, environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.conditions import Stage
from finetune_api.spec import Placement, Resources
from finetune_operator import names
from finetune_operator.settings import Settings

CONFIG_PATH = "/etc/finetune"
ARTIFACTS_PATH = "/artifacts"
SOURCES_PATH = "/sources"
TOKEN_PATH = "/var/run/secrets/finetune"
TOKEN_SECONDS = 3600  # the kubelet renews it at 80 % of its life

BASE_ENV = {
    "HOME": "/tmp",
    "HF_HOME": "/tmp/hf",
    # The pod's user has no entry in /etc/passwd; getpass.getuser() in PyTorch reads this first.
    "USER": "finetune",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
}
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1"}
# Each file is fetched once, to the artifact volume: a cache of its chunks in /tmp would only double it.
DOWNLOAD_ENV = {"HF_XET_CHUNK_CACHE_SIZE_BYTES": "0"}


def env(values: dict[str, str]) -> list[dict[str, str]]:
    """A container's env list."""
    return [{"name": name, "value": value} for name, value in values.items()]


def resources(
    wanted: Resources, default: Mapping[str, str], extended: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """resources of a container. What the user leaves open gets our default request, never above the user's limit."""
    limits: dict[str, str] = wanted.limits.to_wire() if wanted.limits else {}
    requests: dict[str, str] = wanted.requests.to_wire() if wanted.requests else {}
    for name, amount in default.items():
        if name not in limits:  # Kubernetes itself makes a limit the request where there is none
            requests.setdefault(name, amount)
    # An extended resource is asked for by its limit.
    limits |= {name: str(amount) for name, amount in (extended or {}).items()}
    result: dict[str, Any] = {}
    if requests:
        result["requests"] = requests
    if limits:
        result["limits"] = limits
    return result


def container_security() -> dict[str, Any]:
    """securityContext of every container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_security(settings: Settings) -> dict[str, Any]:
    """securityContext of every pod."""
    user = settings.run_as_user
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Without this the kubelet changes the owner of every file of a large volume at each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def placement(wanted: Placement, priority_class_name: str | None) -> dict[str, Any]:
    """Where a pod may run."""
    result: dict[str, Any] = {}
    if wanted.node_selector:
        result["nodeSelector"] = dict(wanted.node_selector)
    if wanted.tolerations:
        result["tolerations"] = [toleration.to_wire() for toleration in wanted.tolerations]
    if priority_class_name:
        result["priorityClassName"] = priority_class_name
    return result


def pod_spec(
    settings: Settings,
    *,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
    grace_seconds: int,
    where: dict[str, Any],
    restart_policy: str,
) -> dict[str, Any]:
    """spec of a pod with one container."""
    result: dict[str, Any] = {
        "restartPolicy": restart_policy,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": pod_security(settings),
        "containers": [{**container, "securityContext": container_security()}],
        "volumes": volumes,
        **where,
    }
    if settings.image_pull_secrets:
        result["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return result


def config_volume(job: str, run: int) -> dict[str, Any]:
    """The run's ConfigMap."""
    return {"name": "config", "configMap": {"name": names.run_name(job, run)}}


def claim_volume(name: str, claim: str) -> dict[str, Any]:
    """A claim. Never `readOnly` here, only on mounts: a volume that a server attached read-only could not be written
    by the training of the next run on the same node."""
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def mount(name: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    """A volumeMount."""
    result: dict[str, Any] = {"name": name, "mountPath": path}
    if read_only:
        result["readOnly"] = True
    return result


# No stage keeps data in /tmp: downloads, datasets and checkpoints go to the artifact volume. What remains are the
# caches of compilers, of at most a few GiB. A pod that writes more is evicted, instead of filling its node's disk.
# It is a bound, not a reservation: nothing is requested, because some nodes (kind without root) offer no
# ephemeral-storage at all. Where a quota asks for an amount, compute.resources or a LimitRange's default gives it.
TMP_LIMIT = "8Gi"
# PyTorch's data loaders and NCCL share memory here; the runtime's own /dev/shm has 64 MiB. What is written counts
# towards the container's memory, so Kubernetes cuts the size to the memory limit where that is smaller.
SHM_VOLUME: dict[str, Any] = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}


def tmp_volume(wanted: Resources) -> dict[str, Any]:
    """/tmp, as large as the user's own limit of scratch space where there is one."""
    limit = wanted.limits.ephemeral_storage if wanted.limits else None
    return {"name": "tmp", "emptyDir": {"sizeLimit": limit or TMP_LIMIT}}


def command(stage: Stage, *more: str) -> dict[str, list[str]]:
    """command and args of the trainer image."""
    flags = ["--config", f"{CONFIG_PATH}/run.json", "--artifacts", ARTIFACTS_PATH, "--sources", SOURCES_PATH]
    return {"command": ["finetune-trainer"], "args": [stage.value.lower(), *flags, *more]}
