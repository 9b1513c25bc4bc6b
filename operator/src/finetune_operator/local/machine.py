"""What a laptop changes in a job, and what it must have for it. Every change is said."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_api.distribution import processes_of
from finetune_api.job import FineTuneJob
from finetune_api.optimization import OPTIMIZERS, Attention, Precision
from finetune_api.spec import (
    BudgetSpec,
    ConfigMapRef,
    DistributionSpec,
    Engine,
    FineTuneJobSpec,
    Hyperparameters,
    TriggersSpec,
)
from finetune_operator.local.errors import BadInput, Unsupported
from finetune_operator.local.pods import LOCALHOST
from finetune_operator.local.store import Store
from finetune_operator.names import PORT

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # NVIDIA on Linux, and under Windows' Linux
DRIVER_LIST = Path("/proc/driver/nvidia/gpus")  # a folder a device


def gpu_count() -> int:
    """CUDA devices that are likely there. Asking PyTorch would take seconds."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return 0
    return max(1, len(list(DRIVER_LIST.glob("*"))))  # under Windows' Linux there is no list


def adapted(job: FineTuneJob, *, gpus: int, replicas: int) -> tuple[FineTuneJob, list[str]]:
    """The job as this machine can run it, and what was changed that a user would want to know."""
    spec, notes = job.spec, []
    compute, serving, knobs = spec.compute, spec.serving, spec.hyperparameters
    if compute.gpus > gpus:
        compute = compute.model_copy(update={"gpus": gpus})
        notes.append(
            f"this machine has {gpus} CUDA devices: compute.gpus is {gpus} here"
            if gpus
            else "this machine has no CUDA device: compute.gpus is 0 here, so training runs on the processor"
        )
        if not gpus:
            knobs, more = _on_cpu(knobs)
            notes += more
    if compute.nodes > 1:
        compute = compute.model_copy(update={"nodes": 1})
        notes.append("compute.nodes is 1 here: this is one machine; the batch size, and so the result, stays the same")
    if processes_of(compute) == 1:
        # As one process: what is spread elsewhere would be slower in parts here.
        compute = compute.model_copy(update={"distribution": DistributionSpec()})
    compute = compute.model_copy(update={"extended_resources": {}})
    if compute.queue_name is not None:
        compute = compute.model_copy(update={"queue_name": None, "workload_priority_class_name": None})
        notes.append("compute.queueName is for a cluster: nothing waits here")
    budget, more = _budget(spec.budget, compute.gpus)
    notes += more
    if spec.triggers.schedule is not None:
        notes.append("triggers.schedule is for a cluster: here one run trains, now")
    if spec.triggers.dataset_poll is not None:
        notes.append("triggers.datasetPoll is for a cluster: where the data has changed, write a new spec.rerunToken")
    if serving.engine is not Engine.NATIVE:
        if serving.engine is Engine.VLLM:
            notes.append("serving.engine is Native here: one machine is served by our own server")
        serving = serving.model_copy(update={"engine": Engine.NATIVE})
    # A server runs only while somebody sits before it: `finetune serve` and `finetune chat` raise this to 1.
    serving = serving.model_copy(update={"replicas": min(replicas, 1)})
    update: dict[str, Any] = {"compute": compute, "serving": serving, "hyperparameters": knobs, "budget": budget}
    update["triggers"] = TriggersSpec()
    return job.model_copy(update={"spec": spec.model_copy(update=update)}), notes


def _budget(budget: BudgetSpec | None, gpus: int) -> tuple[BudgetSpec | None, list[str]]:
    """What of the budget can be counted here, and what cannot."""
    if budget is None:
        return None, []
    if not gpus:
        return None, ["budget is not kept here: it counts GPU hours, and no GPU is used"]
    notes = [] if budget.max_cost is None else ["budget.maxCost is not kept here: a machine of your own has no prices"]
    hours = budget.max_gpu_hours
    return (None if hours is None else BudgetSpec(max_gpu_hours=hours)), notes


def _on_cpu(knobs: Hyperparameters) -> tuple[Hyperparameters, list[str]]:
    """What only a GPU has, in the processor's own way, and what was changed."""
    optimizer = OPTIMIZERS.get(knobs.optimizer)
    update: dict[str, Any] = {
        **({"optimizer": optimizer.on_cpu} if optimizer is not None and optimizer.needs_gpu else {}),
        **({"attention": Attention.AUTO} if knobs.attention is Attention.FLASH_ATTENTION_2 else {}),
        **({"precision": Precision.AUTO} if knobs.precision is Precision.BFLOAT16 else {}),
    }
    notes = [f"hyperparameters.{name} is {value} here: what was given is for a GPU" for name, value in update.items()]
    return knobs.model_copy(update=update), notes


def check_sources(spec: FineTuneJobSpec, config_maps: Mapping[str, Mapping[str, Any]], store: Store) -> None:
    """Raise BadInput when a ConfigMap, a key or a claim that the job names is not known on this machine."""
    problems: list[tuple[str, str]] = []
    for field, ref in _config_map_refs(spec):
        problems += _config_map_problem(field, ref, config_maps.get(ref.name))
    for field, source in _sources(spec):
        claim = source.removeprefix("pvc://").split("/", 1)[0]
        if source.startswith("pvc://") and claim != spec.output.claim_name and not (store.claims / claim).exists():
            problems.append(
                (f"{field}: {source}: this machine does not know the claim {claim}", f"add --claim {claim}=FOLDER")
            )
    if problems:
        raise BadInput(
            "\n".join(text for text, _ in problems), "; ".join(dict.fromkeys(advice for _, advice in problems))
        )


def _config_map_problem(field: str, ref: ConfigMapRef, config_map: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if config_map is None:
        return [(f"{field}.configMapRef: ConfigMap {ref.name} is in none of the files", "add its file with -f")]
    known = (*config_map["data"], *config_map.get("binaryData", ()))
    if ref.key in known:
        return []
    keys = ", ".join(known) or "none"
    return [(f"{field}.configMapRef: ConfigMap {ref.name} has no key {ref.key}; it has: {keys}", "correct the key")]


def _config_map_refs(spec: FineTuneJobSpec) -> Iterator[tuple[str, ConfigMapRef]]:
    for field, data in spec.dataset.files:
        if data.config_map_ref is not None:
            yield field, data.config_map_ref


def referenced_config_maps(spec: FineTuneJobSpec) -> set[str]:
    """Names of the ConfigMaps that hold the job's data."""
    return {ref.name for _, ref in _config_map_refs(spec)}


def _sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    if spec.base_model.source is not None:
        yield "spec.baseModel.source", spec.base_model.source
    for field, data in spec.dataset.files:
        if data.source is not None:
            yield f"{field}.source", data.source


def require_trainer() -> None:
    """Raises Unsupported when the stages' code is not installed beside the command."""
    if importlib.util.find_spec("finetune_trainer") is None:
        raise Unsupported("the trainer is not installed here", "pip install finetune-trainer")


def free_port(wanted: int | None, usual: int = PORT) -> int:
    """The wanted port; else the usual one (8000; 0: none is), or any other when that is taken. Raises BadInput when the
    wanted one is taken."""
    for port in [wanted] if wanted else [usual, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOCALHOST, port))
            except OSError as error:
                if wanted:
                    raise BadInput(f"port {wanted}: {error.strerror}", "choose another with --port") from error
                continue
            return int(probe.getsockname()[1])
    raise Unsupported("no port is free on this machine", "end a program that listens")
