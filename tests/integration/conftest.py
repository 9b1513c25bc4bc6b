"""The API server with the FineTuneJob in it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import control_plane, control_plane_with_controllers
from tests.integration.bad_manifests import GOOD
from tests.operator_process import prepared

__all__ = ["control_plane", "control_plane_with_controllers"]

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "finetunejobs.yaml"
CRD_NAME = "finetunejobs.finetune-operator.io"


@dataclass(frozen=True)
class Answer:
    """What the API server said: the object, or why not."""

    code: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The message of a refusal."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class JobApi:
    """Raw requests about FineTuneJobs: 200 of them a second, where kubectl makes five."""

    plane: ControlPlane

    def send(self, method: str, path: str, body: Any, content_type: str = "application/json") -> Answer:
        """One request, with unknown fields refused, as kubectl does."""
        separator = "&" if "?" in path else "?"
        request = urllib.request.Request(
            f"{self.plane.url}{path}{separator}fieldValidation=Strict",
            data=json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self.plane.token}", "Content-Type": content_type},
        )
        context = ssl.create_default_context(cafile=str(self.plane.ca))
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return Answer(answer.status, json.loads(answer.read()))
        except urllib.error.HTTPError as refusal:
            text = refusal.read()
            return Answer(refusal.code, json.loads(text) if text.startswith(b"{") else {"message": text.decode()})

    def collection(self, namespace: str) -> str:
        """The path of a namespace's jobs."""
        return f"/apis/finetune-operator.io/v1alpha1/namespaces/{namespace}/finetunejobs"

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = True) -> Answer:
        """Creates a job, or only asks whether it could be."""
        namespace = manifest["metadata"].get("namespace", "default")
        return self.send("POST", self.collection(namespace) + ("?dryRun=All" if dry_run else ""), manifest)


@pytest.fixture(scope="module")
def plane(control_plane_with_controllers: ControlPlane) -> ControlPlane:
    """The API server with its controllers, as an operator needs it."""
    return prepared(control_plane_with_controllers)


@pytest.fixture(scope="session")
def job_api(control_plane: ControlPlane) -> JobApi:
    """The shared API server, with the CRD of the repository established."""
    control_plane.kubectl("apply", "--server-side", "-f", CRD)
    api = JobApi(control_plane)
    control_plane.kubectl.wait_until(lambda: api.create(GOOD).code == 201, 60, "the API server to take a FineTuneJob")
    return api
