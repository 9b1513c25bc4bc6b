"""Live progress: the real protocol, real projected tokens, and everybody who must not be believed."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.certificate import write_certificate
from tests.cluster.control_plane import ISSUER, ControlPlane
from tests.cluster.processes import free_ports, wait_until
from tests.operator_process import (
    GROUP,
    HOME,
    PATIENCE,
    Kubelet,
    OperatorProcess,
    children,
    job_manifest,
    make_namespace,
    prepared,
    start_operator,
    status_of,
)
from tests.simulator import good_summary

AUDIENCE = f"{GROUP}/progress"
REPORT = {
    "trainerStatus": {
        "progressPercentage": 40,
        "estimatedRemainingSeconds": 7,
        "lastUpdatedTime": "2026-01-01T00:00:00+00:00",
        "metrics": [
            {"name": "loss", "value": "1.25"},
            {"name": "current_step", "value": "40"},
            {"name": "total_steps", "value": "100"},
            {"name": "checkpoint_step", "value": "30"},
            {"name": "eval_loss", "value": "NaN"},
        ],
    }
}


@dataclass
class Setting:
    """Two jobs in training, two replicas, and the certificate of their receivers."""

    plane: ControlPlane
    namespace: str
    replicas: list[OperatorProcess]
    ports: list[int]
    ca: Path

    def token(self, job: str, audience: str = AUDIENCE) -> str:
        """A token as kubelet projects it: bound to the training pod of the job."""
        pod = Kubelet(self.plane, self.namespace).pod(f"{GROUP}/job={job},{GROUP}/stage=Train")
        flags = ("--bound-object-kind=Pod", f"--bound-object-name={pod['metadata']['name']}")
        uid = f"--bound-object-uid={pod['metadata']['uid']}"
        return self.plane.kubectl(
            "create", "token", "default", f"--audience={audience}", *flags, uid, namespace=self.namespace
        ).strip()

    def post(
        self, token: str | None, body: Any = REPORT, *, job: str = "travel", run: int = 1, replica: int = 0
    ) -> tuple[int, str]:
        """Status and text of a report."""
        path = f"/progress/v1alpha1/namespaces/{self.namespace}/jobs/{job}/runs/{run}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        request = urllib.request.Request(f"https://127.0.0.1:{self.ports[replica]}{path}", data, headers)
        context = ssl.create_default_context(cafile=str(self.ca))
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return answer.status, answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode().strip()


@pytest.fixture(scope="module")
def setting(
    control_plane_with_controllers: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setting]:
    plane = prepared(control_plane_with_controllers)
    plane.kubectl("delete", "lease", "finetune-operator", "--ignore-not-found", namespace=HOME)
    namespace = make_namespace(plane, "progress")
    folder = tmp_path_factory.mktemp("progress")
    variables = {
        **write_certificate(folder),
        "FINETUNE_WATCH_NAMESPACES": namespace,
        "FINETUNE_PROGRESS_INTERVAL_SECONDS": "1",
        "FINETUNE_LEASE_NAMESPACE": HOME,
        "FINETUNE_LEASE_SECONDS": "3",
        "POD_IP": "127.0.0.1",
    }
    ports = free_ports(2)
    made = Setting(plane, namespace, [], list(ports), folder / "tls.crt")
    try:
        for name, port in zip(("leader", "follower"), ports, strict=True):
            made.replicas.append(
                start_operator(plane, folder, name=name, **variables, FINETUNE_PROGRESS_PORT=str(port))
            )
            if name == "leader":
                made.replicas[0].wait_for_log("resync=done")
        for job in ("travel", "other"):
            plane.kubectl.apply(job_manifest(job, namespace))
            Kubelet(plane, namespace).end(f"{GROUP}/job={job},{GROUP}/stage=Prepare", good_summary("Prepare", 1))
            Kubelet(plane, namespace).run(f"{GROUP}/job={job},{GROUP}/stage=Train")
        yield made
    finally:
        for replica in made.replicas:
            replica.kill()


def progress(setting: Setting, job: str = "travel") -> dict[str, Any]:
    return status_of(setting.plane, setting.namespace, job).get("run", {}).get("progress", {})


def test_a_report_of_the_jobs_own_pod_reaches_the_status(setting: Setting) -> None:
    token = setting.token("travel")
    assert setting.post(token) == (200, "ok")
    setting.plane.kubectl.wait_until(
        lambda: progress(setting).get("percent") == 40, PATIENCE, "percent", setting.namespace
    )
    found = progress(setting)
    assert (found["step"], found["totalSteps"], found["trainLoss"]) == (40, 100, 1.25)
    assert "evalLoss" not in found
    assert "remainingSeconds" not in found, "one report has no speed; what the trainer computes is not believed"
    run = status_of(setting.plane, setting.namespace, "travel")["run"]
    assert run["checkpoint"]["step"] == 30
    assert setting.replicas[0].metric("finetune_training_percent", name="travel") == 40


def test_the_follower_passes_a_report_on(setting: Setting) -> None:
    token = setting.token("travel")
    body = {"trainerStatus": {"progressPercentage": 60, "metrics": [{"name": "current_step", "value": "60"}]}}
    wait_until(lambda: setting.post(token, body, replica=1)[0] == 200, PATIENCE, "the follower knows the leader")
    setting.plane.kubectl.wait_until(
        lambda: progress(setting).get("percent") == 60, PATIENCE, "percent", setting.namespace
    )
    assert progress(setting)["remainingSeconds"] >= 0


def claims(setting: Setting, **changes: Any) -> dict[str, Any]:
    """The claims of a good token, changed."""
    good: dict[str, Any] = jwt.decode(setting.token("travel"), options={"verify_signature": False})
    return {**good, **changes}


def signed(setting: Setting, key: Any, content: dict[str, Any]) -> str:
    kid = jwt.get_unverified_header(setting.token("travel"))["kid"]
    return jwt.encode(content, key, algorithm="RS256", headers={"kid": kid})


def test_tokens_that_prove_nothing_are_refused(setting: Setting) -> None:
    cluster_key = setting.plane.signing_key.read_text()
    own_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    unbound = setting.plane.kubectl("create", "token", "default", f"--audience={AUDIENCE}", namespace=setting.namespace)
    expired = claims(setting, iat=int(time.time()) - 900, nbf=int(time.time()) - 900, exp=int(time.time()) - 120)
    table = {
        "none": (None, "Authorization"),
        "garbage": ("garbage", "not a JSON Web Token"),
        "forged": (signed(setting, own_key, claims(setting)), "InvalidSignatureError"),
        "unsigned": (jwt.encode(claims(setting), "", algorithm="none"), "not the cluster's"),
        "expired": (signed(setting, cluster_key, expired), "expired"),
        "other audience": (setting.token("travel", audience=ISSUER), "InvalidAudienceError"),
        "other issuer": (signed(setting, cluster_key, claims(setting, iss="https://x")), "InvalidIssuerError"),
        "not bound to a pod": (unbound.strip(), "not bound to a pod"),
    }
    for what, (token, reason) in table.items():
        status, text = setting.post(token)
        assert status == 401, what
        assert reason in text, what


def test_a_pod_reports_on_its_own_job_and_run_only(setting: Setting) -> None:
    token = setting.token("other")
    assert setting.post(token, job="travel")[0] == 403
    assert setting.post(token, job="other", run=2)[0] == 403
    assert setting.post(token, job="absent")[0] == 403
    assert setting.post(token, job="other") == (200, "ok")


def test_a_pod_that_is_gone_or_unknown_is_not_found(setting: Setting) -> None:
    pod = setting.token("other")
    content = jwt.decode(pod, options={"verify_signature": False})
    content["kubernetes.io"]["pod"]["uid"] = "00000000-0000-0000-0000-000000000000"
    stale = signed(setting, setting.plane.signing_key.read_text(), content)
    assert setting.post(stale, job="other")[0] == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"trainerStatus": 1}', 400),
        (b'{"trainerStatus": {"metrics": "x"}}', 400),
        (b"[" * 60_000, 400),
        (b'{"trainerStatus": {"x": "' + b"y" * 70_000 + b'"}}', 413),
        (json.dumps({"trainerStatus": {"metrics": [{"name": "a", "value": "1"}] * 300}}).encode(), 400),
    ],
)
def test_bodies_that_are_no_reports_are_refused(setting: Setting, body: bytes, status: int) -> None:
    assert setting.post(setting.token("other"), body, job="other")[0] == status


def test_a_renewed_certificate_is_taken_up_without_a_restart(setting: Setting) -> None:
    token = setting.token("other")
    write_certificate(setting.ca.parent)

    def trusted() -> bool:
        try:
            return all(setting.post(token, job="other", replica=number) == (200, "ok") for number in (0, 1))
        except urllib.error.URLError:
            return False  # still the old certificate, which the new authority did not sign

    wait_until(trusted, PATIENCE, "the new certificate in both replicas, and between them")
    setting.plane.kubectl.apply(job_manifest("later", setting.namespace))
    setting.plane.kubectl.wait_until(
        lambda: setting.plane.kubectl.get("configmap", "later-r1", setting.namespace), PATIENCE, "the run's ConfigMap"
    )
    found = setting.plane.kubectl.get("configmap", "later-r1", setting.namespace) or {}
    assert found["data"]["ca.crt"] == setting.ca.read_text()
    setting.plane.kubectl("delete", "finetunejob", "later", namespace=setting.namespace)
    setting.plane.kubectl.wait_until(
        lambda: len(children(setting.plane, setting.namespace)) == 6, PATIENCE, "its end", setting.namespace
    )


def test_no_token_and_no_text_of_a_report_is_logged(setting: Setting) -> None:
    token = setting.token("other")
    setting.post(token, {"trainerStatus": {"metrics": [{"name": "SECRET-TEXT", "value": "SECRET-TEXT"}]}}, job="other")
    setting.post(token + "x", job="other")
    for replica in setting.replicas:
        log = replica.component.log.read_text()
        assert "SECRET-TEXT" not in log
        assert token.rpartition(".")[2][:20] not in log
    assert len(children(setting.plane, setting.namespace)) == 6
