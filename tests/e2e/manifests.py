"""The jobs that the tests apply."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.documented import ROOT

TRAVEL = ROOT / "examples" / "travel"
SHARED_TRAVEL = ROOT.parent / "shared" / "data" / "travel-finetune.jsonl"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


# What the classifier's data is made of: the department that a word belongs to, and words that say nothing.
TICKETS = {"billing": ("invoice", "refund"), "delivery": ("parcel", "courier"), "login": ("password", "account")}
FILLERS = ("the", "my", "late", "please", "again")
TICKET_WORDS = (*(word for words in TICKETS.values() for word in words), *FILLERS, ",")


def travel_job(name: str, **spec: Any) -> dict[str, Any]:
    """The travel example, small enough for a test: a model on a PVC, two processors, no GPU.

    Top-level fields of the spec can be replaced by keyword.
    """
    base: dict[str, Any] = {
        "task": "Chat",
        "baseModel": {"source": "pvc://sources/tiny-base"},
        "dataset": {
            "train": {"source": "pvc://sources/travel/train.jsonl"},
            "validation": {"source": "pvc://sources/travel/validation.jsonl"},
        },
        "method": {"type": "LoRA", "rank": 32, "alpha": 64},
        "hyperparameters": {
            "epochs": 6,
            "batchSize": 8,
            "learningRateMultiplier": 20,
            "checkpointSteps": 20,
            "evaluationSteps": 40,
        },
        "compute": {
            "gpus": 0,
            "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
        },
        "evaluation": {
            "maxExamples": 16,
            "sampleAnswers": 2,
            "gate": {"rules": [{"metric": "loss", "minImprovement": "1%"}]},
        },
        "output": {"claimName": "models"},
        "serving": {
            "replicas": 1,
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        },
    }
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def with_epochs(job: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The same job with more passes: a training that lasts."""
    spec = {**job["spec"], "hyperparameters": {**job["spec"]["hyperparameters"], "epochs": epochs}}
    return {**job, "spec": spec}


def write_data(folder: Path) -> None:
    """All data sets of these tests: the travel data, a part of it, a broken one, and the shared one where it is."""
    folder.mkdir()
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(TRAVEL / name, folder / name)
    if SHARED_TRAVEL.exists():
        shutil.copy(SHARED_TRAVEL, folder / "shared.jsonl")
    lines = (TRAVEL / "train.jsonl").read_text().splitlines()
    (folder / "train-2.jsonl").write_text("\n".join(lines[:160]) + "\n")
    (folder / "broken.jsonl").write_text("\n".join(_broken(lines[:12])) + "\n")


def _broken(lines: list[str]) -> list[str]:
    """Twelve good examples with three broken lines: 4 is cut, 7 has a wrong role, 11 has no assistant."""
    role = json.dumps({"messages": [{"role": "customer", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]})
    alone = json.dumps({"messages": [{"role": "user", "content": "Is anybody there?"}]})
    return [*lines[:3], lines[3][: len(lines[3]) // 2], *lines[4:6], role, *lines[7:10], alone, *lines[11:]]


def pod_spec(image: str, script: str, **container: Any) -> dict[str, Any]:
    """A pod that Pod Security `restricted` lets in, running a line of Python."""
    main = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", script],
        "securityContext": RESTRICTED,
        **container,
    }
    return {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [main]}
