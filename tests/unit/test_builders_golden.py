"""The manifests as files, for review. `UPDATE_GOLDEN=1 pytest tests/unit/test_builders_golden.py` rewrites them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.simulator import make_job

from finetune_api.conditions import Stage, Trigger
from finetune_api.dataset_poll import PollOrder
from finetune_api.job import FineTuneJob, run_hash
from finetune_api.package import PackageStatus
from finetune_api.retention import RemovalOrder
from finetune_api.status import ModelStatus, RunStatus
from finetune_api.tasks import Task
from finetune_operator.builders.gang import peers_service
from finetune_operator.builders.poll_job import poll_job
from finetune_operator.builders.removal_job import removal_job
from finetune_operator.builders.run_config_map import run_config_map
from finetune_operator.builders.server import server_deployment, server_service
from finetune_operator.builders.stage_job import stage_job
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

GOLDEN = Path(__file__).parent.parent / "golden"

PLATFORM = Settings(
    trainer_image="registry.example.com/trainer@sha256:" + "1" * 64,
    vllm_image="registry.example.com/vllm:v0.33.0",
    image_pull_secrets=("pull",),
    progress_url="https://finetune-operator.finetune-system.svc:8443",
    progress_ca="-----BEGIN CERTIFICATE-----\nexample\n-----END CERTIFICATE-----\n",
)
GPU_SPEC: dict[str, Any] = {
    "baseModel": {"source": "hf://Qwen/Qwen3-0.6B", "secretRef": {"name": "hf-token"}},
    "dataset": {
        "train": {"source": "pvc://datasets/travel/train.jsonl"},
        "validation": {"source": "pvc://models/held-out.jsonl"},
        "secretRef": {"name": "s3-keys"},
    },
    "method": {"type": "LoRA", "rank": 24},
    "compute": {
        "gpus": 1,
        "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "32Gi"}},
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "batch",
        "activeDeadlineSeconds": 86400,
    },
    "serving": {"replicas": 2, "nodeSelector": {"pool": "serving"}},
}
GANG = {
    "nodes": 4,
    "extendedResources": {"rdma/hca": 1},
    "topologySpread": {"topologyKey": "topology.kubernetes.io/rack", "whenUnsatisfiable": "DoNotSchedule"},
}
QUEUE = {"queueName": "team-a", "workloadPriorityClassName": "high"}


EXPORTS: dict[str, Any] = {
    "claimName": "models",
    "exports": [
        {"name": "whole"},
        {"name": "to-registry", "to": "oci://registry.example.com/team/travel", "secretRef": {"name": "login"}},
        {"name": "to-bucket", "to": "s3://models/travel", "secretRef": {"name": "s3-keys"}},
    ],
}

JUDGE = {"url": "https://llm.example.com/v1", "model": "judge-70b"}


TRACKING = {"mlflow": {"uri": "https://mlflow.example.com", "secretRef": {"name": "mlflow-login"}}}


def run_of(job: FineTuneJob) -> RunStatus:
    return RunStatus(number=2, hash=run_hash(job.spec), trigger=Trigger.SPEC_CHANGED)


def model_of(kind: Any) -> ModelStatus:
    return ModelStatus(
        run=2,
        uri="pvc://models/team-a/travel/runs/2-abcdef01/model",
        base_uri="pvc://models/team-a/models/qwen3-0.6b@0123456789ab",
        sha256="ab" * 32,
        name="travel",
        kind=kind,
        task=Task.CHAT,
        rank=24,
        base_name="qwen3-0.6b",
        precision="bfloat16",
    )


def manifests() -> Iterator[tuple[str, Manifest]]:
    cpu, gpu = make_job(), make_job(**GPU_SPEC)
    plain = Settings()
    yield "run-config-map", run_config_map(gpu, run_of(gpu), PLATFORM)
    judged = make_job(**GPU_SPEC, evaluation={"judge": {**JUDGE, "secretRef": {"name": "judge-key"}}})
    yield "job-judge", stage_job(judged, run_of(judged), Stage.JUDGE, PLATFORM)
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
        yield f"job-{stage.value.lower()}-cpu", stage_job(cpu, run_of(cpu), stage, plain)
        yield f"job-{stage.value.lower()}-gpu", stage_job(gpu, run_of(gpu), stage, PLATFORM)
    gang = make_job(**{**GPU_SPEC, "compute": {**GPU_SPEC["compute"], **GANG}})
    yield "job-train-gang", stage_job(gang, run_of(gang), Stage.TRAIN, PLATFORM)
    yield "service-peers", peers_service(gang)
    exported = make_job(**GPU_SPEC, output=EXPORTS, tracking=TRACKING)
    promoted = run_of(exported).model_copy(update={"package": PackageStatus(promoted=True)})
    yield "job-package", stage_job(exported, promoted, Stage.PACKAGE, PLATFORM)
    order = {"runs": "team-a/travel/runs", "removals": [{"run": 1, "folder": "1-0123abcd"}]}
    yield "job-remove", removal_job(cpu, "models", RemovalOrder.model_validate(order), PLATFORM)
    known = PollOrder(fingerprint="0123456789abcdef", sha256="cd" * 32)
    yield "job-poll", poll_job(gpu, run_of(gpu), known, 1_764_320_000, PLATFORM)
    queued = make_job(**{**GPU_SPEC, "compute": {**GPU_SPEC["compute"], **QUEUE}})
    yield "job-train-queued", stage_job(queued, run_of(queued), Stage.TRAIN, PLATFORM)
    for name, job, kind, settings in (
        ("native", cpu, "Adapter", plain),
        ("vllm-adapter", gpu, "Adapter", PLATFORM),
        ("vllm-model", gpu, "Model", PLATFORM),
    ):
        yield f"deployment-{name}", server_deployment(job, model_of(kind), settings, job.spec.serving.smoke_test)
    yield "service", server_service(cpu)


ALL = dict(manifests())


@pytest.mark.parametrize("name", list(ALL))
def test_manifest_is_as_the_golden_file_says(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump(ALL[name], sort_keys=False, width=110)
    assert "&id" not in text, "two parts of a manifest share one object"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, "if the change is meant: UPDATE_GOLDEN=1 pytest tests/unit/test_builders_golden.py"


def test_there_are_no_other_golden_files() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(ALL)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, manifest in ALL.items():
        if manifest["kind"] in ("Job", "Deployment"):
            yield name, manifest["spec"]["template"]["spec"]


PODS = dict(pods())


@pytest.mark.parametrize("name", list(PODS))
def test_every_pod_meets_pod_security_restricted(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    spec = PODS[name]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert "serviceAccountName" not in spec
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected"}


@pytest.mark.parametrize("name", list(PODS))
def test_every_mount_has_its_volume_and_every_volume_its_mount(name: str) -> None:
    spec = PODS[name]
    volumes = [volume["name"] for volume in spec["volumes"]]
    assert len(volumes) == len(set(volumes))
    assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)


REACH_OUT = ("prepare", "judge", "package", "poll")


@pytest.mark.parametrize("name", [name for name in PODS if not any(stage in name for stage in REACH_OUT)])
def test_secrets_reach_only_the_stages_that_reach_out(name: str) -> None:
    assert "envFrom" not in PODS[name]["containers"][0]
    assert "hf-token" not in yaml.safe_dump(PODS[name])


def test_the_judge_has_its_own_secret_and_no_other() -> None:
    assert PODS["job-judge"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "judge-key", "optional": False}}]
    assert "hf-token" not in yaml.safe_dump(PODS["job-judge"])


def test_a_look_has_the_secret_of_the_data_and_mounts_nothing_else() -> None:
    (container,) = PODS["job-poll"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "s3-keys", "optional": False}}]
    assert "hf-token" not in yaml.safe_dump(PODS["job-poll"])
    assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"] != "tmp")
    assert "nodeSelector" not in PODS["job-poll"]


def test_package_has_the_secrets_of_exports_and_no_other() -> None:
    container = PODS["job-package"]["containers"][0]
    found = [(entry["prefix"], entry["secretRef"]["name"]) for entry in container["envFrom"]]
    assert found.pop(0) == ("TRACKING_MLFLOW__", "mlflow-login")
    assert found == [("EXPORT_TO_REGISTRY__", "login"), ("EXPORT_TO_BUCKET__", "s3-keys")]
    assert "hf-token" not in yaml.safe_dump(PODS["job-package"])


def test_prepare_has_the_secrets_and_no_gpu() -> None:
    container = PODS["job-prepare-gpu"]["containers"][0]
    assert [entry["secretRef"]["name"] for entry in container["envFrom"]] == ["hf-token", "s3-keys"]
    assert "limits" not in container["resources"]


def test_training_alone_carries_the_progress_token() -> None:
    carriers = [name for name, spec in PODS.items() if any("projected" in volume for volume in spec["volumes"])]
    assert sorted(carriers) == ["job-train-gang", "job-train-gpu", "job-train-queued"]
