"""Every panel of the dashboard shows something of what the operator exports: Prometheus' own evaluator says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart import HOME, NAME, Release, release
from tests.cluster.errors import CommandFailed
from tests.cluster.processes import run
from tests.integration.test_chart_monitoring import board, promtool
from tests.life_states import states
from tests.lives import run_lives
from tests.scenarios import SCENARIOS
from tests.simulator import Cluster, make_job
from tests.unit.test_control_outcomes import count_all

from finetune_operator.control import metrics
from finetune_operator.control.cache import Cache
from finetune_operator.control.health import Health
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.control.workqueue import WorkQueue
from finetune_operator.prices import Prices
from finetune_operator.settings import Settings

__all__ = ["promtool", "release"]  # the fixtures

TARGET = {"namespace": HOME, "service": NAME, "pod": "operator-a", "instance": "10.0.0.1:8080", "job": NAME}
LEGEND = re.compile(r"\{\{(\w+)\}\}")
MINUTES = 60


def holds_gpus(cluster: Cluster) -> bool:
    run = cluster.job.status.run
    return run is not None and run.cost is not None and run.cost.gpus > 0


@cache
def scraped() -> tuple[tuple[str, dict[str, str], float, bool], ...]:
    return tuple(_exported())


def _exported() -> Iterator[tuple[str, dict[str, str], float, bool]]:
    """Name, labels, value of every series after lives of jobs in all their states, and whether it is one that grows."""
    run_lives(SCENARIOS["two runs"].world())
    money = Settings(prices=Prices("EUR", {"default": Decimal("36")}))
    count_all(Cluster(make_job(compute={"gpus": 4}), money), "counted")
    count_all(Cluster(make_job(compute={"gpus": 4}, budget={"maxGpuHours": "0.000001"})), "held")
    trains = Cluster(make_job(compute={"gpus": 4})).run(until=holds_gpus)
    cache = Cache()
    bodies = [*states().values(), {**states()["training"], "status": trains.job.status.to_wire()}]
    for number, body in enumerate(bodies):
        name = f"job-{number}"
        body["metadata"] |= {"name": name, "uid": name, "resourceVersion": "1"}
        if body.get("status", {}).get("stage") == "Train":
            body["status"]["run"]["progress"] = {"percent": 40, "trainLoss": 1.5}
        cache.store(FINE_TUNE_JOB, body)
    Health(cache, WorkQueue(), resync_seconds=300).refresh_metrics()
    metrics.LEADER.set(1)
    metrics.PROGRESS_POSTS.labels("200").inc()
    metrics.CERTIFICATE_EXPIRY.set(2e9)
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            yield sample.name, {**TARGET, **sample.labels}, sample.value, family.type != "gauge"


def inputs() -> list[dict[str, str]]:
    """As Prometheus stores them: the target's labels, and those of the series, which win (`honorLabels`)."""
    found = []
    for name, labels, value, grows in scraped():
        text = ",".join(f'{key}="{each}"' for key, each in labels.items())
        found.append({"series": f"{name}{{{text}}}", "values": f"{0 if grows else value}+{int(grows)}x{MINUTES}"})
    return found


def shows(expression: str, legend: str) -> dict[str, Any]:
    """That there is a line, and that each of its lines has all the words of its legend."""
    asked = expression.replace("$namespace", HOME).replace("$service", NAME)
    words = LEGEND.findall(legend)
    joined = f'label_join({asked}, "all", "|"{"".join(f", {chr(34)}{word}{chr(34)}" for word in words)})'
    pattern = r"\\|".join(["[^|]+"] * len(words))
    told = f'label_replace({joined}, "told", "yes", "all", "{pattern}")' if words else asked
    expected = {"labels": '{told="yes"}' if words else "{}", "value": 1}
    return {"expr": f"clamp_max(count by (told) ({told}), 1)", "eval_time": f"{MINUTES}m", "exp_samples": [expected]}


def evaluate(promtool: Path, tests: list[dict[str, Any]], folder: Path) -> None:
    """Raises CommandFailed with what was expected and what came."""
    file = folder / "dashboard.yaml"
    group = {"interval": "1m", "input_series": inputs(), "promql_expr_test": tests}
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [group]}))
    run(promtool, "test", "rules", file)


def targets(release: Release) -> list[tuple[str, str]]:
    return [(each["expr"], each["legendFormat"]) for panel in board(release)["panels"] for each in panel["targets"]]


def test_every_panel_shows_lines_with_their_legends(promtool: Path, release: Release, tmp_path: Path) -> None:
    evaluate(promtool, [shows(*target) for target in targets(release)], tmp_path)


@pytest.mark.parametrize(
    ("expression", "legend"),
    [
        ('sum(finetune_jobs{namespace="$namespace",ready="Yes"})', ""),
        ('sum(finetune_jobs{namespace="$namespace"})', "{{stage}}"),
        ("sum by (namespace, job) (finetune_gpus_held)", "{{namespace}} {{name}}"),
    ],
)
def test_a_panel_that_shows_nothing_or_nameless_lines_is_found(
    promtool: Path, tmp_path: Path, expression: str, legend: str
) -> None:
    with pytest.raises(CommandFailed, match="exp"):
        evaluate(promtool, [shows(expression, legend)], tmp_path)


def test_variables_of_the_dashboard_are_labels_of_its_series(release: Release) -> None:
    known = {(name, label) for name, labels, *_ in scraped() for label in labels}
    asked = [each["query"] for each in board(release)["templating"]["list"] if each["type"] == "query"]
    assert asked
    for query in asked:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert found
        assert found.groups() in known
