"""A list of jobs tells apart, in words, what failed, what runs, what was stopped and what is finished."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from tests.simulator import Cluster, make_job

from finetune_api.conditions import FailureReason, Stage
from finetune_api.job import FineTuneJob
from finetune_api.status import Failure
from finetune_operator.cli import objects, words
from finetune_operator.cli.state import state_of
from finetune_operator.local.loop import Ending, at_rest


def finished() -> FineTuneJob:
    """Ready, with no server of its own, as `finetune run` leaves a job."""
    cluster = Cluster(make_job("travel", serving={"replicas": 0}))
    cluster.run()
    return cluster.job


def under_way(*, failure: Failure | None = None) -> FineTuneJob:
    """In training, or ended there by a failure."""
    job: Any = finished()
    truth = {"Ready": "False", "Reconciling": str(failure is None), "Stalled": str(failure is not None)}
    conditions = [
        condition.model_copy(update={"status": truth.get(condition.type, "Unknown")})
        for condition in job.status.conditions
    ]
    run = job.status.run.model_copy(update={"failure": failure})
    status = job.status.model_copy(
        update={"conditions": conditions, "run": run, "stage": Stage.TRAIN, "model": None, "endpoint": None}
    )
    copied: FineTuneJob = job.model_copy(update={"status": status})
    return copied


def failed() -> FineTuneJob:
    return under_way(
        failure=Failure(
            reason=FailureReason.DATASET_INVALID, stage=Stage.PREPARE, message="train data, line 4: no text"
        )
    )


def unpromoted() -> FineTuneJob:
    job: Any = under_way()
    conditions = [
        condition.model_copy(update={"status": str(condition.type == "Stalled"), "message": "Run 1 did not pass"})
        for condition in job.status.conditions
    ]
    copied: FineTuneJob = job.model_copy(update={"status": job.status.model_copy(update={"conditions": conditions})})
    return copied


@pytest.mark.parametrize(
    ("job", "driven", "word", "why"),
    [
        (finished(), False, "finished", "finetune chat travel -n team-a"),
        (under_way(), True, "running", "Train: "),
        (under_way(), False, "stopped", "go on with: finetune run travel -n team-a"),
        (failed(), False, "FAILED", "DatasetInvalid: train data, line 4: no text"),
        (failed(), True, "FAILED", "DatasetInvalid"),
        (unpromoted(), False, "not promoted", "Run 1 did not pass"),
    ],
)
def test_every_state_has_its_word_and_its_reason(job: FineTuneJob, driven: bool, word: str, why: str) -> None:
    state = state_of(job, driven=driven)
    assert state.word == word
    assert why in state.why


def printed(jobs: list[FineTuneJob], *, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=colour, color_system="standard" if colour else None)
    objects.show_table(console, [(job, state_of(job, driven=False)) for job in jobs])
    return file.getvalue()


def test_the_list_says_it_without_colour_and_in_whole_lines() -> None:
    lines = printed([finished(), under_way(), failed()]).splitlines()
    assert lines[0].split()[:4] == ["NAMESPACE", "NAME", "STATE", "STAGE"]
    assert [line.split()[2] for line in lines[1:]] == ["finished", "stopped", "FAILED"]
    assert lines[3].endswith("DatasetInvalid: train data, line 4: no text")


def test_colour_repeats_the_word() -> None:
    assert re.search(r"\x1b\[31mFAILED", printed([failed()], colour=True))


def test_a_stopped_job_is_not_said_to_be_training() -> None:
    file = io.StringIO()
    objects.show_details(Console(file=file, width=200), under_way(), driven=False)
    assert "stopped: in Train" in file.getvalue()
    assert "is training" not in file.getvalue()


def test_a_suspended_job_says_so_and_the_command_comes_back() -> None:
    cluster = Cluster(make_job(suspend=True)).run()
    state = state_of(cluster.job, driven=False)
    assert (state.word, state.why) == ("suspended", words.message(cluster.job))
    assert "spec.suspend" in state.why
    assert at_rest(cluster.job.status) is Ending.HELD
    done = Cluster(make_job(serving={"replicas": 0})).run().change(suspend=True, serving={"replicas": 0}).run()
    assert at_rest(done.job.status) is Ending.READY, "there is nothing that it could go on with"


def test_a_run_that_has_used_its_budget_is_held_not_failed() -> None:
    """As on a machine with a GPU."""
    job = Cluster(make_job("travel", compute={"gpus": 1}, budget={"maxGpuHours": "0.000001"})).run().job
    state = state_of(job, driven=False)
    assert state.word == "held"
    assert state.why.startswith("BudgetExceeded: 0.00 GPU hours are used")
    assert at_rest(job.status) is Ending.STALLED
    console = Console(file=io.StringIO(), width=200)
    objects.show_details(console, job, driven=False)
    assert "Used: 0.00 GPU hours" in console.file.getvalue()  # type: ignore[attr-defined]
