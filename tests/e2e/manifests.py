"""The jobs that the tests apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.product import ROOT

TRAVEL = ROOT / "examples" / "travel"
SHARED_TRAVEL = ROOT.parent / "shared" / "data" / "travel-finetune.jsonl"


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


def broken_dataset(folder: Path) -> None:
    """Twelve good examples with three broken lines: 4 is cut, 7 has a wrong role, 11 has no assistant."""
    lines = (TRAVEL / "train.jsonl").read_text().splitlines()[:12]
    lines[3] = lines[3][: len(lines[3]) // 2]
    lines[6] = json.dumps({"messages": [{"role": "customer", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]})
    lines[10] = json.dumps({"messages": [{"role": "user", "content": "Is anybody there?"}]})
    (folder / "broken.jsonl").write_text("\n".join(lines) + "\n")
