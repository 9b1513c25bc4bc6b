"""A run told to each tracker: MLflow's real server, Weights & Biases offline and read back, TensorBoard's files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.fixtures import leave_out
from tests.cluster.processes import free_ports
from tests.servers import PASSWORD, USER, Server, mlflow_server
from tests.trained_runs import make_run, one_thread

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import Summary, parse_summary
from finetune_trainer import frame
from finetune_trainer.context import StageContext
from finetune_trainer.tracking.story import Story, tell

SECRET = "0123456789abcdef" * 2 + "never0to"  # as long as a key is


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    context = make_run(tmp_path_factory.mktemp("measured"), resolved={"total_steps": 4, "epochs": 1})
    for stage in (Stage.TRAIN, Stage.EVALUATE):
        assert frame.run_stage(stage, context, None) == 0
    return context


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        with mlflow_server(tmp_path_factory.mktemp("mlflow")) as running:
            yield running
    except (Unavailable, CommandFailed) as error:
        leave_out(error)


def package(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **tracking: Any
) -> tuple[int, Summary]:
    monkeypatch.setenv("FINETUNE_PACKAGE", json.dumps({"tracking": tracking, "measured": "0123"}))
    log = tmp_path / "termination-log"
    code = frame.run_stage(Stage.PACKAGE, context, log)
    summary = parse_summary(log.read_text())
    assert summary is not None
    return code, summary


def expected(story: Story, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.values[name]) for point in story.points if name in point.values]


def ask(server: Server, path: str, **query: Any) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/api/2.0/mlflow/{path}", params=query, auth=(USER, PASSWORD))
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def login(monkeypatch: pytest.MonkeyPatch, password: str = PASSWORD) -> None:
    monkeypatch.setenv("TRACKING_MLFLOW__MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("TRACKING_MLFLOW__MLFLOW_TRACKING_PASSWORD", password)


def test_mlflow_has_settings_curves_results_and_lineage(
    server: Server, measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login(monkeypatch)
    code, summary = package(measured, monkeypatch, tmp_path, mlflow={"uri": server.url})
    assert code == 0, summary.failure
    assert summary.package is not None
    (status,) = summary.package.trackers
    experiment = ask(server, "experiments/get-by-name", experiment_name="team/travel")["experiment"]["experiment_id"]
    number = status.url.rpartition("/")[2]
    assert status.url == f"{server.url}/#/experiments/{experiment}/runs/{number}"
    run, story = ask(server, "runs/get", run_id=number)["run"], tell(measured)
    assert (run["info"]["status"], run["info"]["end_time"]) == ("FINISHED", int(story.ended * 1000))
    parameters = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert parameters == dict(story.parameters)
    assert parameters["method"] == "LoRA"
    tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
    assert tags.items() >= dict(story.tags).items()
    figures = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert figures.items() >= dict(story.results).items()
    assert {"base/loss", "tuned/loss"} <= story.results.keys()
    curve = ask(server, "metrics/get-history", run_id=number, metric_key="eval/loss")["metrics"]
    assert [(each["step"], each["value"]) for each in curve] == expected(story, "eval/loss")
    assert all(
        story.started <= each["timestamp"] / 1000 + 1 and each["timestamp"] / 1000 <= story.ended for each in curve
    )
    assert package(measured, monkeypatch, tmp_path, mlflow={"uri": server.url}) == (0, summary)  # found again


def test_half_a_run_in_mlflow_is_replaced(
    server: Server, measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    login(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _ = package(measured, patch, tmp_path, mlflow={"uri": server.url, "experiment": "half"})
    assert code == 75
    assert package(measured, monkeypatch, tmp_path, mlflow={"uri": server.url, "experiment": "half"})[0] == 0
    experiment = ask(server, "experiments/get-by-name", experiment_name="half")["experiment"]["experiment_id"]
    answer = httpx.post(
        f"{server.url}/api/2.0/mlflow/runs/search", json={"experiment_ids": [experiment]}, auth=(USER, PASSWORD)
    )
    (run,) = answer.json()["runs"]
    assert run["info"]["status"] == "FINISHED"


def test_a_wrong_password_is_refused_and_never_told(
    server: Server, measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login(monkeypatch, "wrong-password")
    code, summary = package(measured, monkeypatch, tmp_path, mlflow={"uri": server.url})
    assert summary.failure is not None
    assert (code, summary.failure.reason) == (10, FailureReason.DESTINATION_REFUSED)
    assert summary.failure.message.startswith("tracker MLflow: ")
    assert "wrong-password" not in summary.to_message()


def test_a_tracker_that_is_away_is_tried_again_and_keeps_no_other_from_its_work(
    measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("finetune_trainer.tracking.mlflow_server.PATIENCE", {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    code, summary = package(measured, monkeypatch, tmp_path, mlflow={"uri": away}, tensorBoard="Enabled")
    assert summary.failure is not None
    assert (code, summary.failure.reason) == (1, FailureReason.DESTINATION_UNAVAILABLE)
    assert summary.package is not None
    assert [each.tracker for each in summary.package.trackers] == ["TensorBoard"]


def test_tensorboard_files_hold_the_curves(
    measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tensorboardX.proto.event_pb2 import Event

    assert package(measured, monkeypatch, tmp_path, tensorBoard="Enabled")[0] == 0
    (path,) = (measured.run_dir / "tracking" / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:  # a record: length, checksum, event, checksum
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    story = tell(measured)
    for name in ("train/loss", "eval/loss"):
        found = [
            (event.step, value.simple_value) for event in events for value in event.summary.value if value.tag == name
        ]
        assert found == [(step, pytest.approx(value)) for step, value in expected(story, name)]
    times = [event.wall_time for event in events if event.summary.value]
    assert story.started - 1 <= min(times) <= max(times) <= story.ended + 1


def test_weights_and_biases_offline_can_be_read_back(
    measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("TRACKING_WANDB__WANDB_API_KEY", SECRET)
    code, summary = package(measured, monkeypatch, tmp_path, wandb={"mode": "Offline"})
    assert code == 0, summary.failure
    written = [each for each in (measured.run_dir / "tracking" / "wandb").rglob("*") if each.is_file()]
    assert not any(SECRET.encode() in each.read_bytes() for each in written)
    (path,) = (measured.run_dir / "tracking" / "wandb").rglob("*.wandb")
    store, records = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records.append(record)
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name) == ("travel", "travel-r1")
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    story = tell(measured)
    assert settings.items() >= dict(story.parameters).items()
    history = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    found = [(row["_step"], row["eval/loss"]) for row in history if "eval/loss" in row]
    assert found == expected(story, "eval/loss")


def test_a_run_without_its_reports_is_named(
    measured: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = measured.training_report_path.read_bytes()
    measured.training_report_path.write_bytes(b"{")
    try:
        code, summary = package(measured, monkeypatch, tmp_path, tensorBoard="Enabled")
    finally:
        measured.training_report_path.write_bytes(before)
    assert code == 13
    assert summary.failure is not None
    assert "a report of the run cannot be read" in summary.failure.message
