"""The node fixture itself: what the end-to-end tests build on is shown to work, each thing alone."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.environment import Cluster
from tests.cluster.kubectl import Kubectl
from tests.e2e.manifests import pod_spec

SERVER = "import http.server as h; h.ThreadingHTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
# A Service answers only some time after its pod is Ready: kube-proxy writes its rules at most once a second (its own
# default), and refuses until then. So the caller asks until it is answered, for half a minute.
CALLER = """
import time, urllib.request
deadline = time.monotonic() + 30
while True:
    try:
        print(urllib.request.urlopen("{url}", timeout=5).status)
        break
    except OSError as error:
        print(type(error).__name__, error, flush=True)
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def namespace(node_cluster: Cluster) -> Iterator[str]:
    yield node_cluster.kubectl.make_namespace("node-check", pod_security="restricted")
    node_cluster.kubectl("delete", "namespace", "node-check", "--wait=false")


def job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template},
    }


def expect(kubectl: Kubectl, name: str, namespace: str, end: str = "Complete") -> None:
    """Waits for the Job's end, which must be this one; tells its pod's log and events when it is the other."""

    def ended() -> str:
        status = (kubectl.get("job", name, namespace=namespace) or {}).get("status", {})
        true = [each["type"] for each in status.get("conditions", []) if each["status"] == "True"]
        return next((each for each in true if each in ("Complete", "Failed")), "")

    assert kubectl.wait_until(ended, 120, f"Job {name}", namespace) == end, kubectl.explain(namespace)


def terminated(kubectl: Kubectl, name: str, namespace: str) -> dict[str, Any]:
    """How the container of the Job's first pod ended."""
    pod = kubectl.json("get", "pods", "-l", f"app={name}", namespace=namespace)["items"][0]
    ended: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return ended


def test_job_writes_to_its_claim_and_leaves_a_termination_message(
    node_cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "input.txt").write_text("from the host")
    node_cluster.claim(tmp_path, namespace, "data")
    script = (
        "text = open('/data/input.txt').read(); open('/data/output.txt', 'w').write(text.upper());"
        "open('/dev/termination-log', 'w').write('wrote ' + text); print('a line of log')"
    )
    spec = pod_spec(node_cluster.python_image(), script, volumeMounts=[{"name": "data", "mountPath": "/data"}])
    spec["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    kubectl = node_cluster.kubectl
    kubectl.apply(job("writer", spec), namespace=namespace)
    expect(kubectl, "writer", namespace)
    assert terminated(kubectl, "writer", namespace)["message"] == "wrote from the host"
    assert kubectl("logs", "job/writer", namespace=namespace) == "a line of log\n"
    if node_cluster.is_local:
        assert (tmp_path / "output.txt").read_text() == "FROM THE HOST"


def test_service_answers_by_name_and_through_port_forward(node_cluster: Cluster, namespace: str) -> None:
    kubectl, image = node_cluster.kubectl, node_cluster.python_image()
    probe = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    spec = pod_spec(image, SERVER, readinessProbe=probe, workingDir="/etc/ssl")
    metadata = {"name": "web", "labels": {"app": "web"}}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, namespace=namespace)
    ports = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": ports}
    kubectl.apply(service, namespace=namespace)
    kubectl("wait", "pod/web", "--for=condition=Ready", "--timeout=90s", namespace=namespace, timeout=100)

    script = CALLER.format(url=f"http://web.{namespace}.svc.cluster.local/")
    kubectl.apply(job("caller", pod_spec(image, script)), namespace=namespace)
    expect(kubectl, "caller", namespace)
    assert kubectl("logs", "job/caller", namespace=namespace).splitlines()[-1] == "200"
    assert kubectl("exec", "web", "--", "id", "-u", namespace=namespace).strip() == "65532"
    with (
        kubectl.port_forward("service/web", 80, namespace) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer,
    ):
        assert answer.status == 200


def test_too_much_memory_is_named_oomkilled(node_cluster: Cluster, namespace: str) -> None:
    limits = {"limits": {"memory": "48Mi"}, "requests": {"memory": "48Mi"}}
    spec = pod_spec(node_cluster.python_image(), "x = bytearray(10**9); print(len(x))", resources=limits)
    kubectl = node_cluster.kubectl
    kubectl.apply(job("greedy", spec), namespace=namespace)
    expect(kubectl, "greedy", namespace, "Failed")
    ended = terminated(kubectl, "greedy", namespace)
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_a_privileged_pod_is_refused(node_cluster: Cluster, namespace: str) -> None:
    spec = pod_spec(node_cluster.python_image(), "pass", securityContext={"privileged": True})
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "privileged"}, "spec": spec}
    with pytest.raises(Exception, match="violates PodSecurity"):
        node_cluster.kubectl.apply(pod, namespace=namespace)


def test_a_pod_waits_for_a_gpu_and_runs_when_there_is_one(node_cluster: Cluster, namespace: str) -> None:
    if not node_cluster.is_local:
        pytest.skip("GPUs are only pretended on the built-in node")
    kubectl = node_cluster.kubectl
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    kubectl.apply(job("gpu", pod_spec(node_cluster.python_image(), "print('ran')", resources=gpu)), namespace=namespace)

    def unschedulable() -> str:
        pods = kubectl.json("get", "pods", "-l", "app=gpu", namespace=namespace)["items"]
        conditions = [each for pod in pods for each in pod["status"].get("conditions", [])]
        return next((each["message"] for each in conditions if each.get("reason") == "Unschedulable"), "")

    message = kubectl.wait_until(unschedulable, 60, "the scheduler's refusal", namespace)
    assert "Insufficient nvidia.com/gpu" in message
    node_cluster.set_gpus(1)
    expect(kubectl, "gpu", namespace)


def test_a_projected_token_has_our_audience(node_cluster: Cluster, namespace: str) -> None:
    script = (
        "import base64, json; body = open('/token/token').read().split('.')[1];"
        "print(base64.urlsafe_b64decode(body + '=' * (-len(body) % 4)).decode())"
    )
    spec = pod_spec(node_cluster.python_image(), script, volumeMounts=[{"name": "token", "mountPath": "/token"}])
    token = {"serviceAccountToken": {"audience": "tests", "path": "token", "expirationSeconds": 600}}
    spec["volumes"] = [{"name": "token", "projected": {"sources": [token]}}]
    kubectl = node_cluster.kubectl
    kubectl.apply(job("token", spec), namespace=namespace)
    expect(kubectl, "token", namespace)
    claims = json.loads(kubectl("logs", "job/token", namespace=namespace))
    assert claims["aud"] == ["tests"]
    assert claims["kubernetes.io"]["pod"]["name"].startswith("token-")
