"""The chart and helm, for the tests of both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane, start_control_plane
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.processes import run

CHART = Path(__file__).parents[1] / "charts" / "finetune-operator"
NAME = "finetune-operator"
HOME = "finetune-system"


@dataclass(frozen=True)
class Release:
    """Helm for one cluster."""

    plane: ControlPlane
    helm: Path
    home: str = HOME

    def run(self, *words: str | Path, **values: str) -> str:
        """A helm command in the operator's namespace."""
        flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]
        command = [self.helm, *words, "--namespace", self.home, *flags]
        return run(*command, env=self.plane.kubectl.environment(), timeout=120)

    def template(self, *settings: str) -> str:
        """The manifests, as text."""
        flags = [flag for setting in settings for flag in ("--set", setting)]
        return self.run("template", NAME, CHART, "--kube-version", binaries.KUBERNETES, *flags)

    def install(self, *settings: str) -> str:
        """`helm upgrade --install`; returns the notes."""
        flags = [flag for setting in settings for flag in ("--set", setting)]
        return self.run("upgrade", "--install", NAME, CHART, *flags)

    def uninstall(self) -> None:
        self.run("uninstall", NAME)

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether the operator's service account may."""
        account = f"--as=system:serviceaccount:{self.home}:{NAME}"
        try:
            return self.plane.kubectl("auth", "can-i", verb, resource, account, namespace=namespace).strip() == "yes"
        except CommandFailed:
            return False  # "no" is also the exit code

    def get(self, kind: str, name: str = NAME) -> dict[str, Any]:
        """One object of the operator's namespace."""
        found = self.plane.kubectl.get(kind, name, namespace=self.home)
        assert found, f"no {kind} {name}"
        return dict(found)


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    """An API server of its own: the definition must come from the chart, not from another test."""
    try:
        helm = binaries.helm()
        plane = start_control_plane()
    except Unavailable as error:
        if os.environ.get("FINETUNE_REQUIRE_CLUSTER") == "1":
            raise
        pytest.skip(str(error))
    for namespace in (HOME, "team-a", "team-b"):
        plane.kubectl.make_namespace(namespace)
    yield Release(plane, helm)
    plane.stop()


def objects(text: str, kind: str | None = None) -> list[dict[str, Any]]:
    found = [each for each in yaml.safe_load_all(text) if each]
    return [each for each in found if kind in (None, each["kind"])]
