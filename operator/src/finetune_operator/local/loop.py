"""observe -> decide -> execute, again and again, until the job has come to rest."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from functools import partial
from types import FrameType

from finetune_api.conditions import ConditionType, RunResult
from finetune_api.job import FineTuneJob
from finetune_api.reports import ProgressFile
from finetune_api.retention import FilesState
from finetune_api.run_config import SourcePolicy
from finetune_api.status import Checkpoint, FineTuneJobStatus, Progress
from finetune_operator import names
from finetune_operator.conditions import find, is_true
from finetune_operator.decide import decide
from finetune_operator.local.backend import Backend, server_ended
from finetune_operator.local.pods import LOCALHOST
from finetune_operator.origin import origin
from finetune_operator.plan import Plan, ProgressReport
from finetune_operator.settings import Settings
from finetune_operator.stages.suspension import SUSPENDED

PASS_SECONDS = 0.3  # between two looks at what runs; a process that ends is seen at once
# The owner of the machine is the platform: any https host may be a source, and progress costs nothing to write.
SETTINGS = Settings(
    source_policy=SourcePolicy(https_hosts=["*"], allow_private_addresses=True), progress_interval_seconds=1.0
)


class Ending(Enum):
    """Why the loop came back."""

    READY = auto()
    STALLED = auto()
    INTERRUPTED = auto()
    REACHED = auto()  # what `until` waited for
    HELD = auto()  # spec.suspend, and a stage that would have something to do; or a run that waits for approval


@dataclass(slots=True)
class Stop:
    """How often the user has asked to stop: once is polite, twice is final."""

    times: int = 0

    def __bool__(self) -> bool:
        return self.times > 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM raise the count while this lasts. Off the main thread Python has no signals."""
    stop = Stop()

    def asked(_number: int, _frame: FrameType | None) -> None:
        stop.times += 1

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def at_rest(status: FineTuneJobStatus) -> Ending | None:
    """Ready, Stalled, suspended or unapproved: nothing more happens by itself."""
    if any(
        record.files and FilesState.REMOVING in (record.files.state, record.files.checkpoints) for record in status.runs
    ):
        return None
    if is_true(status.conditions, ConditionType.STALLED):
        return Ending.STALLED
    if is_true(status.conditions, ConditionType.READY):
        return Ending.READY
    ready = find(status.conditions, ConditionType.READY)
    return Ending.HELD if ready and ready.reason in (SUSPENDED, RunResult.AWAITING_APPROVAL) else None


def answering(status: FineTuneJobStatus) -> Ending | None:
    """The promoted model is served, whatever becomes of a newer run."""
    return Ending.READY if is_true(status.conditions, ConditionType.SERVING) else None


def never(status: FineTuneJobStatus) -> Ending | None:
    """Only the user or a server that falls over ends this."""
    return None


@dataclass(slots=True)
class Loop:
    """One job on its way. `save` keeps its status; `watch` is told of every pass; `until` ends the loop early,
    before anything of that pass is executed."""

    backend: Backend
    stop: Stop
    save: Callable[[FineTuneJob], None]
    watch: Callable[[FineTuneJob, Stop], None] = lambda job, stop: None
    until: Callable[[FineTuneJobStatus], bool] | None = None
    rest: Callable[[FineTuneJobStatus], Ending | None] = at_rest
    _acted_on: int = 0

    def run(self, job: FineTuneJob) -> tuple[FineTuneJob, Ending]:
        """The job as it stands at the end, and why it ended."""
        while True:
            job, plan = self._decide(job)
            self.watch(job, self.stop)
            if self.until is not None and self.until(plan.status):
                return job, Ending.REACHED
            self.save(job)
            self._heed()
            self.backend.execute(plan)
            ending = self._ending(job, plan)
            if ending is not None:
                return job, ending
            self.backend.wait(PASS_SECONDS)

    def once(self, job: FineTuneJob) -> FineTuneJob:
        """One pass."""
        job, plan = self._decide(job)
        self.backend.execute(plan)
        self.save(job)
        return job

    def _decide(self, job: FineTuneJob) -> tuple[FineTuneJob, Plan]:
        observed = self.backend.observe(self._progress(job))
        look = partial(self.backend.store.load, job.metadata.namespace)
        observed = replace(observed, origin=origin(job, look), dependents=self._others(job))
        plan = decide(job, observed, datetime.now(UTC), SETTINGS)
        status = localised(plan.status, self.backend.port)
        return job.model_copy(update={"status": status}), plan

    def _others(self, job: FineTuneJob) -> Sequence[FineTuneJob]:
        """The jobs that may go on from a run of this one, where it matters."""
        if job.spec.output.retention is None:
            return ()
        return [other for other in self.backend.store.jobs(job.metadata.namespace) if other.key != job.key]

    def _progress(self, job: FineTuneJob) -> ProgressReport | None:
        run = job.status.run
        if run is None:
            return None
        folder = names.run_folder(job.metadata.namespace, job.metadata.name, run.number, run.hash)
        try:
            path = self.backend.store.artifacts / folder / "progress.json"
            return report(run.number, ProgressFile.model_validate_json(path.read_bytes()))
        except (OSError, ValueError):
            return None

    def _heed(self) -> None:
        """Pass on what the user asked for since the last pass."""
        if self.stop.times > self._acted_on:
            self._acted_on = self.stop.times
            if self.stop.times == 1:
                self.backend.ask_to_stop()
            else:
                self.backend.kill()

    def _ending(self, job: FineTuneJob, plan: Plan) -> Ending | None:
        if self.stop:
            return None if self.backend.running() else Ending.INTERRUPTED
        if server_ended(self.backend.children) is not None:
            return Ending.STALLED
        return self.rest(plan.status)


def report(run: int, file: ProgressFile) -> ProgressReport:
    """progress.json as the progress receiver of a cluster would have it."""
    progress = Progress(
        percent=file.percent,
        step=file.step,
        total_steps=file.total_steps,
        epoch=file.epoch,
        train_loss=file.train_loss,
        eval_loss=file.eval_loss,
        tokens_per_second=file.tokens_per_second,
        remaining_seconds=file.remaining_seconds,
        update_time=file.update_time or None,
    )
    checkpoint = Checkpoint(step=file.checkpoint_step, time=file.update_time or None) if file.checkpoint_step else None
    return ProgressReport(run=run, progress=progress, checkpoint=checkpoint, stop_costs=file.stop_costs)


def localised(status: FineTuneJobStatus, port: int | None) -> FineTuneJobStatus:
    """The endpoint at this machine's address in place of the cluster's."""
    if status.endpoint is None or port is None:
        return status
    endpoint = status.endpoint.model_copy(update={"url": f"http://{LOCALHOST}:{port}/v1"})
    return status.model_copy(update={"endpoint": endpoint})
