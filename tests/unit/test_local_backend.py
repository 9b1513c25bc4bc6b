"""Processes in place of pods: results, retries, stopping, and what a killed parent leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.simulator import good_summary, make_job

from finetune_api.conditions import Stage
from finetune_api.job import FineTuneJob, run_hash
from finetune_api.status import FineTuneJobStatus, RunStatus
from finetune_operator.builders.stage_job import stage_job
from finetune_operator.diagnose import job_condition, summary_of
from finetune_operator.diagnose.facts import held_until
from finetune_operator.local import kubelet, pods
from finetune_operator.local.backend import Backend
from finetune_operator.local.store import Store
from finetune_operator.plan import Manifest, ObjectRef, Plan
from finetune_operator.settings import Settings

PATIENCE = 60.0
NAME = "travel-r1-train"


def plan(script: str = "", *, delete: bool = False) -> Plan:
    """A Plan with a Train Job that runs a shell script; "$1" is its termination log."""
    if not script:
        gone = (ObjectRef("batch/v1", "Job", "team-a", NAME),) if delete else ()
        return Plan(FineTuneJobStatus(), delete=gone)
    job = make_job()
    run = RunStatus(number=1, hash=run_hash(job.spec), trigger="Created")
    manifest = stage_job(job, run, Stage.TRAIN, Settings(backoff_limit=1))
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container |= {"command": ["/bin/sh", "-c", script], "args": []}
    return Plan(FineTuneJobStatus(), apply=(manifest,))


def until(backend: Backend, holds: Callable[[Manifest], bool]) -> Manifest:
    """Passes that change nothing of the plan, until the Job is as wanted."""
    deadline = time.monotonic() + PATIENCE
    while True:
        job = backend.observe(None).jobs[NAME]
        if holds(job):
            return job
        assert time.monotonic() < deadline, job
        backend.execute(plan())
        backend.wait(0.05)


def running(backend: Backend) -> Callable[[Manifest], bool]:
    """Whether the script has said that it is ready to be stopped."""
    log = backend.store.logs("team-a", "travel") / "r1-train-attempt1.log"
    return lambda job: log.exists() and "ready" in log.read_text()


@pytest.fixture
def job() -> FineTuneJob:
    return make_job()


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return Backend(Store(tmp_path), "team-a", "travel")


def test_a_summary_arrives_as_termination_message(backend: Backend) -> None:
    backend.execute(plan(f"printf '%s' '{good_summary('Train', 1)}' > \"$1\""))
    until(backend, kubelet.is_finished)
    summary = summary_of(backend.children.pods)
    assert summary is not None
    assert summary.steps == 40
    assert not list((backend.store.home / "pods" / "team-a").iterdir())


def test_a_crash_is_tried_again_and_leaves_the_end_of_its_log(backend: Backend) -> None:
    backend.execute(plan("echo no luck; exit 3"))
    done = until(backend, kubelet.is_finished)
    failed = job_condition(done, "Failed")
    assert failed is not None
    assert failed["reason"] == "BackoffLimitExceeded"
    assert [kubelet.exit_code_of(pod) for pod in backend.children.pods] == [3, 3]
    message = backend.children.pods[0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert message == "no luck\n"
    names = sorted(path.name for path in backend.store.logs("team-a", "travel").iterdir())
    assert names == ["r1-train-attempt1.log", "r1-train-attempt2.log"]


def test_wrong_input_is_not_tried_again(backend: Backend) -> None:
    backend.execute(plan("exit 10"))
    until(backend, kubelet.is_finished)
    assert len(backend.children.pods) == 1


def test_asked_to_stop_it_saves_and_nothing_is_started_again(backend: Backend) -> None:
    backend.execute(plan("trap 'exit 75' TERM; echo ready; while :; do sleep 0.05; done"))
    until(backend, running(backend))
    backend.ask_to_stop()
    until(backend, lambda job: not backend.running())
    assert [kubelet.exit_code_of(pod) for pod in backend.children.pods] == [75]
    assert not kubelet.is_finished(backend.children.jobs[NAME])


def test_what_did_not_listen_yet_when_asked_to_stop_is_not_at_fault(backend: Backend) -> None:
    backend.execute(plan("echo ready; sleep 60"))
    until(backend, running(backend))
    backend.ask_to_stop()
    until(backend, lambda job: not backend.running())
    assert backend.children.jobs[NAME]["status"]["failed"] == 0


def test_a_stage_of_a_killed_parent_is_ended_before_another_one_starts(backend: Backend, job: FineTuneJob) -> None:
    backend.execute(plan("trap 'exit 75' TERM; echo ready; while :; do sleep 0.05; done"))
    until(backend, running(backend))
    (process,) = backend.running().values()
    again = Backend.open(backend.store, job, {})
    assert process.wait(PATIENCE) == 75
    assert [kubelet.exit_code_of(pod) for pod in again.children.pods] == [75]
    again.execute(plan())
    assert len(again.running()) == 1
    again.kill()
    again.close()


def test_a_stage_that_died_with_its_parent_ended_when_it_wrote_last(backend: Backend, job: FineTuneJob) -> None:
    """What it is charged for must not go on until somebody runs the command again."""
    backend.execute(plan("echo ready; while :; do sleep 0.05; done"))
    until(backend, running(backend))
    (process,) = backend.running().values()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    log = backend.store.logs("team-a", "travel") / "r1-train-attempt1.log"
    os.utime(log, (1_767_225_600, 1_767_225_600))
    again = Backend.open(backend.store, job, {})
    (pod,) = again.children.pods
    assert held_until(pod) == "2026-01-01T00:00:00Z"


def test_children_that_cannot_be_read_are_written_anew(backend: Backend, job: FineTuneJob) -> None:
    path = backend.store.children_path(backend.namespace, backend.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"jobs')
    again = Backend.open(backend.store, job, {})
    again.execute(plan("true"))
    again.close()
    assert json.loads(path.read_bytes())["jobs"]


def test_last_words_that_are_no_text_end_no_command(backend: Backend) -> None:
    backend.execute(plan("printf '\\303' > \"$1\"; exit 1"))
    until(backend, kubelet.is_finished)


def test_data_that_is_not_text_reaches_the_stage_as_it_is(tmp_path: Path) -> None:
    launched = pods.Launch((), {}, {}, {tmp_path / "a.gz": b"\x1f\x8b\xff", tmp_path / "b": "text"}, ())
    pods.prepare_root(tmp_path, launched)
    assert (tmp_path / "a.gz").read_bytes() == b"\x1f\x8b\xff"
    assert (tmp_path / "b").read_text() == "text"


def test_a_deleted_job_takes_its_process_along(backend: Backend) -> None:
    backend.execute(plan("echo ready; sleep 60"))
    until(backend, running(backend))
    (process,) = backend.running().values()
    backend.execute(plan(delete=True))
    assert process.poll() is not None
    assert not backend.children.jobs
    assert not backend.children.pods


def test_who_only_serves_starts_no_training(backend: Backend) -> None:
    backend.trains = False
    backend.execute(plan("exit 0"))
    assert not backend.children.jobs
    assert not backend.running()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_killed_command_leaves_no_process(tmp_path: Path) -> None:
    code = """\
import sys, time
from pathlib import Path
from finetune_operator.local import processes
child = processes.spawn(["/bin/sh", "-c", "echo started; sleep 300"], {"PATH": "/usr/bin:/bin"}, Path(sys.argv[1]))
while "started" not in Path(sys.argv[1]).read_text(): time.sleep(0.01)
print(child.pid, flush=True)
time.sleep(300)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + PATIENCE
    while _is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
