"""The history of runs: what is remembered, what is forgotten, what a spec selects."""

from __future__ import annotations

from typing import Any

from tests.simulator import make_job

from finetune_api.conditions import RunResult, Trigger
from finetune_api.job import run_hash
from finetune_api.status import FineTuneJobStatus, ModelStatus, RunRecord, RunStatus
from finetune_operator import runs
from finetune_operator.builders.run_config_map import run_config_map
from finetune_operator.plan import Observed
from finetune_operator.settings import Settings

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-02T00:00:00Z"


def run(number: int, run_hash: str = "h") -> RunStatus:
    return RunStatus(number=number, hash=run_hash, trigger=Trigger.CREATED)


def model(number: int) -> ModelStatus:
    return ModelStatus(run=number, uri=f"pvc://models/{number}", name="travel", kind="Adapter")


def record(number: int, result: RunResult = RunResult.PROMOTED, **more: Any) -> RunRecord:
    parts = {"hash": f"h{number}", "trigger": Trigger.CREATED, "model": model(number), **more}
    return RunRecord(number=number, result=result, **parts)


def test_a_run_is_recorded_once_and_keeps_its_time_while_the_result_stays() -> None:
    once = runs.remember((), run(1), RunResult.GATE_FAILED, "why", NOW)
    twice = runs.remember(once, run(1), RunResult.GATE_FAILED, "why", LATER)
    assert twice == once
    changed = runs.remember(once, run(1), RunResult.PROMOTED, "", LATER)
    assert [(r.result, r.completion_time) for r in changed] == [(RunResult.PROMOTED, LATER)]


def test_records_are_in_the_order_of_their_numbers() -> None:
    records = runs.remember((record(2),), run(1), RunResult.FAILED, "", NOW)
    assert [r.number for r in records] == [1, 2]


def test_a_long_message_is_cut_to_its_bound() -> None:
    (entry,) = runs.remember((), run(1), RunResult.FAILED, "x" * 9999, NOW)
    assert len(entry.message) == 512


def test_the_oldest_are_forgotten_first_but_never_one_that_is_needed() -> None:
    records = tuple(record(number) for number in range(1, 8))
    assert [r.number for r in runs.trim(records, 3, [None])] == [5, 6, 7]
    assert [r.number for r in runs.trim(records, 3, [1])] == [1, 6, 7]
    assert [r.number for r in runs.trim(records, 1, [1, 2])] == [1, 2]
    assert len(runs.trim(tuple(record(number) for number in range(1, 40)), 99, [])) == 20


def test_the_newest_promoted_model_wins_over_later_failures() -> None:
    records = (record(1), record(2), record(3, RunResult.GATE_FAILED), record(4, RunResult.FAILED, model=None))
    assert runs.newest_promoted(records) == model(2)
    assert runs.newest_promoted(()) is None


def test_numbers_go_on_after_everything_that_was_ever_seen() -> None:
    job = make_job()
    status = FineTuneJobStatus(runs=[record(3)], model=model(2), run=run(5))
    observed = Observed(jobs={"x": {"metadata": {"labels": {"finetune-operator.io/run": "8"}}}})
    selection = runs.select(job.model_copy(update={"status": status}), observed, NOW)
    assert selection.run.number == 9
    assert selection.run.trigger is Trigger.SPEC_CHANGED
    assert [(r.number, r.result) for r in selection.records] == [(3, RunResult.PROMOTED), (5, RunResult.SUPERSEDED)]


def test_children_of_a_run_that_the_status_missed_are_found_by_their_hash() -> None:
    job = make_job()
    begun = run(4, run_hash(job.spec))
    config_map = run_config_map(job, begun, Settings())
    status = FineTuneJobStatus(run=run(3, "old"))
    observed = Observed(config_maps={"travel-r4": config_map})
    selection = runs.select(job.model_copy(update={"status": status}), observed, NOW)
    assert (selection.run.number, selection.run.hash) == (4, begun.hash)


def test_a_failed_run_with_the_same_inputs_is_not_taken_up_and_a_superseded_one_after_a_finished_one() -> None:
    job = make_job()
    wanted = run_hash(job.spec)
    for result, number in ((RunResult.FAILED, 4), (RunResult.SUPERSEDED, 2)):
        status = FineTuneJobStatus(run=run(3, "other"), runs=[record(2, result, hash=wanted)])
        assert runs.select(job.model_copy(update={"status": status}), Observed(), NOW).run.number == number
        with_finished = status.model_copy(update={"runs": [record(1, hash=wanted), *status.runs]})
        assert runs.select(job.model_copy(update={"status": with_finished}), Observed(), NOW).run.number == 1
    status = FineTuneJobStatus(run=run(2, "other"), runs=[record(1, hash=wanted)])
    assert runs.select(job.model_copy(update={"status": status}), Observed(), NOW).run.number == 1
