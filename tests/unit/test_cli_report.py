"""What the command line says of figures: no more than they show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.simulator import Cluster, make_job

from finetune_api.conditions import FailureReason, Stage
from finetune_api.status import CheckScore, DatasetStatus, EvaluationStatus, Failure, Interval, Problem, Scores
from finetune_operator.cli import report, words
from finetune_operator.local.errors import BadInput
from finetune_operator.local.store import Store


@pytest.mark.parametrize(
    ("low", "high", "examples", "words"),
    [
        (0.2, 0.4, 10, "lower by 0.20 to 0.40 (95 % interval), so it is not by chance."),
        (-0.1, 0.4, 10, "lower by -0.10 to 0.40 (95 % interval), so it may be by chance; more held-out examples tell."),
        (-0.4, -0.2, 10, "higher by 0.20 to 0.40 (95 % interval): training made it worse."),
        (0.2, 0.4, 9, "but 9 held-out examples are too few to trust that; hold out at least 10."),
        (-0.4, -0.2, 3, "but 3 held-out examples are too few to trust that; hold out at least 10."),
    ],
)
def test_an_interval_is_as_certain_as_its_examples(low: float, high: float, examples: int, words: str) -> None:
    found = EvaluationStatus(examples=examples, loss_difference=Interval(low=low, high=high))
    assert str(found.certainty).endswith(words)


@pytest.mark.parametrize(
    ("seconds", "promised"),
    [(50, "1 min 20 s to 4 min"), (1, "30 s to 1 min"), (600, "10 min to 31 min"), (36000, "10 h to 1 d 6 h")],
)
def test_a_promised_time_has_room_for_what_stands_around_the_steps(seconds: float, promised: str) -> None:
    assert words.time_range(seconds) == promised


def refused_job(advice: str) -> Any:
    """Ended in Prepare, with a problem in each file."""
    cluster = Cluster(make_job("travel"))
    cluster.run()
    job: Any = cluster.job
    problems = [
        Problem(check="no_text", count=2, lines=[4, 8], file=file, message="error: the line has no text")
        for file in ("train", "validation")
    ]
    failure = Failure(reason=FailureReason.DATASET_INVALID, stage=Stage.PREPARE, message="no", advice=advice)
    run = job.status.run.model_copy(update={"dataset": DatasetStatus(problems=problems), "failure": failure})
    return job.model_copy(update={"status": job.status.model_copy(update={"run": run})})


def test_problems_are_told_with_the_file_as_the_job_names_it_and_with_the_place_of_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = refused_job("")
    path = report.run_folder(store, job, job.status.run) / "reports" / "dataset.html"
    relative = path.relative_to(store.artifacts)
    job = refused_job(f"correct these lines; every problem with its lines: {relative}")
    file = io.StringIO()
    report.show_failure(Console(file=file, width=200), store, job, None)
    assert f"its lines: {relative}" in file.getvalue()  # as the status has it, where there is no such file
    path.parent.mkdir(parents=True)
    path.touch()
    report.show_failure(Console(file=file, width=200), store, job, None)
    shown = file.getvalue()
    assert f"every problem with its lines: {path}" in shown
    assert "Prepare failed: DatasetInvalid." in shown
    train = job.spec.dataset.train
    assert f"In the training data, {report.source_of(job, 'train')}:" in shown
    assert (train.source or train.config_map_ref.name) in report.source_of(job, "train")
    assert "lines 4, 8" in shown


@pytest.mark.parametrize(("advice", "told"), [("name a Secret in secretRef", True), ("correct these lines", False)])
def test_what_a_secret_holds_is_set_in_the_shell_here(tmp_path: Path, advice: str, told: bool) -> None:
    file = io.StringIO()
    report.show_failure(Console(file=file, width=200), Store(tmp_path), refused_job(advice), None)
    assert ("set these variables in your shell" in file.getvalue()) is told


def test_each_of_several_files_is_named_by_its_source() -> None:
    files = [{"source": "pvc://data/a.jsonl"}, {"configMapRef": {"name": "corrections", "key": "b.jsonl"}}]
    job = make_job(dataset={"train": {"files": files}})
    assert [report.source_of(job, f"train.files[{index}]") for index in (0, 1)] == [
        "pvc://data/a.jsonl",
        "key b.jsonl of ConfigMap corrections",
    ]


def test_a_run_is_named_by_its_number_and_an_unknown_one_is_answered_with_those_that_are_known(tmp_path: Path) -> None:
    store, job = Store(tmp_path), Cluster(make_job()).run().change(hyperparameters={"epochs": 2}).run().job
    assert job.status.run is not None
    assert report.folder_of(store, job, None) == report.run_folder(store, job, job.status.run)
    assert report.folder_of(store, job, 1).name.startswith("1-")
    with pytest.raises(BadInput, match="no run 7 here") as caught:
        report.folder_of(store, job, 7)
    assert caught.value.advice == "known are: 1, 2"


def test_words_that_a_newcomer_does_not_know_are_explained_where_they_stand() -> None:
    job: Any = refused_job("")
    file = io.StringIO()
    report.show_scores(Console(file=file, width=200), job.status.run.evaluation)
    shown = file.getvalue()
    assert "how wrong its guesses are; lower is better" in shown
    assert "held-out examples, which it was not trained on" in shown
    assert "(before)" in shown
    assert "(after)" in shown


def scores(loss: float, tokens: float) -> Scores:
    return Scores(loss=loss, request_tokens=tokens)


def test_every_baseline_stands_beside_the_tuned_model_with_what_a_request_costs() -> None:
    found = EvaluationStatus(
        examples=20,
        base=scores(4, 31),
        few_shot=scores(3, 310),
        retrieval=scores(2, 320),
        previous=scores(1.5, 31),
        previous_run=3,
        tuned=scores(1, 31),
        checks=[
            CheckScore(name="no-hotel", asked=20, base=0.25, tuned=1),
            CheckScore(name="not-asked", asked=0, tuned=0),
        ],
    )
    file = io.StringIO()
    report.show_scores(Console(file=file, width=200), found)
    shown = file.getvalue()
    for part in ("base with examples", "base with the nearest examples", "run 3", "tokens of a request", "320"):
        assert part in shown
    assert "Tuning was worth it: a prompt with the nearest examples" in shown
    assert [line.split()[1:8:2] for line in shown.splitlines() if "no-hotel" in line] == [
        ["no-hotel", "20", "25%", "100%"]
    ]
    again = io.StringIO()
    report.show_scores(Console(file=again, width=200), found.model_copy(update={"few_shot": None, "retrieval": None}))
    assert "tokens of a request" not in again.getvalue()


@pytest.mark.parametrize(
    "baselines", [{}, {"few_shot": scores(3, 310), "retrieval": scores(2, 320)}], ids=["two", "four"]
)
def test_every_figure_is_explained_in_one_line_of_a_narrow_terminal(baselines: dict[str, Scores]) -> None:
    found = EvaluationStatus(examples=20, base=scores(4, 31), tuned=scores(1, 31), **baselines)
    file = io.StringIO()
    report.show_scores(Console(file=file, width=80), found)
    assert any("how wrong its guesses are" in line for line in file.getvalue().splitlines())
