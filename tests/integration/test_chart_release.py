"""The chart on a real API server: rendered, installed, upgraded, uninstalled, installed again."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.chart import CHART, HOME, NAME, Release, objects, release
from tests.cluster.errors import CommandFailed
from tests.integration.bad_manifests import GOOD
from tests.integration.conftest import CRD_NAME, ROOT

from finetune_operator.control.environment import read_environment
from finetune_operator.prices import Prices
from finetune_operator.times import stamp

__all__ = ["release"]  # the fixture

DAY = timedelta(days=1)
HOST = f"{NAME}.{HOME}.svc"
TLS_FOLDER = "/etc/finetune-operator/tls"
COLLECTOR = "http://collector.observability:4318"
EVERYTHING = (
    "networkPolicy.jobNamespaces={team-a}",
    "networkPolicy.dnsTo[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=kube-system",
    "networkPolicy.serveFrom[0].ipBlock.cidr=10.0.0.0/8",
    "rbac.issuerDiscovery=true",
    f"tracing.endpoint={COLLECTOR}",
    "tracing.headersSecret.name=collector",
    "tracing.sampling=0.5",
    "sources.httpsHosts={data.example.com,*.corp.example.com}",
    "sources.env.HF_ENDPOINT=https://hub.example.com",
    "sources.env.NO_PROXY=a\\,b",
    "trainer.imagePullSecrets={registry}",
    "imagePullSecrets[0].name=registry",
    "podAnnotations.a=b",
    "podLabels.c=d",
    "extraEnv[0].name=HTTPS_PROXY",
    "extraEnv[0].value=http://proxy:3128",
    "priorityClassName=system-cluster-critical",
    "nodeSelector.disk=ssd",
    "tolerations[0].operator=Exists",
)


@pytest.fixture
def installed(release: Release) -> Iterator[Release]:
    """The chart with its own values, installed."""
    release.install()
    yield release
    release.uninstall()


def variables(deployment: dict[str, Any]) -> dict[str, str]:
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    return {each["name"]: each.get("value", "from the pod") for each in container["env"]}


def test_lint_is_silent(release: Release) -> None:
    assert "0 chart(s) failed" in release.run("lint", CHART, "--strict")


@pytest.mark.parametrize(
    "settings",
    [(), EVERYTHING, ("progress.enabled=false", "networkPolicy.enabled=false"), ("watchNamespaces={team-a,team-b}",)],
    ids=["default", "everything", "without progress", "two namespaces"],
)
def test_api_server_takes_what_is_rendered(release: Release, settings: tuple[str, ...]) -> None:
    release.plane.kubectl("apply", "--dry-run=server", "-f", "-", input=release.template(*settings))


def test_pod_is_admitted_under_restricted_pod_security(installed: Release) -> None:
    spec = installed.get("deployment")["spec"]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "namespace": HOME}, "spec": spec}
    installed.plane.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))
    container = spec["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", TLS_FOLDER}


def test_operator_understands_its_environment(release: Release, tmp_path: Path) -> None:
    deployment = objects(release.template(*EVERYTHING, "watchNamespaces={team-a,team-b}"), "Deployment")[0]
    given = variables(deployment)
    for part in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / part).write_text(part)
    given["FINETUNE_TRACES_HEADERS"] = "authorization=Bearer%20x"  # from its Secret
    environment = read_environment({key: text.replace(TLS_FOLDER, str(tmp_path)) for key, text in given.items()})
    settings = environment.settings
    assert environment.watch_namespaces == ("team-a", "team-b")
    assert environment.log_format == "json"
    assert settings.progress_url == f"https://{HOST}:8443"
    assert settings.progress_ca == "ca.crt"
    assert settings.trainer_image == "ghcr.io/finetune-operator/trainer:0.1.0"
    assert settings.image_pull_secrets == ("registry",)
    assert dict(settings.source_env) == {"HF_ENDPOINT": "https://hub.example.com", "NO_PROXY": "a,b"}
    assert settings.source_policy.https_hosts == ["data.example.com", "*.corp.example.com"]
    assert environment.lease
    assert environment.lease.name == NAME
    assert environment.traces
    assert (environment.traces.endpoint, environment.traces.sampling) == (f"{COLLECTOR}/v1/traces", 0.5)


def test_headers_of_traces_come_from_their_secret(release: Release) -> None:
    container = objects(release.template(*EVERYTHING), "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    (found,) = [each for each in container["env"] if each["name"] == "FINETUNE_TRACES_HEADERS"]
    assert found["valueFrom"] == {"secretKeyRef": {"name": "collector", "key": "headers"}}
    assert not [name for name in variables(objects(release.template(), "Deployment")[0]) if "TRACES" in name]


def test_every_variable_of_the_chart_is_read(release: Release) -> None:
    source = (ROOT / "operator/src/finetune_operator/control/environment.py").read_text()
    given = variables(objects(release.template(), "Deployment")[0])
    # FINETUNE_PROGRESS_CERT, _KEY and _CA are read by one expression.
    unknown = [name for name in given if name not in source and not name.startswith("FINETUNE_PROGRESS_")]
    assert not unknown


def test_prices_arrive_as_they_were_written(release: Release) -> None:
    rows = ("default=2.50", "nvidia\\.com/gpu=0", "NVIDIA-H100-80GB-HBM3=1000000")
    settings = ("prices.currency=EUR", *(f"prices.gpuHour.{row}" for row in rows))
    given = variables(objects(release.template(*settings), "Deployment")[0])
    assert read_environment({"FINETUNE_PRICES": given["FINETUNE_PRICES"]}).settings.prices == Prices(
        "EUR", {"default": Decimal("2.5"), "nvidia.com/gpu": Decimal(0), "NVIDIA-H100-80GB-HBM3": Decimal(1_000_000)}
    )
    assert "FINETUNE_PRICES" not in variables(objects(release.template(), "Deployment")[0])


def test_large_numbers_are_not_written_in_scientific_notation(release: Release) -> None:
    deployment = objects(release.template("resyncSeconds=86400", "apiBurst=10000"), "Deployment")[0]
    assert variables(deployment)["FINETUNE_RESYNC_SECONDS"] == "86400"


def test_certificate_is_for_the_service_and_signed_by_the_ca(installed: Release) -> None:
    data = {
        key: base64.b64decode(text) for key, text in installed.get("secret", f"{NAME}-progress-tls")["data"].items()
    }
    certificate, authority = (x509.load_pem_x509_certificate(data[name]) for name in ("tls.crt", "ca.crt"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert HOST in names.get_values_for_type(x509.DNSName)
    certificate.verify_directly_issued_by(authority)
    assert isinstance(certificate.public_key(), rsa.RSAPublicKey)
    ssl.create_default_context(cadata=data["ca.crt"].decode())  # what the training pods do with it


def test_upgrade_keeps_certificate_and_takes_new_values(installed: Release) -> None:
    before = installed.get("secret", f"{NAME}-progress-tls")["data"]
    installed.install("replicas=3", "logs.level=DEBUG")
    assert installed.get("secret", f"{NAME}-progress-tls")["data"] == before
    deployment = installed.get("deployment")
    assert deployment["spec"]["replicas"] == 3
    assert variables(deployment)["FINETUNE_LOG_LEVEL"] == "DEBUG"


def test_upgrade_renews_a_certificate_in_the_last_third_of_its_life(installed: Release) -> None:
    secret, mark = f"{NAME}-progress-tls", "finetune-operator.io/renew-after"
    before = installed.get("secret", secret)
    made = datetime.fromisoformat(before["metadata"]["creationTimestamp"])
    assert (
        abs(datetime.fromisoformat(before["metadata"]["annotations"][mark]) - made - timedelta(days=3650 * 2 / 3)) < DAY
    )

    installed.plane.kubectl("annotate", "secret", secret, f"{mark}-", namespace=HOME)  # as an earlier version made it
    installed.install()
    kept = installed.get("secret", secret)
    assert (kept["data"], kept["metadata"]["annotations"][mark][:10]) == (
        before["data"],
        before["metadata"]["annotations"][mark][:10],
    )

    passed = f"{mark}={stamp(made - DAY)}"
    installed.plane.kubectl("annotate", "--overwrite", "secret", secret, passed, namespace=HOME)
    installed.install()
    renewed = installed.get("secret", secret)
    assert renewed["data"].keys() == before["data"].keys()
    assert all(renewed["data"][part] != before["data"][part] for part in before["data"])
    assert datetime.fromisoformat(renewed["metadata"]["annotations"][mark]) > made + 2000 * DAY
    certificate, authority = (
        x509.load_pem_x509_certificate(base64.b64decode(renewed["data"][part])) for part in ("tls.crt", "ca.crt")
    )
    certificate.verify_directly_issued_by(authority)


def test_rollback_brings_the_former_values_and_neither_another_certificate_nor_another_definition(
    installed: Release,
) -> None:
    certificate = installed.get("secret", f"{NAME}-progress-tls")["data"]
    definition = installed.plane.kubectl.get("crd", CRD_NAME)
    installed.install("logs.level=DEBUG", "replicas=1")
    installed.run("rollback", NAME)
    deployment = installed.get("deployment")
    assert (deployment["spec"]["replicas"], variables(deployment)["FINETUNE_LOG_LEVEL"]) == (2, "INFO")
    assert installed.get("poddisruptionbudget")
    assert installed.get("secret", f"{NAME}-progress-tls")["data"] == certificate
    after = installed.plane.kubectl.get("crd", CRD_NAME)
    assert after
    assert definition
    assert after["metadata"]["uid"] == definition["metadata"]["uid"]


def test_service_selects_the_pods_and_names_their_ports(installed: Release) -> None:
    service, template = installed.get("service"), installed.get("deployment")["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert ports == {"metrics": 8080, "progress": 8443}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports


def test_uninstall_leaves_definition_and_jobs_and_reinstall_finds_them(release: Release) -> None:
    kubectl = release.plane.kubectl
    release.install()
    kubectl.wait_until(lambda: _applied(release), 30, "the definition")
    before = kubectl.get(CRD_NAME, "travel", namespace="default")
    release.uninstall()
    assert not kubectl.get("deployment", NAME, namespace=HOME)
    assert not kubectl.get("clusterrole", NAME)
    definition = kubectl.get("crd", CRD_NAME)
    assert definition
    assert "deletionTimestamp" not in definition["metadata"]
    release.install()
    after = kubectl.get(CRD_NAME, "travel", namespace="default")
    release.uninstall()
    assert before
    assert after
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def _applied(release: Release) -> bool:
    try:
        release.plane.kubectl.apply(GOOD, server_side=True)
    except CommandFailed:
        return False  # the definition is not established yet
    return True


def test_definition_can_be_left_out_or_not_kept(release: Release) -> None:
    kind = "CustomResourceDefinition"
    assert not objects(release.template("crds.enabled=false"), kind)
    (kept,) = objects(release.template(), kind)
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (dropped,) = objects(release.template("crds.keep=false"), kind)
    assert "annotations" not in dropped["metadata"]
    assert kept["spec"] == yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())["spec"]


def test_operator_may_do_its_work_and_nothing_else(installed: Release) -> None:
    for verb, resource in (("watch", "finetunejobs"), ("create", "jobs"), ("update", "deployments"), ("list", "pods")):
        assert installed.may(verb, resource, "team-a"), f"{verb} {resource}"
    for verb, resource in (("get", "secrets"), ("create", "pods"), ("delete", "finetunejobs"), ("create", "roles")):
        assert not installed.may(verb, resource, "team-a"), f"{verb} {resource}"
    assert installed.may("update", f"leases/{NAME}", HOME)
    assert not installed.may("update", "leases/another", HOME)
    assert not installed.may("get", "leases", "team-a")


def test_namespaced_install_has_no_rights_elsewhere(release: Release) -> None:
    release.install("watchNamespaces={team-a}", "rbac.aggregateRoles=false")
    try:
        assert release.may("create", "jobs", "team-a")
        assert not release.may("create", "jobs", "team-b")
        assert not release.plane.kubectl.get("clusterrole", NAME)
    finally:
        release.uninstall()


def test_no_role_has_a_wildcard_or_secrets(release: Release) -> None:
    for settings in (EVERYTHING, ("watchNamespaces={team-a}",)):
        rendered = release.template(*settings)
        for role in objects(rendered, "Role") + objects(rendered, "ClusterRole"):
            words = [word for rule in role["rules"] for part in rule.values() for word in part]
            assert "*" not in words
            assert "secrets" not in words


def test_rules_are_what_the_code_declares() -> None:
    command = [sys.executable, str(ROOT / "charts" / "generate_rbac.py"), "--check"]
    paths = os.pathsep.join(str(ROOT / part / "src") for part in ("api", "operator"))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr


def test_monitor_and_budget_are_there_when_wanted(release: Release) -> None:
    assert not objects(release.template(), "ServiceMonitor")
    (monitor,) = objects(release.template("metrics.serviceMonitor.enabled=true"), "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["port"] == "metrics"
    assert objects(release.template(), "PodDisruptionBudget")
    assert not objects(release.template("replicas=1"), "PodDisruptionBudget")


def test_image_by_digest_wins_over_its_tag(release: Release) -> None:
    digest = "sha256:" + "0" * 64
    deployment = objects(release.template(f"image.digest={digest}", "trainer.image.tag=12345678"), "Deployment")[0]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"ghcr.io/finetune-operator/operator@{digest}"
    assert variables(deployment)["FINETUNE_TRAINER_IMAGE"] == "ghcr.io/finetune-operator/trainer:12345678"


def test_notes_name_the_next_command(release: Release) -> None:
    notes = release.install()
    release.uninstall()
    assert "kubectl apply -f examples/travel/models-claim.yaml" in notes
    for word in notes.split():
        if word.startswith("examples/"):
            assert (ROOT / word).exists()


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("replica=2", "replica"),
        ("replicas=-1", "replicas"),
        ("replicas=two", "replicas"),
        ("image.repository=", "image"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=abc", "digest"),
        ("trainer.images.tag=x", "trainer"),
        ("watchNamespaces=team-a", "watchNamespaces"),
        ("watchNamespaces={Team_A}", "watchNamespaces"),
        ("crds.install=true", "crds"),
        ("crds.keep=yes-please", "keep"),
        ("sources.httpsHosts={https://example.com/x}", "httpsHosts"),
        ("sources.env.A-B=x", "env"),
        ("sources.env.RETRIES=3", "env"),
        ("progress.intervalSeconds=0", "intervalSeconds"),
        ("progress.tls.secret=x", "tls"),
        ("runHistoryLimit=21", "runHistoryLimit"),
        ("settleSeconds=-1", "settleSeconds"),
        ("serverRollouts=-1", "serverRollouts"),
        ("prices.gpuHour.default=2.5", "currency"),
        ("prices.currency=Euro", "currency"),
        ("prices.gpuHours.default=2.5", "gpuHours"),
        ("prices.gpuHour.default=-1", "gpuHour"),
        ("prices.gpuHour.default=cheap", "gpuHour"),
        ("concurrency=0", "concurrency"),
        ("logs.level=LOUD", "level"),
        ("tracing.endpoint=collector:4318", "endpoint"),
        ("tracing.endpoint=https://me:pw@collector", "endpoint"),
        ("tracing.sampling=2", "sampling"),
        ("tracing.headers=a", "tracing"),
        ("logs.format=xml", "format"),
        ("networkPolicy.apiServerPorts={0}", "apiServerPorts"),
        ("networkPolicy.prepareExcept={10.0.0.1}", "prepareExcept"),
        ("networkPolicy.serveFrom=team-a", "serveFrom"),
        ("networkPolicy.serveFrom[0].namespace=team-a", "serveFrom"),
        ("networkPolicy.metricsFrom[0].ipBlock.cidr=10.0.0.1", "metricsFrom"),
        ("networkPolicy.jobPolicies=maybe", "jobPolicies"),
        ("resources.limit.memory=1Gi", "resources"),
        ("fullnameOverride=Operator", "fullnameOverride"),
        ("podAnnotations.prometheus\\.io/scrape=true", "scrape"),  # the API server would say it of no place
        ("podLabels.team=7", "team"),
        ("serviceAccount.annotations.role=1", "role"),
        ("metrics.serviceMonitor.labels.release=5", "release"),
        ("nodeSelector.gpu=true", "gpu"),
        ("extraEnv[0].name=RETRIES,extraEnv[0].value=3", "extraEnv"),
        ("nameOverride=Operator", "nameOverride"),
    ],
)
def test_values_schema_refuses(release: Release, setting: str, field: str) -> None:
    with pytest.raises(CommandFailed, match="values don't meet the specifications of the schema") as refusal:
        release.template(setting)
    assert field in str(refusal.value)


def test_definition_goes_with_the_release_when_it_is_not_kept(release: Release) -> None:
    kubectl = release.plane.kubectl
    release.install("crds.keep=false")
    release.uninstall()
    kubectl.wait_until(lambda: not kubectl.get("crd", CRD_NAME), 30, "the end of the definition")
