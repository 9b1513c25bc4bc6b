"""Jobs as a table for people, and as YAML or JSON as kubectl prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from finetune_api.conditions import ConditionType
from finetune_api.job import FineTuneJob
from finetune_operator.cli import report, words
from finetune_operator.cli.output import Output
from finetune_operator.cli.state import State, state_of

HEAD = ("NAMESPACE", "NAME", "STATE", "STAGE", "TASK", "MODEL", "RUN", "GATE", "AGE", "DETAILS")
STATE = 2  # the column that has a colour


def write(value: dict[str, Any], output: Output) -> None:
    """To standard output, for machines."""
    if output is Output.JSON:
        json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        yaml.safe_dump(value, sys.stdout, sort_keys=False, allow_unicode=True, width=120)


def listing(jobs: Sequence[FineTuneJob]) -> dict[str, Any]:
    """As `kubectl get -o yaml` has several objects."""
    return {"apiVersion": "v1", "kind": "List", "items": [job.to_wire() for job in jobs]}


def show_table(console: Console, jobs: Sequence[tuple[FineTuneJob, State]], *, details: bool = True) -> None:
    """A line a job, as wide as it is: a cut name helps nobody."""
    rows = [HEAD, *(_row(job, state) for job, state in jobs)]
    first = all(job.metadata.namespace == "default" for job, _ in jobs)  # nobody needs that column
    last = len(HEAD) if details else -1
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, style in zip(rows, ["bold", *(state.style for _, state in jobs)], strict=True):
        cells = [Text(cell.ljust(width)) for cell, width in zip(row, widths, strict=True)]
        cells[STATE].stylize(style)
        line = Text("   ").join(cells[first:last])
        line.rstrip()
        console.print(line, highlight=False, soft_wrap=True)


def _row(job: FineTuneJob, state: State) -> tuple[str, ...]:
    status, run, meta = job.status, job.status.run, job.metadata
    return (
        meta.namespace,
        meta.name,
        state.word,
        status.stage.value if status.stage and state.word != "finished" else "",
        job.spec.task.value,
        status.model_name or "",
        str(run.number) if run else "",
        run.gate.verdict.value if run and run.gate else "",
        words.age(meta.creation_timestamp),
        state.why,
    )


def show_details(console: Console, job: FineTuneJob, *, driven: bool) -> None:
    """What one wants to know of one job."""
    state = state_of(job, driven=driven)
    show_table(console, [(job, state)], details=False)
    # What the conditions say is written for a control plane that never pauses; here a command may have ended.
    text = state.why if state.word == "stopped" else words.message(job) or state.why
    report.say(console, f"\n[{state.style}]{state.word}[/]: {escape(text)}")
    run, endpoint = job.status.run, job.status.endpoint
    if run and run.progress and words.condition(job, ConditionType.TRAINED) != "True":
        console.print(f"Training: {words.training(run)}", highlight=False)
    if run and run.cost:
        console.print(f"Used: {words.cost(run.cost)}", highlight=False)
    for record in job.status.runs:
        if record.files:
            console.print(f"Run {record.number}: {words.files(record.files)}", highlight=False, soft_wrap=True)
    if run and run.evaluation:
        report.show_scores(console, run.evaluation)
    if endpoint:
        console.print(f"It answers at {endpoint.url} as {endpoint.model}", highlight=False, soft_wrap=True)
