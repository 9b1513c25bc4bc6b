"""From a pod's spec to a process: its file system becomes a folder of links, its paths lead into that folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_operator.builders.pod import ARTIFACTS_PATH
from finetune_operator.local.processes import POLITE
from finetune_operator.plan import Manifest

# The pod's own settings for a user without a home folder, and its image; on a laptop the user's own caches are better.
NOT_NEEDED = {"FINETUNE_IMAGE", "HOME", "HF_HOME", "USER", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
# What would make the stage talk to a control plane that is not there.
NEVER = {"KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_CA_CERT", "KUBEFLOW_TRAINER_SERVER_TOKEN"}
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
LOCALHOST = "127.0.0.1"  # a laptop's server is not for its network


@dataclass(frozen=True, slots=True)
class Places:
    """Where volumes lie on this machine."""

    artifacts: Path
    claims: Path
    config_maps: Mapping[str, Mapping[str, str | bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to start, and what must lie in its folder before. Paths in `links` and `files` are absolute.

    `gpus` is how many devices the pod asks for.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    links: Mapping[Path, Path]
    files: Mapping[Path, str | bytes]
    folders: tuple[Path, ...]
    gpus: int = 0


def launch(pod_spec: Manifest, root: Path, places: Places, *, port: int | None = None) -> Launch:
    """How this machine runs the pod. `root` is the folder that stands for the container's `/`."""
    container = pod_spec["containers"][0]
    volumes = {volume["name"]: volume for volume in pod_spec["volumes"]}
    links: dict[Path, Path] = {}
    files: dict[Path, str | bytes] = {}
    folders: list[Path] = []
    for mount in container["volumeMounts"]:
        volume, target = volumes[mount["name"]], inside(root, mount["mountPath"])
        if "persistentVolumeClaim" in volume:
            links[target] = _claim(volume["persistentVolumeClaim"]["claimName"], mount["mountPath"], places)
        elif "configMap" in volume:
            data = places.config_maps.get(volume["configMap"]["name"], {})
            folders.append(target)
            files |= {target / key: text for key, text in data.items()}
        elif "emptyDir" in volume:
            folders.append(target)
        # A projected token is for a control plane that is not there.
    return Launch(
        arguments=(*_command(container), *_arguments(container.get("args") or (), root, port)),
        environment={e["name"]: e["value"] for e in container.get("env") or () if _is_wanted(e["name"])},
        links=links,
        files=files,
        folders=tuple(folders),
        gpus=_gpus(container),
    )


def inside(root: Path, path: str) -> Path:
    """An absolute path of the container in the folder that stands for its root."""
    return root / path.lstrip("/")


def prepare_root(root: Path, plan: Launch) -> None:
    """Make the folders, files and links."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in plan.folders:
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in plan.files.items():
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    for link, target in plan.links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)


def environment(plan: Launch, user: Mapping[str, str]) -> dict[str, str]:
    """The user's environment with the pod's on top. Tokens come from the user's shell: no Secret is read here."""
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    kept = {k: v for k, v in user.items() if k not in NEVER}
    return {**POLITE, **kept, **_visible_devices(plan.gpus, user), **quiet, **plan.environment}


def _visible_devices(gpus: int, user: Mapping[str, str]) -> dict[str, str]:
    """A pod sees only the devices that it was given; with more in sight the trainer would spread over all of them.

    The first ones of those that the user allows. An empty list or -1 hides all, and stays.
    """
    if not gpus:
        return {}
    allowed = user.get(VISIBLE_DEVICES, ",".join(map(str, range(gpus)))).split(",")
    return {VISIBLE_DEVICES: ",".join(allowed[:gpus])}


def _gpus(container: Manifest) -> int:
    """Extended resources have a domain in their name; of these our pods have none but GPUs."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return sum(int(amount) for name, amount in limits.items() if "/" in name)


def _claim(name: str, mount_path: str, places: Places) -> Path:
    if mount_path == ARTIFACTS_PATH:
        return places.artifacts
    return claim_folder(name, places)


def claim_folder(name: str, places: Places) -> Path:
    """A claim that was not given is the output claim: on a cluster both are volumes, here only one is known."""
    folder = places.claims / name
    return folder if folder.exists() else places.artifacts


def _command(container: Manifest) -> tuple[str, ...]:
    command = list(container["command"])
    if command == ["finetune-trainer"]:
        # This interpreter's trainer: one environment, whatever PATH says.
        return (sys.executable, "-m", "finetune_trainer")
    return tuple(command)


def _arguments(arguments: Sequence[str], root: Path, port: int | None) -> list[str]:
    result = [str(inside(root, word)) if word.startswith("/") else word for word in arguments]
    for flag, value in (("--host", LOCALHOST), ("--port", None if port is None else str(port))):
        if flag in result and value is not None:
            result[result.index(flag) + 1] = value
    return result


def _is_wanted(name: str) -> bool:
    return name not in NOT_NEEDED and name not in NEVER
