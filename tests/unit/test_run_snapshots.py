"""A run's snapshot outlives the version that wrote it: what was recorded once stays readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.simulator import Cluster, make_job

from finetune_api.conditions import FailureReason
from finetune_api.job import evaluation_hash
from finetune_api.run_config import RunConfig
from finetune_operator.builders.run_config_map import UnreadableError, parse_run_config, read_run_config
from finetune_trainer import frame

RECORDS = sorted((Path(__file__).parents[1] / "golden").glob("run-v*.json"))  # one of each release; never edited


def as_config_map(content: Any) -> dict[str, Any]:
    return {"metadata": {"name": "travel-r3"}, "data": {"run.json": json.dumps(content)}}


def with_unknown_fields(value: Any) -> Any:
    """The same with one more field in every object."""
    if isinstance(value, dict):
        return {**{key: with_unknown_fields(part) for key, part in value.items()}, "ofAnotherVersion": {"a": [1]}}
    return [with_unknown_fields(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_snapshot_of_every_release_is_read_by_operator_and_trainer(path: Path) -> None:
    recorded = json.loads(path.read_text())
    config = frame.load_config(path)
    assert read_run_config(as_config_map(recorded)) == config
    assert read_run_config(as_config_map(with_unknown_fields(recorded))) == config
    for key, value in recorded.items():  # nothing was dropped or reinterpreted
        read = config.model_dump(mode="json", by_alias=True, exclude_none=True)[key]
        assert {**read, **value} == read if isinstance(value, dict) else value == read


def test_a_release_is_recorded() -> None:
    assert [path.name for path in RECORDS][:1] == ["run-v0.1.json"]
    assert evaluation_hash(frame.load_config(RECORDS[0]).evaluation) == "56ccaf82455f26fd"


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparameters": {"epochs": 10**6}},
        {"hyperparameters": {"learningRateMultiplier": "0"}},
        {"baseModel": {"source": "hf://Qwen"}},
        {"dataset": {"train": {}}},
        {"dataset": {"train": {"source": "pvc://data/../x"}, "validation": {"fraction": 0.9}}},
        {"evaluation": {"gate": {"rules": [{"metric": "loss", "max": "1", "min": "0"}]}}},
        {"method": {"type": "Full", "rank": 8}},
    ],
)
def test_a_rule_that_came_later_is_not_asked_of_a_snapshot(change: dict[str, Any]) -> None:
    recorded = {**json.loads(RECORDS[0].read_text()), **change}
    with pytest.raises(ValidationError):
        RunConfig.model_validate(recorded)  # what a user writes is asked
    assert RunConfig.from_record(json.dumps(recorded)).run == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"schemaVersion": "v9"}, "schemaVersion"),
        ({"hyperparameters": {"seed": "many"}}, "hyperparameters.seed"),
        ({"task": "Juggling"}, "task"),
    ],
)
def test_what_makes_no_sense_is_unreadable_with_its_place(content: dict[str, Any], words: str) -> None:
    config_map = as_config_map({**json.loads(RECORDS[0].read_text()), **content})
    with pytest.raises(UnreadableError, match=words):
        read_run_config(config_map)
    assert parse_run_config(config_map) is None


def test_missing_is_not_unreadable() -> None:
    assert read_run_config(None) is None
    for config_map in ({}, {"data": {}}, {"data": {"run.json": "{"}}):
        with pytest.raises(UnreadableError):
            read_run_config(config_map)


def spoiled(cluster: Cluster, number: int) -> Cluster:
    """The snapshot as a later version might have written it, and a status that lacks what it has."""
    data = cluster.objects["ConfigMap", f"travel-r{number}"]["data"]
    data["run.json"] = data["run.json"].replace('"v1alpha1"', '"v9"')
    return cluster.forget("task", "baseName")


def test_a_server_whose_snapshot_is_not_readable_says_so_and_is_left_alone() -> None:
    cluster = spoiled(Cluster(make_job()).run().change(rerunToken="b", serving={"run": 1}).run(), 1)
    cluster.execute(cluster.plan())
    run = cluster.job.status.run
    assert run is not None
    assert run.failure is not None
    assert run.failure.reason is FailureReason.CONFIG_UNREADABLE
    assert "travel-r1" in run.failure.message
    assert "schemaVersion" in run.failure.message
    assert "version of the operator that wrote it" in run.failure.advice
    plan = cluster.plan()
    assert (plan.apply, plan.delete) == ((), ())


def test_an_unreadable_snapshot_of_the_run_in_hand_is_made_anew_when_it_is_deleted() -> None:
    cluster = spoiled(Cluster(make_job()).run(), 1)
    cluster.execute(cluster.plan())
    run = cluster.job.status.run
    assert run is not None
    assert run.failure is not None
    assert run.failure.reason is FailureReason.CONFIG_UNREADABLE
    assert "delete it" in run.failure.advice
    cluster.vanish("ConfigMap", "travel-r1")
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
