"""Spans of a run from what its statuses say, whatever happened to it; and headers that nobody reads in a log."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from tests.failures import failed_summary
from tests.simulator import START, Cluster, make_job, succeed

from finetune_api.conditions import FailureReason, Stage
from finetune_api.status import FineTuneJobStatus
from finetune_operator.control.environment import EnvironmentInvalidError, TraceSettings, read_environment
from finetune_operator.control.passes import Pass
from finetune_operator.control.spans import Span, run_spans
from finetune_operator.control.traces import Traces

ENDPOINT = "FINETUNE_TRACES_ENDPOINT"


class Followed(Cluster):
    """A cluster whose every written status is looked at."""

    spans: list[Span]

    def write_status(self, status: FineTuneJobStatus) -> None:
        before = self.job
        super().write_status(status)
        self.spans = [*getattr(self, "spans", []), *run_spans(before, before.status, self.job.status, self.now)]


def names(cluster: Followed) -> list[str]:
    return [span.name for span in cluster.spans]


def test_a_run_has_a_span_and_one_of_each_stage() -> None:
    cluster = Followed(make_job(), answer=succeed)
    cluster.run()
    assert sorted(names(cluster)) == ["Evaluate", "Prepare", "Serve", "Train", "run 1"]
    (root,) = [span for span in cluster.spans if span.parent is None]
    assert {span.trace for span in cluster.spans} == {root.trace}
    assert {span.parent for span in cluster.spans} == {None, root.span}
    assert len({span.span for span in cluster.spans}) == 5
    assert all(START <= span.start <= span.end for span in cluster.spans)


def test_another_run_is_another_trace_and_one_that_is_taken_up_again_is_told_once() -> None:
    cluster = Followed(make_job())
    cluster.run()
    first = cluster.job.spec
    cluster.change(hyperparameters={"epochs": 2})
    cluster.run()
    assert len(cluster.spans) == 10
    assert len({span.trace for span in cluster.spans}) == 2
    cluster.job = cluster.job.model_copy(update={"spec": first})
    cluster.run()
    assert len(cluster.spans) == 10


def test_a_failed_stage_says_why() -> None:
    message = failed_summary(Stage.PREPARE, FailureReason.DATASET_INVALID, "line 3: no messages")
    cluster = Followed(make_job(), answer=lambda _: (10, message))
    cluster.run()
    assert sorted(names(cluster)) == ["Prepare", "run 1"]
    for span in cluster.spans:
        assert span.error == "DatasetInvalid: line 3: no messages"


@pytest.mark.parametrize("text", ["Authorization: Bearer s3cret", "=s3cret", "a b=s3cret", "a=s3%0Acret"])
def test_headers_that_cannot_be_are_refused_without_saying_them(text: str) -> None:
    with pytest.raises(EnvironmentInvalidError) as refusal:
        read_environment({ENDPOINT: "http://collector:4318", "FINETUNE_TRACES_HEADERS": text})
    assert "FINETUNE_TRACES_HEADERS" in str(refusal.value)
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("text", ["collector:4318", "ftp://collector", "https://me:s3cret@collector", "http://"])
def test_an_endpoint_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(EnvironmentInvalidError, match=ENDPOINT) as refusal:
        read_environment({ENDPOINT: text})
    assert "s3cret" not in str(refusal.value)


def test_settings_of_traces() -> None:
    assert read_environment({}).traces is None
    values = {
        ENDPOINT: "https://collector/otlp/",
        "FINETUNE_TRACES_HEADERS": "x-team=a, authorization=Basic%20YTpi==",
        "FINETUNE_TRACES_SAMPLING": "0.5",
    }
    found = read_environment(values).traces
    assert found
    assert (found.endpoint, found.sampling) == ("https://collector/otlp/v1/traces", 0.5)
    assert dict(found.headers) == {"x-team": "a", "authorization": "Basic YTpi=="}
    assert "YTpi" not in repr(found)


async def test_an_error_of_ours_ends_no_pass_and_what_changed_nothing_is_not_traced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traces = Traces(TraceSettings("http://127.0.0.1:9/v1/traces"), chance=lambda: 0.0)
    sent: list[Span] = []
    traces._record = sent.append  # type: ignore[method-assign]
    traces.passed(Pass("team-a", "travel"))
    assert not sent
    busy = Pass("team-a", "travel", writes=[("created", "jobs/travel-r1-train")])
    traces.passed(busy)
    assert [span.name for span in sent] == ["reconcile"]
    with caplog.at_level(logging.ERROR):
        traces.moved(None, None, None, START + timedelta(days=1))  # type: ignore[arg-type]
    assert "traces=failed" in caplog.text
    await traces.close()
