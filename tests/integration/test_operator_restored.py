"""A job in an empty cluster, on a real API server: it comes with its status, and nothing of its children."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.failures import fail_in
from tests.integration.test_operator_lifecycle import stage_selector
from tests.operator_process import Kubelet, children, condition, job_manifest, make_namespace, status_of
from tests.simulator import Cluster, good_summary, make_job
from tests.single_life import look


def restore(plane: ControlPlane, namespace: str, cluster: Cluster) -> None:
    """The job as it is in a simulated cluster, in an empty one."""
    spec = cluster.job.spec.to_wire()
    plane.kubectl.apply(job_manifest("travel", namespace, **spec))
    status = json.dumps({"status": cluster.job.status.to_wire()})
    words = ("finetunejob", "travel", "--subresource=status", "--type=merge", "-p", status)
    plane.kubectl("patch", *words, namespace=namespace)


def only_the_first_is_good(pod: dict[str, Any]) -> tuple[int, str]:
    run, stage = (pod["metadata"]["labels"][f"finetune-operator.io/{key}"] for key in ("run", "stage"))
    return 0, good_summary(stage, int(run), tuned=1.0 if run == "1" else 3.0)


def test_restored_with_its_status_it_serves_a_run_whose_snapshot_is_gone(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "restored")
    before = Cluster(make_job(), answer=only_the_first_is_good).run().change(rerunToken="b").run()
    restore(plane, namespace, before)
    look(plane, namespace)
    Kubelet(plane, namespace).run(stage_selector("Serve"))
    server = ("rollout", "status", "deployment/travel-serve", "--timeout=60s")
    plane.kubectl(*server, namespace=namespace)
    look(plane, namespace)
    status = status_of(plane, namespace, "travel")
    assert condition(status, "Ready") == ("True", "Serving")
    assert status["endpoint"]["run"] == 1
    assert [each[:2] for each in children(plane, namespace)] == [
        ("Deployment", "travel-serve"),
        ("Service", "travel-serve"),
    ]
    assert look(plane, namespace) == 0


def test_restored_after_a_failure_it_is_tried_again_as_its_advice_says(plane: ControlPlane) -> None:
    namespace = make_namespace(plane, "restored-failed")
    restore(plane, namespace, Cluster(make_job(), answer=fail_in("Train", 137)).run())
    look(plane, namespace)
    assert condition(status_of(plane, namespace, "travel"), "Stalled") == ("True", "OutOfMemory")
    assert children(plane, namespace) == []
    more = json.dumps({"spec": {"compute": {"resources": {"limits": {"memory": "64Gi"}}}}})
    plane.kubectl("patch", "finetunejob", "travel", "--type=merge", "-p", more, namespace=namespace)
    look(plane, namespace)
    assert [each[:2] for each in children(plane, namespace)] == [("ConfigMap", "travel-r1"), ("Job", "travel-r1-train")]
