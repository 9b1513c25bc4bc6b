"""Alerts, dashboard, mirrors: what the chart says of the operator is true of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart import CHART, HOME, NAME, Release, objects, release
from tests.cluster import binaries
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.fixtures import leave_out
from tests.cluster.processes import run
from tests.integration.alert_cases import CASES
from tests.integration.conftest import ROOT

from finetune_api.reasons import REASONS, Blame
from finetune_operator.control import metrics

__all__ = ["release"]  # the fixture

MONITORED = (
    "metrics.serviceMonitor.enabled=true",
    "metrics.prometheusRule.enabled=true",
    "metrics.dashboard.enabled=true",
)
METRIC = re.compile(r"\b((?:finetune|process)_\w+)")
RUNBOOK = (ROOT / "docs" / "operations-runbook.md").read_text()


SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def exported() -> dict[str, set[str]]:
    """The labels of every series that the operator can export, by its name."""
    labels = {each._name: set(each._labelnames) for each in vars(metrics).values() if hasattr(each, "_labelnames")}
    found = {}
    for family in metrics.REGISTRY.collect():
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = labels.get(family.name, set()) | ({"le"} if suffix == "_bucket" else set())
    return found


def rules(release: Release, *settings: str) -> list[dict[str, Any]]:
    (rule,) = objects(release.template(*MONITORED, *settings), "PrometheusRule")
    return list(rule["spec"]["groups"][0]["rules"])


def board(release: Release) -> dict[str, Any]:
    (config_map,) = objects(release.template("metrics.dashboard.enabled=true"), "ConfigMap")
    return dict(json.loads(config_map["data"]["finetune-operator.json"]))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    else:
        yield path


def test_alerts_and_panels_ask_for_series_that_there_are(release: Release) -> None:
    known = exported()
    asked = [rule["expr"] for rule in rules(release)]
    asked += [target["expr"] for panel in board(release)["panels"] for target in panel["targets"]]
    assert len(asked) > 25
    for expression in asked:
        names = METRIC.findall(expression)
        assert names, expression
        assert not set(names) - set(known), expression
        labels = {label for name in names for label in known[name]} | {"namespace", "service"}
        used = re.findall(r"(\w+)(?:=~|!=|=)\"", expression)
        used += [word for group in re.findall(r"by \(([^)]*)\)", expression) for word in group.split(", ")]
        assert not set(used) - labels, expression


def test_every_alert_has_its_entry_in_the_runbook_and_a_sentence(release: Release) -> None:
    found = rules(release)
    assert re.findall(r"^### (Finetune\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in found]
    for rule in found:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")


def test_alerts_are_about_this_release_and_as_patient_as_the_values_say(release: Release) -> None:
    found = {
        rule["alert"]: rule for rule in rules(release, "metrics.prometheusRule.waitingFor=6h", "resyncSeconds=600")
    }
    assert found["FinetuneJobsWaiting"]["expr"].endswith("> 21600")
    assert "> 2700" in found["FinetuneListsStale"]["expr"]
    for name, rule in found.items():
        selectors = re.findall(r"(?:finetune|process)_\w+\{([^}]*)\}", rule["expr"])
        assert selectors, name
        assert all(f'namespace="{HOME}",service="{NAME}"' in each for each in selectors), name


def test_who_runs_the_cluster_is_told_of_its_own_reasons_only(release: Release) -> None:
    (rule,) = (rule for rule in rules(release) if rule["alert"] == "FinetuneJobsStalled")
    told = re.search(r'reason=~"([^"]*)"', rule["expr"])
    assert told
    own = {reason.value for reason, facts in REASONS.items() if facts.blame is Blame.CLUSTER and not facts.waits}
    assert set(told[1].split("|")) == own


def test_who_runs_the_cluster_is_told_of_every_wait_that_its_author_cannot_end(release: Release) -> None:
    (rule,) = (rule for rule in rules(release) if rule["alert"] == "FinetuneJobsWaiting")
    left_out = re.search(r'reason!~"([^"]*)"', rule["expr"])
    assert left_out
    authors = {reason.value for reason, facts in REASONS.items() if facts.waits and facts.blame is not Blame.CLUSTER}
    assert set(left_out[1].split("|")) == authors | {"Queued"}


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return binaries.promtool()
    except Unavailable as error:
        leave_out(error)
        raise


def test_prometheus_takes_the_rules(promtool: Path, release: Release, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(grouped(rules(release))))
    assert f"SUCCESS: {len(rules(release))} rules found" in run(promtool, "check", "rules", "--lint=all", file)


def test_every_alert_is_seen_to_fire_and_not_to_fire(release: Release) -> None:
    for fires in (True, False):
        seen = {case.alert for case in CASES if (case.says is not None) is fires}
        assert seen == {rule["alert"] for rule in rules(release)}


def grouped(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Rules as Prometheus reads them from a file."""
    return {"groups": [{"name": NAME, "rules": found}]}


