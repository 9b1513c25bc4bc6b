"""What a stage is doing is said in words: no numbers beside the demo's own, no lines for machines."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.simulator import Cluster, make_job

from finetune_api.conditions import Stage
from finetune_operator.cli.screen import Screen
from finetune_operator.local.loop import Stop
from finetune_operator.local.store import Store

PREFIX = "2026-11-21T12:30:04Z INFO job=team-a/travel run=1 stage=Evaluate "
REPORT = """\
2026-11-21T12:30:05Z WARNING job=team-a/travel run=1 stage=Evaluate BertForSequenceClassification LOAD REPORT from: x
Key               | Status     |
classifier.weight | MISSING    |
"""


def evaluating() -> Any:
    cluster = Cluster(make_job("travel"))
    cluster.run()
    job: Any = cluster.job
    stages = [entry for entry in job.status.run.stages if entry.stage is not Stage.EVALUATE]
    run = job.status.run.model_copy(update={"stages": stages, "failure": None})
    return job.model_copy(update={"status": job.status.model_copy(update={"run": run, "stage": Stage.EVALUATE})})


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (f"{PREFIX}starts\n", []),
        (f"{PREFIX}model=base examples=28 loss=7.1972\n", []),
        (f"{PREFIX}done in 15 seconds\n", []),
        (f"{PREFIX}estimate: 0.8 GiB of memory, 50 seconds of training\n", []),
        (REPORT, []),
        (f"{PREFIX}asks the base again\n{REPORT}{PREFIX}model=base examples=28\n", ["      asks the base again"]),
    ],
)
def test_only_what_is_said_in_words_reaches_the_screen(tmp_path: Path, log: str, said: list[str]) -> None:
    store, file, job = Store(tmp_path), io.StringIO(), evaluating()
    folder = store.logs(job.metadata.namespace, job.metadata.name)
    folder.mkdir(parents=True)
    (folder / "r1-evaluate-attempt1.log").write_text(log)
    screen = Screen(Console(file=file, width=200), store, (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE))
    screen(job, Stop())
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("Prepare done: ")
    assert lines[1].startswith("Train done: ")
    assert lines[2].startswith("Evaluate: compare base (before) and tuned (after)")
    assert lines[3:] == said
