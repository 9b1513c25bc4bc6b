"""A promoted run takes over when its servers are ready and answer; otherwise the run before is put back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.simulator import Cluster, make_job, stamp
from tests.unit.test_decide_runs import losing_after
from tests.unit.test_decide_serving import crashed, server_pod

from finetune_api.conditions import FailureReason as Reason
from finetune_api.conditions import RunResult, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_operator import names
from finetune_operator.control.metrics import RUNS
from finetune_operator.control.outcomes import count_outcomes

SERVE = ("Deployment", "travel-serve")


def rolling(**spec: Any) -> Cluster:
    """Run 1 answers, and the first server of run 2 is about to start."""
    cluster = Cluster(make_job()).run().change(rerunToken="b", **spec)
    return cluster.run(until=lambda c: served(c) == 2)


def served(cluster: Cluster) -> int | None:
    """The run that the Deployment is made for."""
    deployment = cluster.objects.get(SERVE)
    return names.number(names.label(deployment, names.LABEL_RUN)) if deployment else None


def results(cluster: Cluster) -> list[tuple[int, str]]:
    return [(record.number, record.result.value) for record in cluster.job.status.runs]


def smoke_failed() -> dict[str, Any]:
    failure = StageFailure(reason=Reason.SMOKE_FAILED, message="Smoke test: the answer is empty.")
    return crashed(13, "Error", Summary(stage=Stage.SERVE, ok=False, failure=failure).to_message())


def falls_over(cluster: Cluster, run: int = 2) -> Cluster:
    """A server of the present Deployment fails its smoke test, and one pass is made."""
    server_pod(cluster, smoke_failed(), run)
    template = cluster.objects[SERVE]["spec"]["template"]
    cluster.pods[-1]["metadata"]["annotations"] = dict(template["metadata"]["annotations"])
    see(cluster)
    cluster.execute(cluster.plan())
    return cluster


def see(cluster: Cluster) -> None:
    """The Deployment controller has seen what was asked for; run 1 answers on."""
    deployment = cluster.objects[SERVE]
    generation = deployment["metadata"]["generation"]
    status = {"observedGeneration": generation, "replicas": 2, "updatedReplicas": 1, "unavailableReplicas": 1}
    deployment["status"] = {**status, "readyReplicas": 1, "availableReplicas": 1}


def settle(cluster: Cluster) -> Cluster:
    """Servers of no present Deployment go, and everything comes to rest."""
    cluster.pods = [pod for pod in cluster.pods if "serve" not in pod["metadata"]["name"]]
    return cluster.run()


def late(cluster: Cluster) -> Cluster:
    """As long as a server may take has gone by."""
    see(cluster)
    cluster.now += timedelta(seconds=cluster.job.spec.serving.progress_deadline_seconds)
    cluster.execute(cluster.plan())
    return cluster


def test_an_answer_that_will_not_do_puts_the_run_before_back() -> None:
    cluster = falls_over(rolling())
    assert served(cluster) == 1
    assert cluster.condition("Promoted") == ("False", "RolledBack")
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")
    assert cluster.condition("Serving") == ("True", "Available")
    assert results(cluster) == [(1, "Promoted"), (2, "RolledBack")]
    record = cluster.job.status.runs[-1]
    assert record.message == "SmokeFailed: Smoke test: the answer is empty."
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1
    message = next(c.message for c in cluster.job.status.conditions if c.type == "Stalled")
    assert "Run 2 did not take over and was rolled back" in message
    assert message.endswith("Run 1 keeps serving.")


def test_it_is_not_tried_again_by_itself_and_told_once() -> None:
    cluster = settle(falls_over(rolling()))
    assert served(cluster) == 1
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")
    assert results(cluster) == [(1, "Promoted"), (2, "RolledBack")]
    assert cluster.events().count("RolledBack") == 1
    assert "Failed" not in cluster.events()
    assert cluster.plan().status == cluster.job.status
    assert cluster.plan().apply == ()


def test_a_server_that_is_not_ready_in_time_is_rolled_back() -> None:
    cluster = rolling()
    server_pod(cluster, crashed(1, "Error", "ValueError: no adapter_config.json"), 2)
    see(cluster)
    plan = cluster.plan()
    assert plan.requeue_after is not None
    assert 1700 < plan.requeue_after <= 1801
    cluster.execute(plan)
    assert served(cluster) == 2, "until its time is over it may recover"
    assert served(late(cluster)) == 1
    assert cluster.condition("Stalled") == ("True", "NotReady")
    assert "no adapter_config.json" in cluster.job.status.runs[-1].message


@pytest.mark.parametrize("reason", ["Unschedulable", "ImagePull"])
def test_what_the_cluster_owes_is_waited_for(reason: str) -> None:
    cluster = rolling()
    text = "0/1 nodes are available: 1 Insufficient cpu."
    entry = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
    state = {"name": "main", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
    status = {"conditions": [entry]} if reason == "Unschedulable" else {"containerStatuses": [state]}
    server_pod(cluster, {"phase": "Pending", **status}, 2)
    assert served(late(cluster)) == 2
    assert cluster.condition("Reconciling") == ("True", reason)
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(cluster.now)}
    cluster.pods[-1]["status"] = {"phase": "Pending", "conditions": [bound]}
    cluster.execute(cluster.plan())
    assert served(cluster) == 2, "its own time begins when it has its node"
    assert results(settle(cluster)) == [(1, "Promoted"), (2, "Promoted")]


def test_a_status_of_the_deployment_before_rolls_nothing_back() -> None:
    cluster = rolling()
    server_pod(cluster, smoke_failed(), 2)
    see(cluster)
    cluster.objects[SERVE]["metadata"]["generation"] += 1
    cluster.execute(cluster.plan())
    assert served(cluster) == 2
    assert results(settle(cluster)) == [(1, "Promoted"), (2, "Promoted")]


def test_another_way_of_serving_tries_it_again_and_the_old_servers_do_not_count() -> None:
    cluster = settle(falls_over(rolling()))
    cluster.change(serving={"smokeTest": {"prompt": "Hi"}})
    cluster.run(until=lambda c: served(c) == 2)
    server_pod(cluster, smoke_failed(), 2)  # of the Deployment before
    cluster.pods[-1]["metadata"]["annotations"] = {names.ANNOTATION_TEMPLATE_HASH: "of another template"}
    see(cluster)
    cluster.execute(cluster.plan())
    assert served(cluster) == 2
    assert results(settle(cluster)) == [(1, "Promoted"), (2, "Promoted")]
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.job.status.runs[-1].rollback is None


def test_serving_run_tries_it_again_once_and_no_more() -> None:
    cluster = settle(falls_over(rolling()))
    cluster.change(serving={"run": 2}).run(until=lambda c: served(c) == 2)
    falls_over(cluster)
    assert served(settle(cluster)) == 1
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")
    cluster.change(serving={}).run()
    assert served(cluster) == 1, "to take the pin away is no new try"
    cluster.change(serving={"run": 2}).run(until=lambda c: served(c) == 2)
    assert results(settle(cluster)) == [(1, "Promoted"), (2, "Promoted")]


def test_a_pinned_run_that_failed_its_gate_keeps_that_result_when_it_is_rolled_back() -> None:
    cluster = Cluster(make_job(), answer=losing_after(1)).run().change(rerunToken="b").run()
    cluster.change(serving={"run": 2}).run(until=lambda c: served(c) == 2)
    falls_over(cluster)
    assert results(settle(cluster)) == [(1, "Promoted"), (2, "GateFailed")]
    assert served(cluster) == 1
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")
    cluster.change(serving={}).run()
    assert cluster.condition("Ready") == ("True", "Serving"), "a failed gate is a normal end"


def test_a_next_run_is_under_way_while_the_run_before_serves() -> None:
    cluster = settle(falls_over(rolling())).change(rerunToken="c")
    cluster.run(until=lambda c: c.condition("Ready")[1] == "Training")
    assert served(cluster) == 1
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is None
    cluster.run()
    assert served(cluster) == 3
    assert results(cluster) == [(1, "Promoted"), (2, "RolledBack"), (3, "Promoted")]


def test_going_back_to_the_commit_of_a_run_that_was_rolled_back_trains_nothing_and_tries_nothing() -> None:
    cluster = settle(falls_over(rolling()))
    cluster.change(rerunToken="c").run()
    jobs = [name for name in cluster.created if name.startswith("Job/")]
    cluster.change(rerunToken="b").run()
    assert [name for name in cluster.created if name.startswith("Job/")] == jobs
    assert served(cluster) == 3
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")


def test_a_server_that_says_nothing_and_is_never_ready_is_rolled_back() -> None:
    cluster = rolling()
    server_pod(cluster, {"phase": "Running"}, 2)
    assert served(late(cluster)) == 1
    assert "not ready within 1800 seconds" in cluster.job.status.runs[-1].message


def test_another_smoke_test_is_for_the_next_run_and_leaves_the_servers_alone() -> None:
    cluster = Cluster(make_job()).run()
    before = cluster.objects[SERVE]
    cluster.change(serving={"smokeTest": {"prompt": "Hi", "contains": "Ho"}}).run()
    assert cluster.objects[SERVE] == before
    assert cluster.condition("Ready") == ("True", "Serving")
    template = before["spec"]["template"]
    cluster.change(rerunToken="b").run(until=lambda c: served(c) == 2)
    assert "FINETUNE_SMOKE" in str(cluster.objects[SERVE])
    falls_over(cluster)
    assert cluster.objects[SERVE]["spec"]["template"] == template, "its servers are the ones that never stopped"
    assert settle(cluster).condition("Stalled") == ("True", "SmokeFailed")


def test_a_first_run_has_nothing_to_go_back_to() -> None:
    cluster = Cluster(make_job()).run(until=lambda c: SERVE in c.objects)
    falls_over(cluster, run=1)
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")
    assert cluster.condition("Serving") == ("True", "NotAvailable") or cluster.condition("Serving")[0] == "False"
    assert results(cluster) == [(1, "Promoted")]
    assert cluster.job.status.model is None
    assert settle(cluster).condition("Ready") == ("True", "Serving")


def test_servers_of_the_same_run_that_fail_are_told_and_nothing_is_put_back() -> None:
    cluster = Cluster(make_job()).run()
    cluster.settings = type(cluster.settings)(trainer_image="registry.example.com/trainer:0.2.0")
    cluster.execute(cluster.plan())
    falls_over(cluster, run=1)
    assert cluster.condition("Stalled") == ("True", "SmokeFailed")
    assert results(cluster) == [(1, "Promoted")]
    assert cluster.job.status.endpoint is not None


def test_a_pass_that_is_cut_short_after_any_write_ends_in_the_same_place() -> None:
    for writes in range(4):
        cluster = rolling()
        server_pod(cluster, smoke_failed(), 2)
        see(cluster)
        cluster.execute(cluster.plan(), writes)
        see(cluster)
        cluster.execute(cluster.plan())
        while served(cluster) == 2:  # nothing was kept of it: it is tried once more, and fails once more
            falls_over(cluster)
        assert served(settle(cluster)) == 1, writes
        assert results(cluster) == [(1, "Promoted"), (2, "RolledBack")], writes


def test_a_rollback_is_counted_once() -> None:
    cluster = rolling()
    before, counter = cluster.job.status, RUNS.labels(RunResult.ROLLED_BACK)
    known = counter._value.get()
    falls_over(cluster)
    count_outcomes("team-a", before, cluster.job.status)
    count_outcomes("team-a", cluster.job.status, cluster.job.status)
    assert counter._value.get() == known + 1
