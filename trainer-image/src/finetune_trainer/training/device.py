"""What the process may compute on: device, precision, threads."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from finetune_trainer.errors import TrainerError

# Parameters. With 1 million, on two busy cores, a step took 0.5 s with one thread and 4 to 9 s with two.
SMALL_MODEL = 20_000_000
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "QUOTA PERIOD" in microseconds, or "max PERIOD"


@dataclass(frozen=True, slots=True)
class Device:
    """Where tensors live and how they are multiplied. `note` is for the user: why it is not what was asked for."""

    kind: Literal["cuda", "cpu"]
    precision: Literal["float32", "bfloat16"]
    name: str
    note: str = ""

    @property
    def place(self) -> str:
        """The very device: of several GPUs that of this process."""
        return f"cuda:{torch.cuda.current_device()}" if self.kind == "cuda" else self.kind

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def computing_precision(kind: str, wanted: Literal["float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    """The one rule for training, measuring and serving: what was resolved, on a GPU that has it; else float32.

    The type in which a base model happens to be stored plays no part: a model answers as it was trained.
    """
    return wanted if kind == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def choose_device(gpus: int, precision: Literal["float32", "bfloat16"], local: int = 0) -> Device:
    """The device of a process of a run that was given `gpus` GPUs and resolved to `precision`: the GPU of number
    `local`.

    Raises TrainerError (tried again) in a pod that was given a GPU which the process cannot use: days of
    training on the CPU would be the worse answer. On a laptop the CPU is taken, and a note says so.
    """
    if gpus == 0:
        return Device("cpu", "float32", "cpu")
    if not torch.cuda.is_available():
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            raise TrainerError(
                "the pod was given a GPU, but torch.cuda.is_available() is false",
                advice="compare the node's driver with the CUDA version of the trainer image, "
                "and see that the GPU device plugin runs on the node",
            )
        return Device("cpu", "float32", "cpu", note="no GPU is visible to this process: it computes on the CPU")
    if torch.cuda.device_count() < gpus and "KUBERNETES_SERVICE_HOST" in os.environ:
        raise TrainerError(
            f"the pod was given {gpus} GPUs, and PyTorch sees {torch.cuda.device_count()}",
            advice="compare compute.gpus with what the GPU device plugin hands out, and see the node's driver log",
        )
    if local:  # 0 is the current one from the beginning
        torch.cuda.set_device(local)
    name = torch.cuda.get_device_name()
    note = f"{name} has no bfloat16: it computes in float32, slower"
    found = computing_precision("cuda", precision)
    return Device("cuda", found, name, note=note if found != precision else "")


def limit_threads(parameters: int | None = None, processes: int = 1) -> int:
    """Let PyTorch use as many threads as the container has CPUs, not as the node has; return that number.

    A pod limited to 2 CPUs on a node of 64 would otherwise start 64 threads and be throttled most of the time.
    A model of few `parameters` gets one thread: its matrix products last microseconds, and as soon as anything else
    wants the CPUs the threads wait for each other at each of them. `processes` share the CPUs. OMP_NUM_THREADS, when
    set, is obeyed; with several processes it is set, or Accelerate would choose by the node's cores.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1 if parameters and parameters < SMALL_MODEL else max(1, cpu_limit() // processes))
        if processes > 1:
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    return torch.get_num_threads()


def cpu_limit(quota_file: Path = CPU_QUOTA) -> int:
    """CPUs of this process: its affinity, further limited by the quota of its cgroup. At least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return max(1, allowed)
