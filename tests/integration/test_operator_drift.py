"""Somebody changes the served Deployment or Service: it is put right, and nothing is fought over."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Sequence
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
    running_operator,
    status_of,
    wait_idle,
)
from tests.simulator import good_summary
from tests.single_life import living

from finetune_operator.control import apply, metrics
from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.apply import CORRECTIONS_AT_ONCE

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


def test_another_image_is_put_right(serving: Serving) -> None:
    image = serving.image()
    serving.kubectl("set", "image", "deployment/travel-serve", "main=example.com/other:1")
    serving.wait(lambda: serving.image() == image, "the image put right")
    Kubelet(serving.plane, serving.namespace).run(SERVER)
    serving.wait(serving.ready, "Ready again")


def served(plane: ControlPlane, namespace: str, folder: Path) -> str:
    """The image of a server that an operator made in a new namespace before it was killed."""
    make_namespace(plane, namespace)
    with running_operator(plane, folder, name="first", **variables(namespace)) as operator:
        plane.kubectl.apply(job_manifest("travel", namespace))
        kubelet = Kubelet(plane, namespace)
        for stage in ("Prepare", "Train", "Evaluate"):
            kubelet.end(f"{GROUP}/job=travel,{GROUP}/stage={stage}", good_summary(stage, 1))
        kubelet.run(SERVER)
        made = Serving(plane, namespace, operator)
        made.wait(made.ready, "Ready")
        wait_idle(operator)
        return made.image()


def image_of(plane: ControlPlane, namespace: str) -> str:
    found = plane.kubectl.get("deployment", "travel-serve", namespace) or {}
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])


def set_image(plane: ControlPlane, namespace: str, image: str) -> None:
    plane.kubectl("set", "image", "deployment/travel-serve", f"main={image}", namespace=namespace)


def test_what_was_changed_while_nobody_watched_is_put_right(plane: ControlPlane, tmp_path: Path) -> None:
    image = served(plane, "drift-away", tmp_path)
    set_image(plane, "drift-away", "example.com/other:1")
    with running_operator(plane, tmp_path, name="second", **variables("drift-away")) as second:
        plane.kubectl.wait_until(
            lambda: image_of(plane, "drift-away") == image, PATIENCE, "the image put right", "drift-away"
        )
        assert second.metric("finetune_corrections_total", result="corrected") == 1


class Admission(Api):
    """The API server with a webhook before it that takes images from a mirror."""

    image = ""
    conflicts = 0

    async def request(self, method: str, path: str, label: str, **rest: Any) -> dict[str, Any]:
        body = rest.get("body")
        if self.image and method in ("POST", "PUT") and label == "deployments":
            body = copy.deepcopy(body)
            body["spec"]["template"]["spec"]["containers"][0]["image"] = self.image
        try:
            return await super().request(method, path, label, **{**rest, "body": body})
        except ApiError as error:
            self.conflicts += error.status == 409 and label == "deployments"
            raise


def passes(plane: ControlPlane, namespace: str, image: str, disturb: Sequence[str]) -> list[tuple[str, str]]:
    """What one process has in the Deployment, and says of Ready, after a pass; then after each image that somebody
    else sets and another pass. Admission sets `image`."""

    async def live() -> list[tuple[str, str]]:
        seen = []
        async with living(plane, namespace, Admission) as life:
            life.api.image = image
            for other in ("", *disturb):
                if other:
                    await asyncio.to_thread(set_image, plane, namespace, other)
                conflicts = -1
                while life.api.conflicts > conflicts:  # the Deployment controller wrote between our list and our write
                    conflicts = life.api.conflicts
                    await life.read()
                    await life.pass_over()
                ready = condition(status_of(plane, namespace, "travel"), "Ready")[1]
                seen.append((image_of(plane, namespace), ready))
        return seen

    return asyncio.run(live())


def corrections(result: str) -> float:
    return (
        metrics.REGISTRY.get_sample_value("finetune_corrections_total", {"resource": "deployments", "result": result})
        or 0
    )


def test_admission_is_accepted_and_another_controller_is_not_fought(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "CORRECTION_SECONDS", 3600.0)  # on a busy machine the test may take minutes
    image, namespace = served(plane, "drift-admission", tmp_path), "drift-admission"
    # Ready stays: what our own write becomes is what was wanted. The server's pod has the mirror's image long since.
    kubelet = Kubelet(plane, namespace)
    old = kubelet.pod(SERVER)["metadata"]["labels"]["pod-template-hash"]
    set_image(plane, namespace, "mirror.example.com/trainer")
    kubelet.run(f"{SERVER},pod-template-hash!={old}")
    plane.kubectl("rollout", "status", "deployment/travel-serve", "--timeout=60s", namespace=namespace)
    before = corrections("corrected")
    assert passes(plane, namespace, "mirror.example.com/trainer", []) == [("mirror.example.com/trainer", "Serving")]
    assert corrections("corrected") == before + 1
    # Somebody who insists is let be.
    others = [f"example.com/other:{number}" for number in range(CORRECTIONS_AT_ONCE + 1)]
    seen = [found for found, _ in passes(plane, namespace, "", others)]
    assert seen == [*[image] * CORRECTIONS_AT_ONCE, *others[-2:]]
    assert corrections("fought_over") == 2


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
