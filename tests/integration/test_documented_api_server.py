"""What the pages tell to type that needs an API server and no node, typed: word for word, with what it must show."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from tests import documented
from tests.chart import NAME, Release, release
from tests.cluster.errors import CommandFailed
from tests.cluster.processes import run
from tests.documented import API_SERVER, ROOT
from tests.integration.bad_manifests import GOOD, merged

from finetune_api.conditions import Stage
from finetune_operator import names

__all__ = ["release"]  # the fixture

COMMANDS = documented.commands(API_SERVER)
JOB, TIME = "travel", "2026-01-01T00:00:00Z"
FAILURE = {"reason": "DatasetInvalid", "stage": "Prepare", "message": "line 4 is broken", "waiting": False}
POLLED = {"type": "DatasetPolled", "status": "False", "reason": "SourceUnavailable", "message": "no such bucket"}
SCHEDULED = {"type": "Scheduled", "status": "False", "reason": "ScheduleInvalid", "message": "no such zone"}
STATUS = {
    "run": {
        **{"number": 2, "hash": "a", "trigger": "Created", "failure": FAILURE},
        "dataset": {"problems": [{"check": "empty_answer", "count": 1, "lines": [4]}]},
        "cost": {"gpuHours": "1.50"},
    },
    "conditions": [{**each, "lastTransitionTime": TIME} for each in (SCHEDULED, POLLED)],
    "runs": [{"number": 17, "hash": "a", "trigger": "Created", "result": "Failed"}],
}
# What must be in the output of a command that has these words; of several the longest counts.
TELLS = {
    "helm install": "Next, a first job",
    "helm upgrade": "REVISION: 2",
    "helm template": f"{NAME}-prepare",
    "rollout restart": "restarted",
    "patch finetunejob": "patched",
    "argocd-cm": "patched",
    "get finetunejobs": JOB,
    "{.status.run.failure}": "line 4 is broken",
    "{.status.run.failure.message}": "line 4 is broken",
    "{.status.run.dataset.problems}": "empty_answer",
    "{.status.run.cost}": "1.50",
    "{.status.runs[*].number}": "17",
    ".status.conditions": "no such zone",
    '.status.conditions[?(@.type=="DatasetPolled")]': "no such bucket",
    "get nodes": "the-node",
    "get pods": "the-pod",
    "describe finetunejob": JOB,
    "describe pods": "the-pod",
    "get persistentvolumeclaims": "the-claim",
    "get jobs": "the-job",
    "get jobs,deployments,services,configmaps": "the-job",
    "describe resourcequota": "the-quota",
    "get events --field-selector reason=FailedCreate": "the-refusal",
}


def made(kind: str, name: str, version: str = "v1", **parts: Any) -> dict[str, Any]:
    labels = names.labels(JOB, 2, Stage.TRAIN)
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **parts}


POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "x"}]}
THERE = (
    {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "the-node"}},
    made("ServiceAccount", "default"),
    made("Pod", "the-pod", spec=POD),
    made("Job", "the-job", "batch/v1", spec={"template": {"spec": POD}}),
    made("ResourceQuota", "the-quota", spec={"hard": {"pods": "9"}}),
    made(
        "PersistentVolumeClaim",
        "the-claim",
        spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    ),
    made(
        "Event", "the-event", reason="FailedCreate", message="the-refusal", type="Warning",
        involvedObject={"kind": "Job", "name": "the-job", "namespace": "default"},
    ),
)  # fmt: skip


def type_in(release: Release, text: str) -> str:
    path = {"PATH": f"{release.plane.assets}:{release.helm.parent}:{os.environ['PATH']}"}
    return run("bash", "-c", text, cwd=ROOT, env={**release.plane.kubectl.environment(), **path}, timeout=120)


@pytest.fixture(scope="module")
def installed(release: Release) -> Release:
    """As the chart's own page says; with a job, and with what the commands look at."""
    [install] = [command for command in COMMANDS if command.text.startswith("helm install")]
    assert TELLS["helm install"] in type_in(release, install.text)
    kubectl = release.plane.kubectl
    for namespace in ("team-a", "argocd"):
        kubectl.make_namespace(namespace)
    configuration = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm", "namespace": "argocd"}}
    for each in (configuration, *THERE):  # the pod needs its account
        kubectl.apply(each)
    job = merged(GOOD, {"metadata": {"name": JOB, "namespace": "default"}})

    def applied() -> bool:
        try:
            return bool(kubectl.apply(job))
        except CommandFailed:
            return False  # the definition is not established yet

    kubectl.wait_until(applied, 30, "the definition")
    words = ("patch", "finetunejob", JOB, "--subresource=status", "--type=merge", "-p", json.dumps({"status": STATUS}))
    kubectl(*words, namespace="default")
    return release


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if not each.text.startswith("helm install")], ids=lambda command: command.text
)
def test_a_documented_command_shows_what_it_is_for(installed: Release, command: documented.Command) -> None:
    words = [part for part in TELLS if part in command.text]
    assert words, f"{command.page}: `{command.text}`: say in TELLS what it prints"
    output = type_in(installed, command.meant(NAME=JOB).text)
    assert TELLS[max(words, key=len)] in output
    assert not documented.lacks(output, command), output
