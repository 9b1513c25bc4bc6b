"""A pod's volumes, paths and environment on one machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.simulator import make_job

from finetune_api.conditions import Stage
from finetune_api.job import run_hash
from finetune_api.status import ModelStatus, RunStatus
from finetune_operator.builders.server import server_deployment
from finetune_operator.builders.stage_job import stage_job
from finetune_operator.local import pods
from finetune_operator.settings import Settings

PROGRESS = Settings(progress_url="https://operator:8443", progress_ca="CA")


def pod_spec(stage: Stage, settings: Settings = PROGRESS, gpus: int = 0) -> dict[str, Any]:
    job = make_job(compute={"gpus": gpus})
    run = RunStatus(number=1, hash=run_hash(job.spec), trigger="Created")
    spec: dict[str, Any] = stage_job(job, run, stage, settings)["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def places(tmp_path: Path) -> pods.Places:
    (tmp_path / "claims" / "models").mkdir(parents=True)
    (tmp_path / "artifacts").mkdir()
    data = {"travel-data": {"train.jsonl": "{}\n"}, "travel-r1": {"run.json": "{}"}}
    return pods.Places(tmp_path / "artifacts", tmp_path / "claims", data)


def test_prepare_sees_claims_and_config_maps_where_the_trainer_looks(tmp_path: Path, places: pods.Places) -> None:
    root = tmp_path / "root"
    plan = pods.launch(pod_spec(Stage.PREPARE), root, places)
    pods.prepare_root(root, plan)
    assert (root / "sources/configmap/travel-data/train.jsonl").read_text() == "{}\n"
    assert (root / "sources/pvc/models").resolve() == places.claims / "models"
    assert (root / "artifacts").resolve() == places.artifacts
    assert (root / "etc/finetune/run.json").exists()
    assert (root / "tmp").is_dir()


def test_the_trainer_of_this_interpreter_gets_paths_of_this_machine(tmp_path: Path, places: pods.Places) -> None:
    words = pods.launch(pod_spec(Stage.TRAIN), tmp_path / "root", places).arguments
    assert words[:4] == (sys.executable, "-m", "finetune_trainer", "train")
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    root = tmp_path / "root"
    assert flags == {
        "--config": str(root / "etc/finetune/run.json"),
        "--artifacts": str(root / "artifacts"),
        "--sources": str(root / "sources"),
    }


def test_nothing_points_to_a_control_plane_that_is_not_there(tmp_path: Path, places: pods.Places) -> None:
    plan = pods.launch(pod_spec(Stage.TRAIN), tmp_path / "root", places)
    seen = pods.environment(plan, {"KUBEFLOW_TRAINER_SERVER_URL": "https://other", "HF_TOKEN": "t", "HOME": "/home/me"})
    assert not {name for name in seen if name.startswith("KUBEFLOW")}
    assert not [path for path in (*plan.links, *plan.files, *plan.folders) if "secrets" in str(path)]
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert (seen["HF_TOKEN"], seen["HOME"]) == ("t", "/home/me")


def test_prepare_may_use_the_network(tmp_path: Path, places: pods.Places) -> None:
    assert "HF_HUB_OFFLINE" not in pods.launch(pod_spec(Stage.PREPARE), tmp_path / "root", places).environment


@pytest.mark.parametrize(("user", "seen"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_leave_the_processors_to_others(
    tmp_path: Path, places: pods.Places, user: dict[str, str], seen: str
) -> None:
    plan = pods.launch(pod_spec(Stage.TRAIN), tmp_path / "root", places)
    assert pods.environment(plan, user)["OMP_WAIT_POLICY"] == seen


@pytest.mark.parametrize(
    ("gpus", "user", "seen"),
    [
        (1, None, "0"),
        (1, "3", "3"),
        (1, "1,0", "1"),
        (1, "GPU-8d0f,GPU-11aa", "GPU-8d0f"),
        (1, "", ""),
        (0, None, None),
        (0, "1,0", "1,0"),
    ],
)
def test_a_stage_sees_as_many_gpus_as_its_pod_would(
    tmp_path: Path, places: pods.Places, gpus: int, user: str | None, seen: str | None
) -> None:
    plan = pods.launch(pod_spec(Stage.TRAIN, gpus=gpus), tmp_path / "root", places)
    shell = {} if user is None else {"CUDA_VISIBLE_DEVICES": user}
    assert pods.environment(plan, shell).get("CUDA_VISIBLE_DEVICES") == seen


@pytest.mark.parametrize(("claim", "folder"), [("models", "claims/models"), ("unknown", "artifacts")])
def test_a_claim_that_was_not_given_is_the_output(tmp_path: Path, places: pods.Places, claim: str, folder: str) -> None:
    assert pods.claim_folder(claim, places) == tmp_path / folder


def test_the_server_listens_on_this_machine_only(tmp_path: Path, places: pods.Places) -> None:
    job = make_job()
    model = ModelStatus(
        run=1, uri="pvc://models/a/b", name="travel", kind="Adapter", task=job.spec.task, base_name="base"
    )
    manifest = server_deployment(job, model, PROGRESS, job.spec.serving.smoke_test)
    words = pods.launch(manifest["spec"]["template"]["spec"], tmp_path / "root", places, port=4711).arguments
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "4711"
