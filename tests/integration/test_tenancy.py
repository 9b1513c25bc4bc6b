"""Who may do what with FineTuneJobs, asked of a real API server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.chart import HOME, NAME, Release, objects
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.errors import CommandFailed
from tests.cluster.processes import run
from tests.documented import ROOT, TENANCY, commands, lacks
from tests.operator_process import install_crd

from finetune_operator.control.permissions import WATCHED_NAMESPACES, Permission, own_namespace

NAMESPACE = "tenants"
JOBS, STATUS = "finetunejobs.finetune-operator.io", "finetunejobs.finetune-operator.io/status"
LOOKS = {"get", "list", "watch"}
WRITES = LOOKS | {"create", "update", "patch", "delete"}
ROLES = {"viewer": LOOKS, "user": WRITES, "admin": WRITES | {"deletecollection"}}
BUILT_IN = {"view": "viewer", "edit": "user", "admin": "admin"}
LINE = re.compile(r"^(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]$", re.MULTILINE)


@dataclass(frozen=True)
class Rights:
    """What `kubectl auth can-i --list` prints: resource (and name) -> verbs; what everybody may is left out."""

    verbs: dict[str, set[str]]

    @classmethod
    def of(cls, plane: ControlPlane, who: str, namespace: str) -> Rights:
        found: dict[str, set[str]] = {}
        text = plane.kubectl("auth", "can-i", "--list", f"--as={who}", namespace=namespace)
        for resource, urls, name, verbs in LINE.findall(text):
            if not urls and not resource.startswith("selfsubject"):
                found.setdefault(f"{resource}/{name}" if name else resource, set()).update(verbs.split())
        return cls(found)


@pytest.fixture(scope="module")
def release(control_plane_with_controllers: ControlPlane) -> Iterator[Release]:
    """The chart's rights on a cluster whose controllers put aggregated roles together."""
    plane = control_plane_with_controllers
    for namespace in (HOME, NAMESPACE):
        plane.kubectl.make_namespace(namespace)
    found = Release(plane, binaries.helm())
    install_crd(plane)
    roles = objects(found.template(), "ClusterRole") + objects(found.template(), "ClusterRoleBinding")
    own = [each for each in objects(found.template()) if each["kind"] in ("Role", "RoleBinding", "ServiceAccount")]
    plane.kubectl.apply(*roles, *own)
    for name in (*BUILT_IN, *(f"{NAME}-{role}" for role in ROLES)):
        plane.kubectl("create", "rolebinding", name, f"--clusterrole={name}", f"--user={name}", namespace=NAMESPACE)
    yield found
    plane.kubectl("delete", *(f"{each['kind']}/{each['metadata']['name']}" for each in roles))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_bound_by_itself_gives_the_jobs_and_nothing_else(release: Release, role: str) -> None:
    rights = Rights.of(release.plane, f"{NAME}-{role}", NAMESPACE)
    assert rights.verbs == {JOBS: ROLES[role], STATUS: {"get"}}


@pytest.mark.parametrize("built_in", BUILT_IN)
def test_who_has_a_role_in_a_namespace_has_it_for_its_jobs(release: Release, built_in: str) -> None:
    expected = {JOBS: ROLES[BUILT_IN[built_in]], STATUS: {"get"}}

    def aggregated() -> bool:
        verbs = Rights.of(release.plane, built_in, NAMESPACE).verbs
        return {name: verbs.get(name) for name in expected} == expected

    release.plane.kubectl.wait_until(aggregated, 30, f"the controller to add FineTuneJobs to {built_in}")


@pytest.mark.parametrize(
    ("role", "verb", "resource", "answer"),
    [
        ("viewer", "get", JOBS, "yes"),
        ("viewer", "create", JOBS, "no"),
        ("user", "create", JOBS, "yes"),
        ("user", "deletecollection", JOBS, "no"),
        ("admin", "deletecollection", JOBS, "yes"),
        *((role, verb, STATUS, "no") for role in ROLES for verb in ("update", "patch")),
        *((role, "get", "secrets", "no") for role in ROLES),
        *((role, "create", "pods", "no") for role in ROLES),
        ("admin", "escalate", "roles", "no"),
    ],
)
def test_kubectl_auth_can_i(release: Release, role: str, verb: str, resource: str, answer: str) -> None:
    resource, _, part = resource.partition("/")
    words = (verb, resource, *([f"--subresource={part}"] if part else []), f"--as={NAME}-{role}")
    try:
        said = release.plane.kubectl("auth", "can-i", *words, namespace=NAMESPACE)
    except CommandFailed as error:
        said = str(error)  # "no" is also the exit code
    assert said.split()[-1] == answer


def test_documented_commands(release: Release) -> None:
    environment = release.plane.kubectl.environment()
    path = {"PATH": f"{release.plane.assets}:{release.helm.parent}:{os.environ['PATH']}"}
    for command in commands(TENANCY):
        output = run("bash", "-c", command.text, cwd=ROOT, env={**environment, **path})
        assert not lacks(output, command), output


def test_nobody_else_may_anything(release: Release) -> None:
    assert not Rights.of(release.plane, "stranger", NAMESPACE).verbs
    assert not Rights.of(release.plane, f"{NAME}-admin", HOME).verbs


def test_the_operator_may_what_its_list_says_and_nothing_else(release: Release) -> None:
    account = f"system:serviceaccount:{HOME}:{NAME}"

    def declared(permissions: tuple[Permission, ...]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for each in permissions:
            resource, _, part = each.resource.partition("/")
            name = f"{resource}{'.' + each.group if each.group else ''}{'/' + part if part else ''}"
            for key in [f"{name}/{one}" for one in each.names] or [name]:
                found.setdefault(key, set()).update(each.verbs)
        return found

    assert Rights.of(release.plane, account, NAMESPACE).verbs == declared(WATCHED_NAMESPACES)
    assert Rights.of(release.plane, account, HOME).verbs == declared((*WATCHED_NAMESPACES, *own_namespace()))
