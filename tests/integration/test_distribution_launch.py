"""A training by several processes, started by the stage's own command: stopped, killed, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.gangs import REPOSITORY, Cell, quiet, train_cells
from tests.trained_runs import chats, make_run

from finetune_api.conditions import ExitCode, FailureReason, Stage
from finetune_api.reports import ProgressFile, Summary
from finetune_trainer.context import StageContext
from finetune_trainer.training import checkpoints

PATIENCE = 300.0  # seconds; only a bound
STEPS = 28
ZERO3 = {"strategy": "ZeRO3", "offload": "None"}  # each process has files of its own in a checkpoint
SAME_WEIGHT = 1e-6  # the sums of a resumed training are those of an uninterrupted one


def run_of(root: Path) -> StageContext:
    return make_run(
        root,
        train=chats(16),
        resolved={"epochs": 7, "total_steps": STEPS, "evaluation_steps": 14, "checkpoint_steps": 3},
    )


def started(context: StageContext, words: Path) -> subprocess.Popen[bytes]:
    """`finetune-trainer train` by two processes, as a pod would run it."""
    config = context.artifacts / "run.json"
    config.write_text(context.config.model_dump_json(by_alias=True, exclude_none=True))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--config", str(config)]
    command += [
        "--artifacts",
        str(context.artifacts),
        "--sources",
        str(context.sources),
        "--termination-log",
        str(words),
    ]
    environment = quiet(FINETUNE_GPUS="0", FINETUNE_PROCESSES="2", FINETUNE_DISTRIBUTION=json.dumps(ZERO3))
    with words.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)


def step_of(context: StageContext) -> ProgressFile:
    try:
        return ProgressFile.model_validate_json(context.progress_path.read_bytes())
    except (OSError, ValueError):
        return ProgressFile()


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], words: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None, words.with_suffix(".log").read_text()[-4000:]
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.02)


def children(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Processes of the training by rank."""
    found = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment: Mapping[str, str] = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
        )
        found[int(environment["RANK"])] = int(pid)
    return found


def summary(words: Path) -> Summary:
    return Summary.model_validate_json(words.read_text())


@pytest.mark.soak  # two minutes, most of them for loading the libraries in each process
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_stopped_killed_and_gone_on_with(tmp_path: Path) -> None:
    """A SIGTERM to the launcher, later a SIGKILL to one process; what remains of it ends as if nothing had been."""
    context, undisturbed = run_of(tmp_path / "disturbed"), run_of(tmp_path / "undisturbed")
    words = tmp_path / "stopped"
    process = started(context, words)
    wait_until(lambda: step_of(context).step >= 4, process, words)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == ExitCode.INTERRUPTED, words.with_suffix(".log").read_text()[-4000:]
    failure = summary(words).failure
    assert failure is not None
    assert failure.reason is FailureReason.INTERRUPTED
    assert "checkpoint saved at step" in failure.message
    stopped = checkpoints.newest(context.checkpoints_dir)
    assert stopped is not None
    assert stopped.step >= 4

    words = tmp_path / "killed"
    process = started(context, words)
    wait_until(lambda: step_of(context).attempt_first_step > 0, process, words)
    wait_until(lambda: step_of(context).step >= stopped.step + 4, process, words)
    ranks = children(process)
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(PATIENCE) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    failure = summary(words).failure
    assert failure is not None
    assert failure.reason is FailureReason.SYSTEM_FAULT  # tried again
    assert "was killed by signal 9" in failure.message

    cells = [Cell(each, 2, ZERO3) for each in (context, undisturbed)]
    after, alone = train_cells(cells, tmp_path)
    assert after.ok, after.failure
    assert alone.ok, alone.failure
    assert (after.resumed_from_step or 0) > stopped.step
    assert after.steps == alone.steps == STEPS
    one, other = (load_file(each.model_dir / "adapter_model.safetensors") for each in (context, undisturbed))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=SAME_WEIGHT), name
    assert not context.report_path(Stage.TRAIN).exists()  # the launcher alone writes it


@pytest.mark.soak
def test_checkpoints_of_another_strategy_are_begun_anew(tmp_path: Path) -> None:
    """ZeRO has a file a process: another number of processes, or another stage, cannot go on from them."""
    context = make_run(
        tmp_path / "run",
        train=chats(8),
        resolved={"epochs": 1, "total_steps": 2, "evaluation_steps": 2, "checkpoint_steps": 1},
    )
    (first,) = train_cells([Cell(context, 2, ZERO3)], tmp_path)
    assert first.ok, first.failure
    second, third = train_cells([Cell(context, 1, {}), Cell(context, 2, {"strategy": "DDP"})], tmp_path)
    assert second.ok, second.failure
    assert second.resumed_from_step is None
    assert third.ok, third.failure
    assert third.resumed_from_step == 2  # what one process left, any number takes up