def evaluate(promtool: Path, found: list[dict[str, Any]], folder: Path) -> None:
    """All cases by Prometheus itself. Raises CommandFailed with what was expected and what came."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(grouped(found)))
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in found}
    tests = [case.to_test(severity[case.alert]) for case in CASES]
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    run(promtool, "test", "rules", file)


def test_alerts_fire_when_they_should_and_only_then(promtool: Path, release: Release, tmp_path: Path) -> None:
    evaluate(promtool, rules(release), tmp_path)


def test_an_alert_that_never_fires_is_found(promtool: Path, release: Release, tmp_path: Path) -> None:
    broken = rules(release)
    (rule,) = (rule for rule in broken if rule["alert"] == "FinetuneQueueOld")
    rule["expr"] = "max(finetune_queue_oldest_second) > 120"
    with pytest.raises(CommandFailed, match="FinetuneQueueOld: a job waits"):
        evaluate(promtool, broken, tmp_path)


def test_series_of_jobs_keep_their_own_namespace(release: Release) -> None:
    (monitor,) = objects(release.template(*MONITORED), "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["honorLabels"] is True


def test_api_server_takes_the_dashboard(release: Release) -> None:
    text = release.template("metrics.dashboard.enabled=true", "metrics.dashboard.labels.folder=ml")
    release.plane.kubectl("apply", "--dry-run=server", "-f", "-", input=text)
    (found,) = (each for each in objects(text, "ConfigMap") if each["metadata"]["name"] == f"{NAME}-dashboard")
    assert {"grafana_dashboard", "folder"} <= set(found["metadata"]["labels"])


@pytest.mark.parametrize(
    ("registry", "repository", "image"),
    [
        ("", "ghcr.io/finetune-operator/operator", "ghcr.io/finetune-operator/operator"),
        ("registry.corp:5000", "ghcr.io/finetune-operator/operator", "registry.corp:5000/finetune-operator/operator"),
        ("registry.corp/mirror", "localhost/operator", "registry.corp/mirror/operator"),
        ("registry.corp", "library/operator", "registry.corp/library/operator"),
        ("registry.corp", "operator", "registry.corp/operator"),
    ],
)
def test_one_value_takes_all_images_from_a_mirror(release: Release, registry: str, repository: str, image: str) -> None:
    text = release.template(
        f"imageRegistry={registry}", *(f"{each}image.repository={repository}" for each in ("", "trainer.", "vllm."))
    )
    (deployment,) = objects(text, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    given = {each["name"]: each.get("value", "") for each in container["env"]}
    images = [container["image"], given["FINETUNE_TRAINER_IMAGE"], given["FINETUNE_VLLM_IMAGE"]]
    assert [each.rpartition(":")[0] for each in images] == [image] * 3


@pytest.mark.parametrize(
    "setting", ["imageRegistry=https://registry.corp", "vllm.image.tag=", "metrics.prometheusRule.waitingFor=long"]
)
def test_values_that_cannot_be_are_refused(release: Release, setting: str) -> None:
    with pytest.raises(CommandFailed, match="values don't meet the specifications of the schema"):
        release.template(setting)


def test_every_value_is_used_and_in_the_schema() -> None:
    templates = "".join(
        path.read_text() for path in sorted((CHART / "templates").rglob("*.*")) if "crds" not in path.parts
    )
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        prefixes = [".".join(path[:length]) for length in range(1, len(path) + 1)]
        assert any(re.search(rf"\.Values\.{re.escape(each)}\b", templates) for each in prefixes), path
        node = schema
        for key in path:
            node = (node.get("properties") or {}).get(key) or node.get("additionalProperties") or node
            assert isinstance(node, dict), path
