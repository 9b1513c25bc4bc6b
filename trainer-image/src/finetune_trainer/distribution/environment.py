"""Who this process is: one process, the launcher of a pod's processes, or one of them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.conditions import FailureReason
from finetune_api.distribution import DistributionSpec
from finetune_trainer.errors import UserInputError

NODES, NODE_RANK, RENDEZVOUS = "FINETUNE_NODES", "FINETUNE_NODE_RANK", "FINETUNE_RENDEZVOUS"
PROCESSES, DISTRIBUTION = "FINETUNE_PROCESSES", "FINETUNE_DISTRIBUTION"
GANG = "FINETUNE_GANG"  # set for a process that a launcher started: the folder for its last words


@dataclass(frozen=True, slots=True)
class Gang:
    """All processes of a training: `local` on each of `nodes` pods, of which this is number `node`."""

    local: int = 1
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0  # 0: any free one, which is right on one node

    @property
    def size(self) -> int:
        return self.local * self.nodes


@dataclass(frozen=True, slots=True)
class Place:
    """One process of a gang. `local` is its number on its node, and that of its GPU."""

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def gang(gpus: int, processes: int, environment: Mapping[str, str] | None = None) -> Gang:
    """The gang that this pod belongs to. `processes` counts where there are no GPUs. Raises UserInputError
    (SpecInvalid) that names the variable."""
    given = os.environ if environment is None else environment
    local = gpus or _number(given, PROCESSES, processes, least=1)
    nodes = _number(given, NODES, 1, least=1)
    node = _number(given, NODE_RANK, 0, least=0)
    if node >= nodes:
        raise _wrong(f"{NODE_RANK} is {node}", f"count from 0 to {nodes - 1}: {NODES} is {nodes}")
    if nodes == 1:
        return Gang(local)
    host, _, port = given.get(RENDEZVOUS, "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _wrong(f"{RENDEZVOUS} is {given.get(RENDEZVOUS, '')!r}", "set it to HOST:PORT of pod 0")
    return Gang(local, nodes, node, host, int(port))


def place(environment: Mapping[str, str] | None = None) -> Place:
    """This process among those that a launcher started; the only one, when none did."""
    given = os.environ if environment is None else environment
    if GANG not in given:
        return Place()
    rank, size, local, local_size = (int(given[f"{name}"]) for name in PLACE)
    return Place(rank, size, local, local_size)


PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""PyTorch's own names, in the order of `Place`."""


def wanted(snapshot: DistributionSpec, environment: Mapping[str, str] | None = None) -> DistributionSpec:
    """The job's present wish: the run's snapshot may be older, since compute is no part of a run."""
    text = (os.environ if environment is None else environment).get(DISTRIBUTION)
    if text is None:
        return snapshot
    try:
        return DistributionSpec.from_record(text)
    except ValueError as error:
        raise _wrong(f"{DISTRIBUTION} cannot be read: {error}", "write spec.compute.distribution as JSON") from error


def _number(given: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise _wrong(f"{name} is {text!r}", f"set it to a whole number from {least} on, or leave it away")
    return int(text)


def _wrong(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.SPEC_INVALID)


def end_with_launcher() -> None:
    """Ask Linux for a SIGTERM when the launcher is gone, however it ended: what it started saves, and ends, too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
