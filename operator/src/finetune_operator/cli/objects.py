"""Jobs as kubectl prints them: a table, YAML or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from finetune_api.conditions import ConditionType
from finetune_api.job import FineTuneJob
from finetune_operator.cli import report, words
from finetune_operator.cli.output import Output

HEAD = ("NAMESPACE", "NAME", "TASK", "MODEL", "STAGE", "PROGRESS", "RUN", "GATE", "READY", "AGE")


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


def show_table(console: Console, jobs: Sequence[FineTuneJob]) -> None:
    """The columns of `kubectl get finetunejobs`, as wide as they are: a cut name helps nobody."""
    rows = [HEAD, *map(_row, jobs)]
    if all(job.metadata.namespace == "default" for job in jobs):
        rows = [row[1:] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _row(job: FineTuneJob) -> tuple[str, ...]:
    status, run, meta = job.status, job.status.run, job.metadata
    return (
        meta.namespace,
        meta.name,
        job.spec.task.value,
        status.model_name or "",
        status.stage.value if status.stage else "",
        status.percent or "",
        str(run.number) if run else "",
        run.gate.verdict.value if run and run.gate else "",
        words.condition(job, ConditionType.READY),
        words.age(meta.creation_timestamp),
    )


def show_details(console: Console, job: FineTuneJob, *, driven: bool) -> None:
    """What one wants to know of one job."""
    show_table(console, [job])
    report.say(console, f"\n{escape(words.message(job))}")
    run, endpoint = job.status.run, job.status.endpoint
    if run and run.progress and words.condition(job, ConditionType.TRAINED) != "True":
        console.print(f"Training: {words.training(run)}", highlight=False)
    if run and run.evaluation:
        report.show_scores(console, run.evaluation)
    if endpoint:
        console.print(f"It answers at {endpoint.url} as {endpoint.model}", highlight=False, soft_wrap=True)
    if words.condition(job, ConditionType.RECONCILING) == "True" and not driven:
        console.print(f"Nothing works on it now. Go on with: finetune run {job.metadata.name}", highlight=False)
