"""Two releases of the chart on one cluster, each for its own namespaces: two real operators with the rights, the Lease
and the environment that their release gives them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chart import NAME, Release
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.credentials import User, write_kubeconfig
from tests.cluster.errors import CommandFailed
from tests.operator_process import (
    HOME,
    PATIENCE,
    Kubelet,
    OperatorProcess,
    children,
    install_crd,
    job_manifest,
    make_namespace,
    prepared,
    running_operator,
    wait_idle,
)
from tests.simulator import good_summary

from finetune_operator.control.permissions import own_namespace, rules

RBAC = "rbac.authorization.k8s.io"
LEASE_RULES = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "rules": rules(own_namespace("second"))}
SECOND_BINDING = {
    "apiVersion": f"{RBAC}/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "second", "namespace": HOME},
    "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "second"},
    "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": HOME}],
}


@contextlib.contextmanager
def installed(release: Release, home: str, watched: str, *settings: str) -> Iterator[Release]:
    """A release of the usual name in a namespace of its own."""
    own = replace(release, home=home)
    own.install(f"watchNamespaces={{{watched}}}", "progress.enabled=false", *settings)
    try:
        yield own
    finally:
        own.uninstall()


@contextlib.contextmanager
def operating(release: Release, folder: Path) -> Iterator[OperatorProcess]:
    """The operator of a release: a process with the environment of its Deployment and the rights of its account."""
    container = release.get("deployment")["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    token = release.plane.kubectl("create", "token", NAME, namespace=release.home).strip()
    user = User(release.home, token=token)
    write_kubeconfig(release.plane.kubeconfig_of(user.name), release.plane.url, release.plane.ca, user)
    names = {"POD_NAME": f"{release.home}-0", "POD_NAMESPACE": release.home}
    with running_operator(release.plane, folder, name=release.home, user=user.name, **variables, **names) as operator:
        operator.wait_for_log('"message": "resync=done')
        yield operator


def test_two_releases_on_one_cluster_leave_each_others_jobs_alone(
    control_plane_with_controllers: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_with_controllers
    homes, teams = ("platform-a", "platform-b"), ("tenant-a", "tenant-b")
    for namespace in (*homes, *teams):
        plane.kubectl.make_namespace(namespace)
    both = Release(plane, binaries.helm())
    install_crd(plane)
    beside = ("crds.enabled=false", "rbac.issuerDiscovery=true")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(installed(both, homes[0], teams[0], *beside))
        with pytest.raises(CommandFailed, match="cannot be imported into the current release"):
            replace(both, home=homes[1]).install(f"watchNamespaces={{{teams[1]}}}", *beside)  # roles for users: theirs
        second = stack.enter_context(installed(both, homes[1], teams[1], *beside, "rbac.aggregateRoles=false"))
        operators = [stack.enter_context(operating(each, tmp_path)) for each in (first, second)]
        plane.kubectl.apply(*(job_manifest("travel", team) for team in teams))
        for team in teams:
            plane.kubectl.wait_until(lambda team=team: len(children(plane, team)) == 2, PATIENCE, "two children", team)
        for operator, home, other in zip(operators, homes, reversed(teams), strict=True):
            wait_idle(operator)
            lease = plane.kubectl.get("lease", NAME, namespace=home)
            assert lease
            assert lease["spec"]["holderIdentity"].startswith(f"{home}-0_")
            assert sum(operator.metric("finetune_jobs", ready=ready) for ready in ("True", "False")) == 1
            assert operator.metric("finetune_api_requests_total", code="403") == 0
            assert operator.metric("finetune_other_operator_timestamp_seconds") == 0
            assert not replace(both, home=home).may("list", "finetunejobs", other)
        assert operators[0].stop() == 0
        kubelet = Kubelet(plane, teams[1])
        kubelet.end("finetune-operator.io/stage=Prepare", good_summary("Prepare", 1))
        plane.kubectl.wait_until(lambda: len(children(plane, teams[1])) == 3, PATIENCE, "the training", teams[1])
        assert len(children(plane, teams[0])) == 2


def test_two_releases_that_serve_one_namespace_say_so(
    control_plane_with_controllers: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_with_controllers
    namespace = make_namespace(prepared(plane), "tenant-of-two")
    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_LEASE_NAMESPACE": HOME}
    plane.kubectl.apply({**LEASE_RULES, "metadata": {"name": "second", "namespace": HOME}}, SECOND_BINDING)
    with running_operator(plane, tmp_path, name="early", **variables) as early:
        early.wait_for_log("resync=done")
        plane.kubectl.apply(job_manifest("travel", namespace))
        plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 2, PATIENCE, "two children", namespace)
        with running_operator(plane, tmp_path, name="late", **variables, FINETUNE_LEASE_NAME="second") as late:
            late.wait_for_log("resync=done")
            assert late.metric("finetune_other_operator_timestamp_seconds") == 0  # made before it came
            Kubelet(plane, namespace).end("finetune-operator.io/stage=Prepare", good_summary("Prepare", 1))
            plane.kubectl.wait_until(lambda: len(children(plane, namespace)) == 3, PATIENCE, "the training", namespace)
            made = plane.kubectl.get("job", "travel-r1-train", namespace=namespace)
            assert made
            maker = made["metadata"]["annotations"]["finetune-operator.io/operator"]
            other = late if maker == f"{HOME}/finetune-operator" else early
            other.wait_for_log(f"operator=overlap namespace={namespace} other={maker}")
            assert other.metric("finetune_other_operator_timestamp_seconds", operator=maker) > 0
