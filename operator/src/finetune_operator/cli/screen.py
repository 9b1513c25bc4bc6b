"""A job on its way: one line a stage in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_api.conditions import ConditionType, Stage
from finetune_api.job import FineTuneJob
from finetune_operator.cli import words
from finetune_operator.local.loop import Stop
from finetune_operator.local.store import Store
from finetune_operator.runs import is_done

TAIL_BYTES = 4096
LOG_LINE = re.compile(r" INFO .*?stage=\w+ (?P<text>.+)$")
# Lines of the log that are for machines, or say what the screen says in its own words.
RAW_LINE = re.compile(r"\w+=|done in |starts$|was done before|estimate: |training")
PLAIN_PERCENT = 10  # a plain line each so many percent
ASKED_TO_STOP = "stopping: what was learnt is being saved (Ctrl-C again: stop at once, and lose what is not saved)"


class Screen:
    """`watch` of the loop. A context manager, so that the terminal is left as it was."""

    def __init__(self, console: Console, store: Store, stages: Sequence[Stage]) -> None:
        self._console, self._store, self._stages = console, store, stages
        self._live = Live(console=console, refresh_per_second=8, transient=False) if console.is_terminal else None
        self._spinner = Spinner("dots", style="cyan")
        self._said: set[object] = set()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, job: FineTuneJob, stop: Stop) -> None:
        if self._live:
            self._live.update(self._table(job, stop))
        else:
            self._plain(job, stop)

    def _table(self, job: FineTuneJob, stop: Stop) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=2)
        table.add_column(min_width=9)
        table.add_column(min_width=8, justify="right", no_wrap=True, style="dim")
        table.add_column(min_width=20, overflow="fold")
        for stage in self._stages:
            self._add_row(table, job, stage)
        if stop:
            table.add_row("", "", "", Text(ASKED_TO_STOP, style="yellow"))
        return table

    def _add_row(self, table: Table, job: FineTuneJob, stage: Stage) -> None:
        state, text = self._state(job, stage), self._text(job, stage)
        run = job.status.run
        seconds = words.stage_seconds(run, stage) if run else None
        taken = words.duration(seconds) if seconds is not None and state in ("done", "now") else ""
        if state == "now":
            row: Text | Table = Text(text)
            if stage is Stage.TRAIN and run and run.progress and run.progress.total_steps:
                row = Table.grid(padding=(0, 1))
                row.add_row(
                    ProgressBar(total=100, completed=run.progress.percent, width=24), f"{run.progress.percent} %", text
                )
            table.add_row(self._spinner, Text(stage.value, style="bold"), taken, row)
            return
        mark, style = {"done": ("✓", "green"), "failed": ("✗", "red"), "later": ("·", "dim")}[state]
        said = Text(text, style=style * (state == "later"))
        table.add_row(Text(mark, style=style), Text(stage.value, style=style), taken, said)

    def _state(self, job: FineTuneJob, stage: Stage) -> str:
        run = job.status.run
        if run and run.failure and not run.failure.waiting and run.failure.stage is stage:
            return "failed"
        if stage is Stage.SERVE and words.condition(job, ConditionType.SERVING) == "True":
            return "done"
        if run and is_done(run, stage):
            return "done"
        return "now" if job.status.stage is stage else "later"

    def _text(self, job: FineTuneJob, stage: Stage) -> str:
        run, state = job.status.run, self._state(job, stage)
        if run is None or state == "later":
            return words.DOES[stage]
        if state == "failed" and run.failure:
            return run.failure.reason.value
        if state == "done":
            ready = stage is Stage.SERVE and job.status.endpoint
            return (
                f"answers at {job.status.endpoint.url}"
                if ready and job.status.endpoint
                else words.result_of(run, stage)
            )
        waits = f"; it waits: {run.failure.message}" if run.failure else ""
        if stage is Stage.TRAIN:
            return words.training(run) + waits
        return (self._last_word(job, stage) or words.DOES[stage]) + waits

    def _last_word(self, job: FineTuneJob, stage: Stage) -> str:
        """The newest line of the stage's log: what it is doing."""
        run = job.status.run
        path = newest_log(self._store, job, stage) if run else None
        lines = tail(path) if path else []
        found = [match["text"] for line in lines if (match := LOG_LINE.search(line))]
        said = [text for text in found if not RAW_LINE.match(text)]
        return said[-1][:160] if said else ""

    def _plain(self, job: FineTuneJob, stop: Stop) -> None:
        run = job.status.run
        for stage in self._stages:
            state = self._state(job, stage)
            if state == "later" or run is None:
                continue
            if state == "now":
                self._say((run.number, stage, "now"), f"{stage}: {words.DOES[stage]}")
                self._plain_progress(job, stage)
            else:
                ended = "done" if state == "done" else "FAILED"
                seconds = words.stage_seconds(run, stage)
                taken = f" ({words.duration(seconds)})" if seconds is not None and state == "done" else ""
                self._say((run.number, stage, state), f"{stage} {ended}: {self._text(job, stage)}{taken}")
        if stop:
            self._say("stop", ASKED_TO_STOP)

    def _plain_progress(self, job: FineTuneJob, stage: Stage) -> None:
        run = job.status.run
        if stage is Stage.TRAIN and run and run.progress and run.progress.total_steps:
            if run.progress.step:
                step = run.progress.percent // PLAIN_PERCENT
                self._say((run.number, "percent", step), f"      {run.progress.percent} %, {words.training(run)}")
        elif stage is not Stage.TRAIN and (text := self._last_word(job, stage)):
            self._say((stage, text), f"      {text}")

    def _say(self, key: object, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def newest_log(store: Store, job: FineTuneJob, stage: Stage | None = None) -> Path | None:
    """The log that was written last, of this stage or of any."""
    folder = store.logs(job.metadata.namespace, job.metadata.name)
    pattern = f"r*-{stage.value.lower()}-attempt*.log" if stage else "r*-*-attempt*.log"
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, default=None)


def tail(path: Path) -> list[str]:
    """The last lines of a file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()
