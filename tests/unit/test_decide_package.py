"""Exports: made of promoted runs beside serving, again when they change, and no harm to anything when they fail."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Any

import pytest
from tests.simulator import Answer, Cluster, Manifest, make_job, succeed

from finetune_api.conditions import ExitCode, Stage
from finetune_api.conditions import FailureReason as Reason
from finetune_api.package import PackageSummary
from finetune_api.reports import StageFailure, Summary
from finetune_operator import names

WHOLE = {"name": "whole", "to": "s3://bucket/models", "secretRef": {"name": "keys"}}
EXPORTS = {"claimName": "models", "exports": [WHOLE]}
JOB = "Job/travel-r1-package"


def exporting(answer: Answer = succeed, **spec: Any) -> Cluster:
    return Cluster(make_job(**{"output": EXPORTS, **spec}), answer=answer)


def failing(reason: Reason, code: int, done: Any = None) -> Answer:
    """Packaging fails so; all else goes well."""

    def answer(pod: Manifest) -> tuple[int, str]:
        if pod["metadata"]["labels"][names.LABEL_STAGE] != "Package":
            return succeed(pod)
        failure = StageFailure(reason=reason, message="no such bucket", advice="make it")
        part = PackageSummary.model_validate({"exports": done}) if done else None
        return code, Summary(stage=Stage.PACKAGE, ok=False, failure=failure, package=part).to_message()

    return answer


def pod_of(cluster: Cluster) -> Manifest:
    spec: Manifest = cluster.objects["Job", "travel-r1-package"]["spec"]["template"]["spec"]
    return spec


def container(cluster: Cluster) -> Manifest:
    found: Manifest = pod_of(cluster)["containers"][0]
    return found


def made(cluster: Cluster) -> int:
    return cluster.created.count(JOB)


def test_a_promoted_run_is_exported_beside_serving() -> None:
    cluster = exporting().run()
    assert made(cluster) == 1
    assert cluster.condition("Packaged") == ("True", "Exported")
    assert cluster.condition("Ready") == ("True", "Serving")
    run = cluster.job.status.run
    assert run is not None
    assert run.package is not None
    assert [(each.name, each.digest) for each in run.package.exports] == [("whole", "cd" * 32)]
    assert cluster.events()[-1] == "Packaged"


def test_without_exports_nothing_is_said_of_them() -> None:
    cluster = Cluster(make_job()).run()
    assert "Packaged" not in {condition.type for condition in cluster.job.status.conditions}
    assert JOB not in cluster.created


def test_the_pod_has_each_secret_under_a_prefix_and_neither_gpu_nor_sources() -> None:
    job = {"compute": {"gpus": 1, "resources": {"limits": {"memory": "9Gi"}}}, "baseModel": {"source": "hf://a/b"}}
    cluster = exporting(**job).run()
    main = container(cluster)
    assert main["envFrom"] == [{"prefix": "EXPORT_WHOLE__", "secretRef": {"name": "keys", "optional": False}}]
    assert main["resources"]["limits"] == {"memory": "9Gi"}
    env = {each["name"]: each["value"] for each in main["env"]}
    assert env["FINETUNE_GPUS"] == "0"
    assert json.loads(env["FINETUNE_PACKAGE"]) == {"exports": [WHOLE]}
    assert [each["name"] for each in pod_of(cluster)["volumes"]] == ["config", "artifacts", "tmp"]
    assert "serviceAccountToken" not in json.dumps(pod_of(cluster))


def test_secrets_of_exports_reach_no_other_stage() -> None:
    cluster = exporting().run()
    for name in ("prepare", "train", "evaluate"):
        assert "keys" not in json.dumps(cluster.objects["Job", f"travel-r1-{name}"])


def test_a_run_that_fails_its_gate_is_not_exported() -> None:
    cluster = exporting(evaluation={"gate": {"rules": [{"metric": "loss", "max": "0.5"}]}}).run()
    assert JOB not in cluster.created
    assert cluster.condition("Packaged") == ("False", "NotPromoted")
    cluster.change(evaluation={"gate": {"rules": []}}).run()
    assert made(cluster) == 1
    assert cluster.condition("Packaged")[0] == "True"


def test_a_run_that_waits_for_its_approval_is_not_exported_until_then() -> None:
    cluster = exporting(promotion={"mode": "Manual"}).run()
    assert made(cluster) == 0
    assert cluster.condition("Packaged") == ("False", "NotPromoted")
    cluster.change(promotion={"mode": "Manual", "approved": {"run": 1, "digest": "ab" * 32}}).run()
    assert made(cluster) == 1
    assert cluster.condition("Packaged")[0] == "True"


def test_a_suspended_job_is_exported_when_it_goes_on() -> None:
    cluster = Cluster(make_job()).run().change(output=EXPORTS, suspend=True).run()
    assert not any(pod["metadata"]["labels"][names.LABEL_STAGE] == "Package" for pod in cluster.pods)
    cluster.change(suspend=False).run()
    assert cluster.condition("Packaged")[0] == "True"


def test_an_export_that_is_added_or_changed_trains_nothing() -> None:
    cluster = Cluster(make_job()).run()
    before = list(cluster.created)
    cluster.change(output=EXPORTS).run()
    assert cluster.created[len(before) :] == [JOB]
    cluster.change(output={"claimName": "models", "exports": [{**WHOLE, "precision": "Float32"}]}).run()
    assert cluster.created[len(before) :] == [JOB, JOB]
    assert cluster.condition("Packaged")[0] == "True"


def test_another_secret_alone_packages_nothing_that_is_done() -> None:
    cluster = exporting().run()
    cluster.change(output={"claimName": "models", "exports": [{**WHOLE, "secretRef": {"name": "others"}}]}).run()
    assert made(cluster) == 1


def test_exports_that_are_removed_leave_the_status_and_the_job() -> None:
    cluster = exporting().run().change(output={"claimName": "models"}).run()
    assert ("Job", "travel-r1-package") not in cluster.objects
    assert "Packaged" not in {condition.type for condition in cluster.job.status.conditions}
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.package is None


def test_while_it_is_exported_the_model_answers() -> None:
    cluster = exporting().run(until=lambda c: c.job.status.stage is Stage.PACKAGE)
    assert cluster.condition("Serving") == ("True", "Available")
    assert cluster.condition("Ready") == ("False", "Packaging")
    assert cluster.condition("Reconciling") == ("True", "Packaging")


REFUSED = failing(Reason.DESTINATION_REFUSED, ExitCode.USER_INPUT)


def test_a_refused_export_stalls_but_serves_and_stays_promoted() -> None:
    cluster = exporting(REFUSED)
    cluster.run(until=lambda c: c.condition("Stalled")[0] == "True")
    assert cluster.condition("Stalled") == ("True", "DestinationRefused")
    assert cluster.condition("Packaged") == ("False", "DestinationRefused")
    assert cluster.condition("Serving")[0] == cluster.condition("Promoted")[0] == "True"
    message = next(c.message for c in cluster.job.status.conditions if c.type == "Stalled")
    assert message == "Package of run 1: no such bucket. Make it. Run 1 keeps serving."
    assert [(r.number, r.result) for r in cluster.job.status.runs] == [(1, "Promoted")]
    assert made(cluster) == 1


def test_what_was_exported_before_another_export_failed_is_told() -> None:
    done = [{"name": "whole", "uri": "s3://b/x", "digest": "ef" * 32}]
    cluster = exporting(failing(Reason.DESTINATION_REFUSED, ExitCode.USER_INPUT, done))
    cluster.run(until=lambda c: c.condition("Stalled")[0] == "True")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.package is not None
    assert [each.digest for each in cluster.job.status.run.package.exports] == ["ef" * 32]


@pytest.mark.parametrize(
    ("reason", "code", "again"),
    [
        (Reason.DESTINATION_REFUSED, ExitCode.USER_INPUT, True),
        (Reason.DESTINATION_UNAVAILABLE, 1, True),
        (Reason.STORAGE_FULL, 1, True),
        (Reason.EXPORT_UNSUPPORTED, ExitCode.USER_INPUT, False),
        (Reason.ARTIFACT_INVALID, ExitCode.ARTIFACT_INVALID, False),
    ],
)
def test_a_failure_is_tried_again_after_an_hour_where_that_can_help(reason: Reason, code: int, again: bool) -> None:
    cluster = exporting(failing(reason, code))
    cluster.run(until=lambda c: c.condition("Stalled")[0] == "True")
    plan = cluster.plan()
    assert (plan.requeue_after is not None) == again
    cluster.now += timedelta(minutes=59)
    assert not cluster.plan().delete
    cluster.now += timedelta(minutes=2)
    assert bool(cluster.plan().delete) == again
    cluster.answer = succeed
    cluster.run()
    assert cluster.condition("Packaged")[0] == ("True" if again else "False")
    assert made(cluster) == 1 + again


def test_a_failed_job_that_somebody_removes_is_made_again_at_once() -> None:
    cluster = exporting(REFUSED)
    cluster.run(until=lambda c: c.condition("Stalled")[0] == "True")
    cluster.answer = succeed
    cluster.vanish("Job", "travel-r1-package")
    cluster.run()
    assert made(cluster) == 2
    assert cluster.condition("Ready") == ("True", "Serving")


def test_another_secret_gives_a_failed_export_another_try() -> None:
    cluster = exporting(REFUSED)
    cluster.run(until=lambda c: c.condition("Stalled")[0] == "True")
    cluster.answer = succeed
    cluster.change(output={"claimName": "models", "exports": [{**WHOLE, "secretRef": {"name": "others"}}]}).run()
    assert made(cluster) == 2
    assert cluster.condition("Packaged")[0] == "True"


def test_trouble_of_serving_is_told_before_trouble_of_exports() -> None:
    cluster = exporting(REFUSED, serving={"run": 7})
    cluster.run(until=lambda c: c.condition("Stalled")[0] == "True" and c.condition("Packaged")[0] == "False")
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.failure is not None
    assert cluster.job.status.run.failure.reason is Reason.RUN_NOT_FOUND


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_crash_after_any_write_ends_in_the_same_place(writes: int) -> None:
    passes = len(exporting().run().plans)
    for crash in range(passes):
        cluster = exporting()
        count = itertools.count()
        cluster.run(until=lambda _, n=count, c=crash: next(n) == c)  # type: ignore[misc]
        cluster.execute(cluster.plan(), writes=writes)
        cluster.run()
        assert cluster.condition("Packaged")[0] == cluster.condition("Ready")[0] == "True"
        assert made(cluster) == 1


def test_after_every_pass_another_pass_does_nothing() -> None:
    cluster = exporting()

    def check(_: Cluster) -> bool:
        again = cluster.plan()
        assert (again.apply, again.events, again.status) == ((), (), cluster.job.status)
        return False

    cluster.run(until=check)


def test_going_back_to_an_earlier_commit_exports_that_run_again() -> None:
    cluster = exporting().run().change(rerunToken="more").run()
    assert "Job/travel-r2-package" in cluster.created
    cluster.change(rerunToken=None).run()
    assert cluster.condition("Packaged")[0] == "True"
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 1


TRACKING = {"mlflow": {"uri": "https://mlflow.example.com", "secretRef": {"name": "login"}}, "tensorBoard": "Enabled"}


def test_a_run_that_failed_its_gate_is_tracked_all_the_same() -> None:
    gate = {"rules": [{"metric": "loss", "max": "0.5"}]}
    cluster = exporting(tracking=TRACKING, evaluation={"gate": gate}).run()
    main = container(cluster)
    env = {each["name"]: each["value"] for each in main["env"]}
    told = json.loads(env["FINETUNE_PACKAGE"])
    assert (told["tracking"], "exports" in told) == (TRACKING, False)
    assert [each["prefix"] for each in main["envFrom"]] == ["TRACKING_MLFLOW__"]
    assert cluster.condition("Stalled") == ("True", "GateFailed")
    cluster.change(evaluation={"gate": {"rules": []}}).run()
    assert made(cluster) == 2  # now it is exported, too
    assert [each["prefix"] for each in container(cluster)["envFrom"]] == ["TRACKING_MLFLOW__", "EXPORT_WHOLE__"]


def test_other_figures_are_tracked_anew_and_exports_alone_are_not_made_again() -> None:
    tracked, exported = Cluster(make_job(tracking=TRACKING)).run(), exporting().run()
    for cluster in (tracked, exported):
        cluster.change(evaluation={"maxExamples": 900}).run()
    assert (made(tracked), made(exported)) == (2, 1)
    assert tracked.condition("Ready")[0] == "True"
