"""A pod's processes: how they are started, asked to stop, and how their end becomes the pod's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.prepared_runs import Laptop

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.spec import ConfigMapRef, DataFile
from finetune_trainer.context import StageContext
from finetune_trainer.distribution import halving, launcher
from finetune_trainer.distribution.environment import Gang
from finetune_trainer.distribution.halving import Halved
from finetune_trainer.errors import (
    GpuOutOfMemoryError,
    InterruptedStageError,
    LossNotFiniteError,
    TrainerError,
)

# What every pretended process does: it leaves word, and ends as its part of the test says.
BEGIN = """\
import json, os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
words = pathlib.Path(os.environ["FINETUNE_GANG"]) / f"rank-{rank}.json"
def say(**more): words.write_text(json.dumps({"stage": "Train", "ok": True, **more}))
def fail(code, reason):
    say(ok=False, failure={"reason": reason, "message": f"of process {rank}", "advice": "wait"})
    sys.exit(code)
def seen(name): (here / name).touch()
def wait_for(name):
    while not (here / name).exists(): time.sleep(0.01)
here = pathlib.Path(sys.argv[1])
"""


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    laptop = Laptop(tmp_path / "laptop", tmp_path)
    return laptop.context(DataFile(config_map_ref=ConfigMapRef(name="travel", key="train.jsonl")))


@pytest.fixture
def run(tmp_path: Path, context: StageContext) -> Callable[..., object]:
    def start(script: str, gang: Gang | None = None) -> object:
        return launcher.launch(context, gang or Gang(2), [sys.executable, "-c", BEGIN + script, str(tmp_path)])

    return start


def test_the_summary_is_that_of_the_first(run: Callable[..., object], tmp_path: Path) -> None:
    script = """
seen(json.dumps({name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}))
say(steps=10 + rank)
"""
    assert run(script).steps == 10  # type: ignore[attr-defined]
    places = sorted((json.loads(path.name) for path in tmp_path.glob("{*")), key=lambda each: each["RANK"])
    assert places == [
        {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} for rank in (0, 1)
    ]


def test_processes_of_the_second_node(run: Callable[..., object], tmp_path: Path) -> None:
    gang = Gang(2, nodes=2, node=1, address="pod-0.travel", port=29500)
    script = "seen(f\"{rank} {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}\"); say(steps=rank)"
    assert run(script, gang).steps == 2  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.glob("? pod-0*")) == ["2 pod-0.travel:29500", "3 pod-0.travel:29500"]


def test_one_fails_and_the_others_are_ended(run: Callable[..., object], tmp_path: Path) -> None:
    script = """
if rank == 1: fail(12, "LossNotFinite")
signal.signal(signal.SIGTERM, lambda *_: (seen("ended"), sys.exit(75)))
seen("ready")
time.sleep(60)
"""
    with pytest.raises(LossNotFiniteError) as caught:
        run(script)
    assert (caught.value.message, caught.value.reason) == ("of process 1", FailureReason.LOSS_NOT_FINITE)


def test_one_that_does_not_listen_is_killed(
    run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.1)
    script = """
if rank == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN); seen("deaf"); time.sleep(60)
wait_for("deaf")
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(TrainerError) as caught:
        run(script)
    assert caught.value.exit_code == 1
    assert "was killed by signal 9" in caught.value.message


@pytest.mark.parametrize("free", [0, 2**30])
@pytest.mark.parametrize("end", ['fail(1, "SystemFault")', "os.kill(os.getpid(), signal.SIGKILL)"])
def test_who_lost_a_peer_to_a_full_volume_waits_for_room_as_the_peer_does(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch, free: int, end: str
) -> None:
    """The peer's own process may be in another pod, whose end tells nothing here."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(TrainerError) as caught:
        run(end, Gang(1, nodes=2, node=1, address="pod-0.travel", port=29500))
    assert (caught.value.exit_code, caught.value.reason) == (
        (1, FailureReason.SYSTEM_FAULT) if free else (ExitCode.STORAGE_FULL, FailureReason.STORAGE_FULL)
    )


def test_what_a_process_knows_of_itself_is_not_laid_to_a_full_volume(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(LossNotFiniteError):
        run('fail(12, "LossNotFinite")')


class Ended:
    """A process that has ended with this code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code


@pytest.mark.parametrize(
    ("codes", "cause"), [((1, 10), 1), ((-9, 1, 11), 2), ((75, 75), 0), ((0, 1), 1), ((0, 0), None)]
)
def test_who_knows_why_is_believed(codes: tuple[int, ...], cause: int | None) -> None:
    """Of several that are found ended at once, one that only lost its peer is not the cause."""
    assert launcher.first_failure([Ended(code) for code in codes]) == cause  # type: ignore[misc]


def test_sigterm_reaches_all(run: Callable[..., object], tmp_path: Path) -> None:
    script = """
def stop(*_): fail(75, "Interrupted")
signal.signal(signal.SIGTERM, stop)
seen(f"ready-{rank}")
time.sleep(60)
"""

    def when_ready() -> None:
        while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_ready, daemon=True).start()
    with pytest.raises(InterruptedStageError) as caught:
        run(script)
    assert caught.value.exit_code == ExitCode.INTERRUPTED


HALVES = """
seen(f"start-{rank}-{time.time_ns()}")
done = pathlib.Path(sys.argv[2]) / "halved.json"
if rank == 1 and not done.exists():
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps({"micro_batch_size": 2, "note": "with 2"}))
    fail(11, "CudaOutOfMemory")
say(steps=5)
"""


def test_out_of_memory_starts_all_once_more(context: StageContext, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN + HALVES, str(tmp_path), str(context.run_dir)]
    assert launcher.launch(context, Gang(2), command).steps == 5
    assert len(list(tmp_path.glob("start-1-*"))) == 2
    assert halving.halved(context.run_dir) == Halved(micro_batch_size=2, note="with 2")


def test_out_of_memory_again_is_the_end(run: Callable[..., object], context: StageContext, tmp_path: Path) -> None:
    halving.halve(context.run_dir, Halved(micro_batch_size=2, note="with 2"))
    with pytest.raises(GpuOutOfMemoryError):
        run('seen(f"start-{rank}"); fail(11, "CudaOutOfMemory") if rank else time.sleep(60)')


def test_on_several_nodes_all_pods_start_again(context: StageContext, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN + HALVES, str(tmp_path), str(context.run_dir)]
    with pytest.raises(InterruptedStageError, match="with 2"):
        launcher.launch(context, Gang(2, nodes=2, node=0, address="pod-0", port=1), command)


def test_no_process_outlives_a_killed_launcher(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child of its parent's end")
    child = "from finetune_trainer.distribution.environment import end_with_launcher as e; e(); import time, os, sys\n"
    child += "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    pid = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", parent, child, str(pid)])
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    while Path(f"/proc/{pid.read_text()}").exists() and not _is_zombie(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_a_code_that_says_nothing_keeps_the_words_of_the_process(run: Callable[..., object]) -> None:
    """A lost peer ends the others with 1, as any fault does."""
    with pytest.raises(TrainerError, match="of process 1") as caught:
        run("fail(1, 'SystemFault') if rank else say()")
    assert type(caught.value) is TrainerError
    assert caught.value.exit_code == 1
