"""Two replicas on a real API server: one acts, and when it dies or freezes the other goes on where it was."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    HOME,
    PATIENCE,
    Kubelet,
    OperatorProcess,
    children,
    condition,
    job_manifest,
    make_namespace,
    start_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> str:
    return make_namespace(plane, f"leader-{abs(hash(request.node.name)) % 10**8}")


@pytest.fixture
def replicas(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """The leader and the follower. The Lease is short, so that the test is."""
    plane.kubectl("delete", "lease", "finetune-operator", "--ignore-not-found", namespace=HOME)
    variables = {
        "FINETUNE_WATCH_NAMESPACES": namespace,
        "FINETUNE_LEASE_NAMESPACE": HOME,
        "FINETUNE_LEASE_SECONDS": "3",
    }
    started = [start_operator(plane, tmp_path, name="first", **variables)]
    try:
        started[0].wait_for_log("resync=done")
        started.append(start_operator(plane, tmp_path, name="second", **variables))
        yield started[0], started[1]
    finally:
        for replica in started:
            replica.signal(signal.SIGCONT)
            replica.kill()


def finish(kubelet: Kubelet, stage: str) -> None:
    kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))


def wait_children(plane: ControlPlane, namespace: str, count: int) -> list[tuple[str, str, str]]:
    plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == count, PATIENCE, f"{count} children", namespace)
    return children(plane, namespace)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_the_follower_takes_over_and_does_nothing_twice(
    plane: ControlPlane, tmp_path: Path, replicas: tuple[OperatorProcess, OperatorProcess], namespace: str, fault: int
) -> None:
    leader, follower = replicas
    kubelet = Kubelet(plane, namespace)
    plane.kubectl.apply(job_manifest("travel", namespace))
    before = wait_children(plane, namespace, 2)
    assert follower.writes() == 0
    assert follower.metric("finetune_leader") == 0
    leader.signal(signal.Signals(fault))
    finish(kubelet, "Prepare")
    after = wait_children(plane, namespace, 3)
    assert set(before) < set(after)
    assert follower.metric("finetune_leader") == 1
    finish(kubelet, "Train")
    assert set(after) < set(wait_children(plane, namespace, 4))
    plane.kubectl.wait_until(
        lambda: condition(status_of(plane, namespace, "travel"), "Trained")[0] == "True", PATIENCE, "Trained", namespace
    )
    assert follower.metric("finetune_api_requests_total", verb="POST", resource="jobs", code="200") == 2


def test_a_leader_that_was_frozen_ends_without_a_write(
    plane: ControlPlane, replicas: tuple[OperatorProcess, OperatorProcess], namespace: str
) -> None:
    """In the middle of a job, whose next stages the other one has begun when it wakes."""
    leader, follower = replicas
    kubelet = Kubelet(plane, namespace)
    plane.kubectl.apply(job_manifest("travel", namespace))
    wait_children(plane, namespace, 2)
    wait_idle(leader)
    known = len(leader.component.log.read_text())
    leader.signal(signal.SIGSTOP)
    finish(kubelet, "Prepare")
    wait_until(lambda: follower.metric("finetune_leader") == 1, PATIENCE, "a new leader", follower.component.tail)
    wait_children(plane, namespace, 3)
    finish(kubelet, "Train")
    begun = wait_children(plane, namespace, 4)
    leader.signal(signal.SIGCONT)
    assert leader.component.process
    assert leader.component.process.wait(30) == 1
    log = leader.component.log.read_text()[known:]
    assert "lease=lost" in log
    assert not re.search(r" (created|updated|deleted)=", log), log
    assert children(plane, namespace) == begun
    lease = plane.kubectl.get("lease", "finetune-operator", namespace=HOME)
    assert lease
    assert lease["spec"]["holderIdentity"]


def test_a_leader_that_ends_in_order_is_followed_at_once(
    plane: ControlPlane, replicas: tuple[OperatorProcess, OperatorProcess], namespace: str
) -> None:
    leader, follower = replicas
    assert leader.stop() == 0
    wait_until(lambda: follower.metric("finetune_leader") == 1, PATIENCE, "a new leader", follower.component.tail)
    plane.kubectl.apply(job_manifest("travel", namespace))
    wait_children(plane, namespace, 2)
