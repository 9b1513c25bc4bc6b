"""The API server fixture itself: it starts, answers, keeps its rules, and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import jwt
import pytest
from tests.cluster.control_plane import ISSUER, ControlPlane, start_control_plane
from tests.cluster.errors import CommandFailed, Unavailable, WaitTimeout
from tests.cluster.fixtures import leave_out
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import start, wait_until


def test_namespace_is_made_and_read_back(control_plane: ControlPlane) -> None:
    control_plane.kubectl.make_namespace("cluster-check")
    found = control_plane.kubectl.get("namespace", "cluster-check")
    assert found is not None
    assert found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_developer_may_do_nothing_until_a_role_is_bound(control_plane: ControlPlane) -> None:
    developer = Kubectl(control_plane.assets / "kubectl", control_plane.kubeconfig_of("developer"))
    with pytest.raises(CommandFailed, match="Forbidden"):
        developer("get", "configmaps", namespace="default")


def test_service_account_tokens_are_verifiable_with_the_published_keys(control_plane: ControlPlane) -> None:
    kubectl = control_plane.kubectl
    kubectl("create", "serviceaccount", "speaker", namespace="default")
    token = kubectl("create", "token", "speaker", "--audience=tests", namespace="default").strip()
    keys = jwt.PyJWKSet.from_json(control_plane.request("/openid/v1/jwks").decode())
    claims = jwt.decode(token, keys.keys[0].key, algorithms=["RS256"], audience="tests", issuer=ISSUER)
    assert claims["sub"] == "system:serviceaccount:default:speaker"


def test_nothing_is_left_after_stop() -> None:
    try:
        plane = start_control_plane()
    except Unavailable as error:
        leave_out(error)
    pids = [component.pid for component in plane.components]
    plane.stop()
    assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]
    assert not plane.folder.exists()


def test_incomplete_assets_are_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(Unavailable, match=r"lacks kube-apiserver, kubectl; unset it"):
        start_control_plane()


def test_without_go_the_reason_says_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("FINETUNE_TEST_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="Go is not installed: install Go"):
        start_control_plane()


def test_a_wait_that_is_over_shows_the_log(tmp_path: Path) -> None:
    component = start("talker", ["sh", "-c", "echo what went wrong; exec sleep 60"], tmp_path)
    try:
        wait_until(lambda: "wrong" in component.tail(), 20, "the first line")
        with pytest.raises(WaitTimeout, match="what went wrong"):
            wait_until(lambda: False, 0, "nothing", component.tail)
    finally:
        component.end()
    assert not component.running()
    assert not os.path.exists(f"/proc/{component.pid}")
