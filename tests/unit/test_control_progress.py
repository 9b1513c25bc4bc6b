"""Reports are cleaned and bounded, and the time to finish is our own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.interruptions import StopCosts
from finetune_operator.control.progress import (
    ProgressReports,
    Reported,
    ReportInvalidError,
    clean_report,
    remaining_seconds,
)

NAME = ("team-a", "travel")


class Asked:
    """Where passes are asked for."""

    def __init__(self) -> None:
        self.now = 0
        self.later: list[float] = []

    def add(self, _: object) -> None:
        self.now += 1

    def add_after(self, _: object, seconds: float) -> None:
        self.later.append(seconds)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def report(percent: object = None, **metrics: object) -> dict[str, Any]:
    listed = [{"name": name, "value": value} for name, value in metrics.items()]
    return {"trainerStatus": {"progressPercentage": percent, "metrics": listed}}


@pytest.mark.parametrize(
    ("body", "percent", "values", "counts"),
    [
        (report(40, loss="1.5", current_step="4"), 40, {"train_loss": 1.5}, {"step": 4}),
        (report(400), 100, {}, {}),
        (report(-3), 0, {}, {}),
        (report("12"), 12, {}, {}),
        (report(True), None, {}, {}),
        (report(None, loss="NaN", eval_loss="inf", epoch="-Infinity"), None, {}, {}),
        (report(None, loss="1e400", tokens_per_second="9" * 100), None, {}, {}),
        (report(None, total_steps="-1", current_step="1e300"), None, {}, {}),
        (report(None, unheard_of="1", loss=[1]), None, {}, {}),
        ({"trainerStatus": {"metrics": [None, 1, {"name": 3, "value": "1"}]}}, None, {}, {}),
        ({"trainerStatus": {}}, None, {}, {}),
    ],
)
def test_only_numbers_that_mean_something_are_kept(
    body: dict[str, Any], percent: int | None, values: dict[str, float], counts: dict[str, int]
) -> None:
    assert clean_report(body) == Reported(percent, values, counts)


@pytest.mark.parametrize("body", [None, [], "x", {}, {"trainerStatus": []}, {"trainerStatus": {"metrics": {"a": 1}}}])
def test_what_is_no_report_is_refused(body: object) -> None:
    with pytest.raises(ReportInvalidError):
        clean_report(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values, st.sampled_from(["loss", "current_step", "total_steps", "checkpoint_step"]))
def test_no_report_makes_a_status_that_the_api_server_would_refuse(percent: Any, value: Any, name: str) -> None:
    body = {"trainerStatus": {"progressPercentage": percent, "metrics": [{"name": name, "value": value}]}}
    reports = ProgressReports(Asked(), 10, monotonic=Clock())  # type: ignore[arg-type]
    reports.take(NAME, 1, "pod", clean_report(body))
    found = reports.report(NAME)
    assert found
    assert type(found.progress).model_validate(found.progress.to_wire()) == found.progress


@pytest.mark.parametrize(
    ("step", "total", "first", "now", "seconds"),
    [
        (50, 100, (0, 0.0), 50.0, 50),
        (90, 100, (80, 0.0), 10.0, 10),  # a resumed run: 80 steps were not done in these 10 s
        (10, 100, (10, 0.0), 5.0, None),
        (100, 100, (0, 0.0), 5.0, 0),
        (5, 0, (0, 0.0), 5.0, None),
    ],
)
def test_the_time_to_finish_is_of_this_attempts_own_speed(
    step: int, total: int, first: tuple[int, float], now: float, seconds: int | None
) -> None:
    assert remaining_seconds(step, total, first, now) == seconds


def test_a_resumed_pod_starts_its_own_clock_and_an_older_run_is_ignored() -> None:
    clock = Clock()
    reports = ProgressReports(Asked(), 10, monotonic=clock)  # type: ignore[arg-type]
    reports.take(NAME, 2, "first", clean_report(report(10, current_step=10, total_steps=100, eval_loss=1.0)))
    clock.now = 1000.0
    reports.take(NAME, 2, "second", clean_report(report(50, current_step=50)))
    clock.now = 1010.0
    reports.take(NAME, 2, "second", clean_report(report(60, current_step=60)))
    reports.take(NAME, 1, "late", clean_report(report(99, current_step=99)))
    found = reports.report(NAME)
    assert found
    assert (found.run, found.progress.step, found.progress.remaining_seconds) == (2, 60, 40)
    assert found.progress.eval_loss == 1.0
    reports.take(NAME, 3, "next", clean_report(report(1)))
    found = reports.report(NAME)
    assert found
    assert (found.run, found.progress.step, found.progress.eval_loss) == (3, 0, None)


def test_passes_are_asked_for_at_most_once_an_interval() -> None:
    clock, asked = Clock(), Asked()
    reports = ProgressReports(asked, 10, monotonic=clock)  # type: ignore[arg-type]
    for second in range(10):
        clock.now = float(second)
        reports.take(NAME, 1, "pod", clean_report(report(second)))
    assert asked.now == 1
    assert asked.later == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    clock.now = 10.0
    reports.take(NAME, 1, "pod", clean_report(report(99)))
    assert asked.now == 2


def test_what_a_stop_costs_is_taken_and_what_makes_no_sense_is_not() -> None:
    sent = report(None, step_seconds="1.5", save_seconds="-2", lost_steps="3")
    assert clean_report(sent).costs == {"step_seconds": 1.5, "lost_steps": 3}
    assert clean_report(report(None, step_seconds="NaN", save_seconds="inf", lost_steps="x")).costs == {}
    reports = ProgressReports(Asked(), 10)  # type: ignore[arg-type]
    reports.take(NAME, 1, "pod", clean_report(sent))
    reports.take(NAME, 1, "pod", clean_report(report(None, save_seconds="4")))
    found = reports.report(NAME)
    assert found is not None
    assert found.stop_costs == StopCosts(step_seconds=1.5, save_seconds=4, lost_steps=3)
