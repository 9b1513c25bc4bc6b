"""Looks at the data: when they are made, what they start, and what becomes of one that fails."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.polled_jobs import HOURLY, Source, due, looks, polled, started, there, wait, wait_for_pass, words
from tests.simulator import Cluster, Manifest, make_job

from finetune_api.conditions import FailureReason, RunResult, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import DatasetStatus
from finetune_operator.decide import decide
from finetune_operator.plan import ApplyFailure


def test_data_that_is_as_it_was_starts_nothing_and_a_look_writes_nothing() -> None:
    source = Source()
    cluster = wait(polled(source), hours=2)
    assert looks(cluster)
    status = cluster.job.status
    wait(cluster, hours=10)
    assert 11 <= len(looks(cluster)) <= 13
    assert cluster.job.status == status
    assert len(there(cluster)) == 1, "the last look's Job takes the place of the one before"
    assert started(cluster) == [(1, "Created", None)]
    assert cluster.condition("DatasetPolled") == ("True", "Planned")
    assert source.orders[0] == {"fingerprint": "a", "sha256": "a"}
    wait(cluster, hours=24)
    assert cluster.job.status.dataset_poll != status.dataset_poll, "once a day the time is written"


def test_changed_data_starts_a_run_that_says_so() -> None:
    source = Source()
    cluster = polled(source)
    source.version = "b"
    wait(cluster, hours=4)
    assert started(cluster) == [(1, "Created", None), (2, "DatasetChanged", "b")]
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 2
    annotations = cluster.objects["ConfigMap", "travel-r2"]["metadata"]["annotations"]
    assert annotations["finetune-operator.io/occasion"] == "b"
    events = [event.message for plan in cluster.plans for event in plan.events if event.reason == "RunStarted"]
    assert events[-1] == "Run 2 started (DatasetChanged, b)."
    source.version = "a"
    wait(cluster, hours=4)
    assert started(cluster)[2:] == [(3, "DatasetChanged", "a")]


def test_what_prepare_has_read_counts_not_what_the_look_saw() -> None:
    """Half an upload is seen, the whole of it is read."""
    source = Source()
    cluster = polled(source)
    source.version, source.read = "half", "whole"
    wait(cluster, hours=3)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "half")]
    assert len(looks(cluster)) > 2
    assert source.orders[-1]["fingerprint"] == "whole"
    source.version = "half"
    wait(cluster, hours=3)
    assert started(cluster)[2:] == [(3, "DatasetChanged", "half")]


@pytest.mark.parametrize("reason", [FailureReason.SOURCE_UNAVAILABLE, FailureReason.SOURCE_UNSTEADY])
def test_a_look_that_fails_is_said_and_tried_later_and_later_and_hurts_nobody(reason: FailureReason) -> None:
    source = Source(trouble=reason)
    cluster = wait(polled(source, triggers={"datasetPoll": {"periodSeconds": 12 * 3600}}), hours=12.6)
    assert cluster.condition("DatasetPolled") == ("False", reason)
    assert "answered HTTP 404. Correct the address. No run begins by it" in words(cluster)
    assert cluster.condition("Ready") == ("True", "Serving")
    seen = len(looks(cluster))
    wait(cluster, hours=8)
    assert len(looks(cluster)) - seen == 3, "after 1, 2 and 4 hours"
    assert cluster.events().count(reason) == 1
    assert len(there(cluster)) == 1
    source.trouble = None
    wait(cluster, hours=24)
    assert cluster.condition("DatasetPolled") == ("True", "Planned")
    assert cluster.job.status.dataset_poll is not None
    assert cluster.job.status.dataset_poll.failures == 0
    assert started(cluster) == [(1, "Created", None)]


def test_why_a_look_cannot_begin_is_said_while_it_waits_and_when_its_time_is_over() -> None:
    cluster = polled()
    cluster.run(until=lambda c: bool(there(c)) or not wait_for_pass(c))
    job = cluster.objects["Job", there(cluster)[0]]
    pod = cluster.start_pod(job)
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}
    pod["status"]["containerStatuses"] = [{"name": "main", "state": {"waiting": waiting}}]
    cluster.execute(cluster.plan())
    assert cluster.condition("DatasetPolled") == ("False", "ConfigMissing")
    ready = next(each.message for each in cluster.job.status.conditions if each.type == "Ready")
    assert "Dataset poll: " in ready
    assert 'secret "keys" not found' in words(cluster)
    cluster.pods.remove(pod)
    cluster._conclude(job, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    cluster.execute(cluster.plan())
    assert 'secret "keys" not found' in words(cluster)
    assert cluster.job.status.dataset_poll is not None
    assert cluster.job.status.dataset_poll.failures == 1


@pytest.mark.parametrize("writes", range(6))
def test_a_pass_that_is_cut_short_makes_no_second_look_and_no_second_run(writes: int) -> None:
    source = Source()
    cluster = due(source)
    cluster.execute(cluster.plan(), writes=writes)
    cluster.now += timedelta(seconds=40)
    source.version = "b"
    while not cluster.plan().status.run or cluster.plan().status.run.number == 1:  # type: ignore[union-attr]
        cluster.execute(cluster.plan())
        for move in cluster.moves()[:1]:
            move()
    assert len(looks(cluster)) == 1
    cluster.execute(cluster.plan(), writes=writes)
    wait(cluster, minutes=20)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "b")]
    assert len(cluster.created) == len(set(cluster.created))


def test_nobody_looks_while_a_run_is_under_way_or_the_job_is_suspended() -> None:
    cluster = due(Source())
    cluster.change(rerunToken="b").run(until=lambda c: c.job.status.stage == "Train")
    cluster.now += timedelta(hours=3)
    for _ in range(3):
        cluster.execute(cluster.plan())
    assert looks(cluster) == []
    cluster.run()
    seen = len(looks(cluster))
    cluster.change(suspend=True).run()
    wait(cluster, hours=5)
    assert len(looks(cluster)) == seen
    cluster.change(suspend=False).run()
    wait(cluster, hours=2)
    assert len(looks(cluster)) > seen


def test_a_run_that_begins_while_somebody_looks_ends_the_look() -> None:
    cluster = due(Source())
    cluster.execute(cluster.plan())
    assert len(there(cluster)) == 1
    cluster.change(rerunToken="b").run(until=lambda c: c.job.status.stage == "Train")
    assert there(cluster) == []


def test_a_change_seen_while_the_job_is_suspended_trains_when_it_goes_on() -> None:
    source = Source()
    cluster = due(source)
    source.version = "b"
    cluster.run(until=lambda c: bool(there(c)) and "status" in c.objects["Job", there(c)[0]] and bool(source.orders))
    cluster.change(suspend=True).run()
    assert len(started(cluster)) == 1
    cluster.change(suspend=None).run()
    assert started(cluster)[1:] == [(2, "DatasetChanged", "b")]


def test_a_suspended_poll_looks_at_nothing_and_finds_the_change_afterwards() -> None:
    source = Source()
    cluster = polled(source, triggers={"datasetPoll": {"suspend": True}})
    source.version = "b"
    wait(cluster, hours=5)
    assert looks(cluster) == []
    assert cluster.condition("DatasetPolled") == ("False", "Suspended")
    cluster.change(triggers=HOURLY)
    wait(cluster, hours=2)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "b")]


@pytest.mark.parametrize("writes", range(4))
def test_going_back_to_an_earlier_commit_compares_with_what_that_run_has_read(writes: int) -> None:
    source = Source()
    cluster = polled(source)
    source.version = "b"
    cluster.change(hyperparameters={"epochs": 2}).run()
    wait(cluster, hours=2)
    assert [record.fingerprint for record in cluster.job.status.runs] == ["a", "b"]
    assert len(there(cluster)) == 1
    cluster.change(hyperparameters={})
    cluster.execute(cluster.plan(), writes=writes)
    cluster.run()
    assert there(cluster) == [], "what was compared with the other run's data is of no use"
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 1
    wait(cluster, hours=2)
    assert started(cluster)[2:] == [(3, "DatasetChanged", "b")]


def test_without_the_trigger_nothing_is_left_of_it() -> None:
    cluster = wait(polled(), hours=2)
    cluster.change(triggers=None).run()
    assert there(cluster) == []
    assert cluster.job.status.dataset_poll is None
    assert not any(each.type == "DatasetPolled" for each in cluster.job.status.conditions)
    assert len(started(cluster)) == 1


def test_a_run_of_a_former_version_left_no_fingerprint_so_the_first_look_is_compared_with() -> None:
    source = Source(version=None)
    cluster = polled(source)
    source.version = "b"
    wait(cluster, hours=3)
    assert len(started(cluster)) == 1
    assert cluster.job.status.dataset_poll is not None
    assert cluster.job.status.dataset_poll.fingerprint == "b"
    source.version = "c"
    wait(cluster, hours=3)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "c")]


def test_data_that_changed_since_a_run_of_a_former_version_is_known_by_its_digest() -> None:
    source = Source(version=None, data="before")
    cluster = polled(source)
    source.version, source.digest = "b", "now"
    wait(cluster, hours=3)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "b")]


def test_a_look_that_the_api_server_refuses_is_no_trouble_of_the_model_in_service() -> None:
    cluster = due(Source())
    (made,) = (each for each in cluster.plan().apply if each["kind"] == "Job")
    text = f"Job {made['metadata']['name']}: exceeded quota: small, requested: count/jobs.batch=1"
    refused = replace(cluster.observed(), apply_failure=ApplyFailure(FailureReason.QUOTA_EXCEEDED, text))
    status = decide(cluster.job, refused, cluster.now, cluster.settings).status
    told = {each.type: (each.status, each.reason) for each in status.conditions}
    assert told["DatasetPolled"] == ("False", "QuotaExceeded")
    assert (told["Ready"], told["Serving"]) == (("True", "Serving"), ("True", "Available"))
    assert status.run is not None
    assert status.run.failure is None


def test_data_that_was_refused_is_tried_again_when_it_has_changed_and_not_before() -> None:
    source = Source()

    def refuses(pod: Manifest) -> tuple[int, str]:
        if pod["metadata"]["labels"]["finetune-operator.io/stage"] != "Prepare" or source.version == "good":
            return source.answer(pod)
        failure = StageFailure(reason=FailureReason.DATASET_INVALID, message="line 3 is broken")
        dataset = DatasetStatus(fingerprint=source.version)
        return 10, Summary(stage=Stage.PREPARE, ok=False, failure=failure, dataset=dataset).to_message()

    cluster = Cluster(make_job(triggers=HOURLY), answer=refuses).run()
    wait(cluster, hours=5)
    assert [record.result for record in cluster.job.status.runs] == [RunResult.FAILED]
    source.version = "good"
    wait(cluster, hours=3)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "good")]
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_source_that_could_not_be_read_is_trained_on_when_it_can() -> None:
    source = Source(trouble=FailureReason.SOURCE_UNAVAILABLE)

    def away(pod: Manifest) -> tuple[int, str]:
        stage = pod["metadata"]["labels"]["finetune-operator.io/stage"]
        return source.words("a", source.trouble) if stage == "Prepare" and source.trouble else source.answer(pod)

    cluster = Cluster(make_job(triggers=HOURLY), answer=away).run()
    wait(cluster, hours=3)
    assert len(started(cluster)) == 1
    source.trouble = None
    wait(cluster, hours=3)
    assert started(cluster)[1:] == [(2, "DatasetChanged", "a")]


def test_the_last_words_of_a_look_may_be_lost() -> None:
    cluster = due(Source())
    cluster.run(until=lambda c: bool(there(c)) and bool(c.moves()) is False)
    cluster.pods = [pod for pod in cluster.pods if "-poll-" not in pod["metadata"]["name"]]
    wait(cluster, hours=3)
    assert len(started(cluster)) == 1
    assert len(looks(cluster)) >= 2


@pytest.mark.parametrize(("restless", "vain"), [(True, "run 2"), (False, "run 2 and run 3")])
def test_other_names_for_the_same_data_do_not_train_for_ever_and_are_said(restless: bool, vain: str) -> None:
    """Data that is too large to be compared, of a server that names another version at each look, or now and then."""
    source = Source(data="same", restless=restless)
    cluster = polled(source)
    for number in range(5):
        source.version = f"now-and-then-{number}"
        wait(cluster, hours=2.5)
    assert len(started(cluster)) == len(vain.split(" and ")) + 1
    assert cluster.condition("DatasetPolled") == ("False", "SourceUnsteady")
    assert words(cluster).startswith(f"Looks at the data began {vain} for the same data as before, and the sources")
    assert "triggers.schedule" in words(cluster)
    assert cluster.events().count("SourceUnsteady") == 1
    assert cluster.condition("Ready") == ("True", "Serving")
    cluster.change(rerunToken="b").run()
    assert cluster.condition("DatasetPolled") == ("True", "Planned")


def test_a_server_that_moved_once_is_believed_the_next_time() -> None:
    source = Source(data="same")
    cluster = polled(source)
    source.version = "moved"
    wait(cluster, hours=4)
    assert len(started(cluster)) == 2
    source.version, source.data = "b", "other"
    wait(cluster, hours=2)
    assert started(cluster)[2:] == [(3, "DatasetChanged", "b")]
