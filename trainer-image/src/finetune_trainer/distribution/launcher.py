"""Starts a pod's processes, waits for them, and ends as they ended.

torchrun does the same and is not used: a worker that is asked to stop has 30 seconds there before it is killed (or as
many, when one sets it, as those have that hang because another one died), and the exit codes by which our retries are
judged are lost. No process is started again here but after memory did not suffice; that is for who runs the gang.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune_api.conditions import ExitCode
from finetune_api.interruptions import StopCosts
from finetune_api.reports import ProgressFile, StageFailure, Summary
from finetune_trainer.context import StageContext
from finetune_trainer.distribution import halving
from finetune_trainer.distribution.environment import GANG, PLACE, Gang
from finetune_trainer.errors import InterruptedStageError, StorageFullError, TrainerError
from finetune_trainer.explanation import FULL_ADVICE
from finetune_trainer.training import checkpoints
from finetune_trainer.training.stopping import StopRequest

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
# For those that are left when one has failed: a collective with a dead peer fails at once or never.
GRACE_SECONDS = 10.0


def launch(context: StageContext, gang: Gang, command: Sequence[str]) -> Summary:
    """Run `command` once a process; the summary of the pod's first one.

    Raises the error of the process that failed first.
    """
    before = halving.halved(context.run_dir)
    for attempt in itertools.count(1):
        with tempfile.TemporaryDirectory(prefix="finetune-gang-") as folder:
            log.info("starting %d processes on this node, %d in all", gang.local, gang.size)
            code, last_words = _run(gang, command, Path(folder), gpu=context.gpus > 0)
        if code == ExitCode.DONE and last_words is not None:
            return last_words
        now = halving.halved(context.run_dir)
        if code != ExitCode.GPU_OUT_OF_MEMORY or attempt > 1 or now is None or now == before:
            error = _failed(code, last_words)
            raise _full(error, context.artifacts) if _may_be_a_peer(code) else error
        if gang.nodes > 1:
            raise InterruptedStageError(now.note, advice="nothing to do: all pods of the training start again")
        log.warning(now.note)
    raise AssertionError


def _run(gang: Gang, command: Sequence[str], folder: Path, *, gpu: bool) -> tuple[int, Summary | None]:
    """One attempt of all processes: exit code and last words of the first process, or of the one that failed first."""
    processes: list[subprocess.Popen[bytes]] = []
    port = gang.port or free_port()

    def forward() -> None:
        for process in processes:
            _signal(process, signal.SIGTERM)

    with StopRequest(forward) as stop:
        try:
            for local in range(gang.local):
                environment = {**os.environ, **_environment(gang, local, port, folder, gpu=gpu)}
                processes.append(subprocess.Popen(command, env=environment))
            if stop.requested:
                forward()
            failed = first_failure(processes)
        finally:
            _end(processes)
    local = 0 if failed is None else failed
    code = processes[local].returncode
    return code, _last_words(folder, gang.node * gang.local + local)


def first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The number of the first process that failed, as soon as one has; None when all are done."""
    while True:
        codes = [process.poll() for process in processes]
        # Of several at once one that knows why.
        failed = [(_may_be_a_peer(code), number) for number, code in enumerate(codes) if code]
        if failed:
            return min(failed)[1]
        if all(code == 0 for code in codes):
            return None
        time.sleep(POLL_SECONDS)


def _may_be_a_peer(code: int) -> bool:
    """Whether the process may have ended for no other reason than that it lost a peer."""
    return code == TrainerError.exit_code or code < 0


def _full(error: TrainerError, volume: Path) -> TrainerError:
    """The error; on a volume without room it is taken for that: a peer could not write its checkpoint, perhaps in
    another pod, and to wait for room is no failure of this one either."""
    with suppress(OSError):  # a volume that is gone tells nothing
        if checkpoints.has_no_room(volume):
            return StorageFullError(f"{volume} has no room, and a process ended: {error.message}", advice=FULL_ADVICE)
    return error


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to those that still run, and SIGKILL after a while. Does nothing after all have ended."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _environment(gang: Gang, local: int, port: int, folder: Path, *, gpu: bool) -> dict[str, str]:
    place = (gang.node * gang.local + local, gang.size, local, gang.local)
    return {
        **dict(zip(PLACE, map(str, place), strict=True)),
        "MASTER_ADDR": gang.address,
        "MASTER_PORT": str(port),
        GANG: str(folder),
        # DeepSpeed and Accelerate take whatever GPU they see.
        **({} if gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}),
    }


def words_of(folder: Path, rank: int) -> Path:
    """Where a process leaves its summary."""
    return folder / f"rank-{rank}.json"


def _last_words(folder: Path, rank: int) -> Summary | None:
    try:
        return Summary.model_validate_json(words_of(folder, rank).read_bytes())
    except (OSError, ValueError):
        return None


def _failed(code: int, last_words: Summary | None) -> TrainerError:
    failure: StageFailure | None = last_words.failure if last_words else None
    if failure is None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code} and no word"
        return TrainerError(
            f"a training process {how}",
            advice="the training goes on from its newest checkpoint; when it happens again, look at the pod's memory",
        )
    kinds = TrainerError.__subclasses__() if code != TrainerError.exit_code else []  # 1 says nothing of its kind
    kind = next((kind for kind in kinds if kind.exit_code == code), TrainerError)
    error = kind(failure.message, advice=failure.advice, reason=failure.reason)
    if isinstance(error, InterruptedStageError) and last_words and last_words.checkpoint:
        costs = last_words.stop_costs or StopCosts()
        error.progress = ProgressFile(checkpoint_step=last_words.checkpoint.step, stop_costs=costs)
    return error


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_command(arguments: Sequence[str]) -> list[str]:
    """This program again, by this interpreter."""
    return [sys.executable, "-m", "finetune_trainer", *arguments]
