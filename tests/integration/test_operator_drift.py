"""Somebody changes the served Deployment or Service: it is put right, and nothing is fought over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_until
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    OperatorProcess,
    condition,
    job_manifest,
    make_namespace,
    prepared,
    running_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary

SERVER = f"{GROUP}/job=travel,{GROUP}/stage=Serve"


@dataclass
class Serving:
    """A job that serves, and its operator."""

    plane: ControlPlane
    namespace: str
    operator: OperatorProcess

    def get(self, kind: str = "deployment") -> dict[str, Any]:
        return dict(self.plane.kubectl.get(kind, "travel-serve", self.namespace) or {})

    def image(self) -> str:
        return str(self.get()["spec"]["template"]["spec"]["containers"][0]["image"])

    def kubectl(self, *words: str) -> str:
        return self.plane.kubectl(*words, namespace=self.namespace)

    def wait(self, predicate: Callable[[], object], what: str) -> None:
        self.plane.kubectl.wait_until(predicate, PATIENCE, what, self.namespace)

    def ready(self) -> bool:
        return condition(status_of(self.plane, self.namespace, "travel"), "Ready")[0] == "True"


@pytest.fixture(scope="module")
def plane(control_plane_with_controllers: ControlPlane) -> ControlPlane:
    return prepared(control_plane_with_controllers)


def variables(namespace: str) -> dict[str, str]:
    return {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_RESYNC_SECONDS": "3600"}


@pytest.fixture(scope="module")
def serving(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    namespace = make_namespace(plane, "drift")
    with running_operator(plane, tmp_path_factory.mktemp("drift"), **variables(namespace)) as operator:
        made = Serving(plane, namespace, operator)
        # Amounts that the API server writes otherwise: 1000m as 1, 1024Mi as 1Gi.
        amounts = {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"memory": "0.5Ti"}}
        plane.kubectl.apply(job_manifest("travel", namespace, serving={"resources": amounts}))
        kubelet = Kubelet(plane, namespace)
        for stage in ("Prepare", "Train", "Evaluate"):
            kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))
        kubelet.run(SERVER)
        made.wait(made.ready, "Ready")
        yield made


def test_a_server_that_the_api_server_filled_in_is_left_as_it_is(serving: Serving) -> None:
    wait_idle(serving.operator)
    before = serving.operator.writes()
    passes = serving.operator.passes()
    serving.kubectl("label", "--overwrite", "deployment,service", "travel-serve", "example.com/theirs=1")
    wait_until(lambda: serving.operator.passes() > passes, PATIENCE, "a pass")
    wait_idle(serving.operator)
    assert serving.get()["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "1"
    assert serving.operator.writes() == before
    assert not serving.operator.metric("finetune_corrections_total")


@pytest.mark.parametrize(
    ("words", "kind", "path", "wanted"),
    [
        (("scale", "deployment", "travel-serve", "--replicas=0"), "deployment", "replicas", 1),
        (
            ("patch", "service", "travel-serve", "-p", '{"spec": {"selector": {"example.com/x": "y"}}}'),
            "service",
            "selector",
            {f"{GROUP}/job": "travel", f"{GROUP}/stage": "Serve"},
        ),
    ],
    ids=["scaled by hand", "service edited"],
)
def test_what_somebody_changed_is_put_right(
    serving: Serving, words: tuple[str, ...], kind: str, path: str, wanted: Any
) -> None:
    reads = serving.operator.reads()
    serving.kubectl(*words)
    serving.wait(lambda: serving.get(kind)["spec"][path] == wanted, f"{path} put right")
    assert serving.operator.reads() == reads
    Kubelet(serving.plane, serving.namespace).run(SERVER)
    serving.wait(serving.ready, "Ready again")


def test_another_image_is_put_right_also_when_nobody_watched(serving: Serving, tmp_path: Path) -> None:
    image = serving.image()
    serving.kubectl("set", "image", "deployment/travel-serve", "main=example.com/other:1")
    serving.wait(lambda: serving.image() == image, "the image put right")
    Kubelet(serving.plane, serving.namespace).run(SERVER)
    serving.wait(serving.ready, "Ready again")
    # and the leader is away
    namespace = make_namespace(serving.plane, "drift-away")
    with running_operator(serving.plane, tmp_path, name="first", **variables(namespace)):
        serving.plane.kubectl.apply(job_manifest("travel", namespace))
        kubelet = Kubelet(serving.plane, namespace)
        for stage in ("Prepare", "Train", "Evaluate"):
            kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))
        other = Serving(serving.plane, namespace, serving.operator)
        other.wait(lambda: other.get().get("status", {}).get("observedGeneration"), "the Deployment")
    other.kubectl("set", "image", "deployment/travel-serve", "main=example.com/other:1")
    with running_operator(serving.plane, tmp_path, name="second", **variables(namespace)) as second:
        other.wait(lambda: other.image() == image, "the image put right after the restart")
        assert second.metric("finetune_corrections_total", result="corrected") == 1


def test_an_autoscaler_is_let_be_also_when_the_servers_roll(serving: Serving) -> None:
    scale = json.loads(serving.kubectl("get", "deployment", "travel-serve", "--subresource=scale", "-o", "json"))
    scale["spec"]["replicas"] = 3
    serving.kubectl(
        *("patch", "deployment", "travel-serve", "--subresource=scale", "--type=merge"),
        *("--field-manager=kube-controller-manager", "-p", json.dumps({"spec": scale["spec"]})),
    )
    corrections = serving.operator.metric("finetune_corrections_total")
    serving.wait(lambda: serving.get()["status"].get("replicas") == 3, "three servers")
    serving.plane.kubectl.apply(job_manifest("travel", serving.namespace, serving={"nodeSelector": {"pool": "a"}}))
    serving.wait(lambda: "nodeSelector" in serving.get()["spec"]["template"]["spec"], "the new specification")
    assert serving.get()["spec"]["replicas"] == 3
    assert serving.operator.metric("finetune_corrections_total") == corrections
    serving.kubectl("scale", "deployment", "travel-serve", "--replicas=2")
    serving.wait(lambda: serving.get()["spec"]["replicas"] == 1, "a person's scaling put right")
