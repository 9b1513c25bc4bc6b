"""Looks at the data in whatever order users, sources, the cluster and deaths of the operator come in between."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.polled_jobs import Source, polled, there, wait

from finetune_api.conditions import FailureReason, RunResult

DOINGS = st.one_of(
    st.tuples(st.just("data"), st.sampled_from("abc")),
    st.tuples(st.just("wait"), st.integers(1, 150)),
    st.tuples(st.just("dies after"), st.integers(0, 5)),
    st.tuples(st.just("trouble"), st.booleans()),
    st.tuples(st.just("suspend"), st.booleans()),
    st.tuples(st.just("vanishes"), st.just(0)),
    st.tuples(st.just("edit"), st.sampled_from("xyz")),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(DOINGS, max_size=8))
def test_whatever_happens_the_newest_data_is_trained_on_once(doings: list[tuple[str, Any]]) -> None:
    source = Source()
    cluster = polled(source)
    for what, how in [*doings, ("trouble", False), ("suspend", False), ("wait", 300)]:
        if what == "data":
            source.version = how
        elif what == "wait":
            wait(cluster, minutes=how)
        elif what == "dies after":
            cluster.execute(cluster.plan(), writes=how)
            for move in cluster.moves()[:1]:
                move()
        elif what == "trouble":
            source.trouble = FailureReason.SOURCE_UNAVAILABLE if how else None
        elif what == "suspend":
            cluster.change(suspend=how or None)
        elif what == "edit":
            cluster.change(rerunToken=how)
        else:
            for name in there(cluster):
                cluster.vanish("Job", name)
        alive = [name for name in there(cluster) if "status" not in cluster.objects["Job", name]]
        assert len(alive) <= 1
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("DatasetPolled") == ("True", "Planned")
    read = [record.fingerprint for record in cluster.job.status.runs if record.result is not RunResult.SUPERSEDED]
    assert read[-1] == source.version
    for before, record in pairwise(cluster.job.status.runs):
        assert record.trigger != "DatasetChanged" or record.occasion != before.fingerprint
    stages = [name for name in cluster.created if "-poll-" not in name]
    assert len(stages) == len(set(stages)), "no stage is made twice"
