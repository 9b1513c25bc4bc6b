"""Mistakes that people make in a FineTuneJob, each with the message that they must see.

A row is a name, a merge patch (YAML) for the spec of GOOD, the field that the API server must name, and a part of
its message. OURS are refused by a rule of ours and must be refused with the same words on a laptop. THEIRS, in
bad_schema, break the schema.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

GOOD: dict[str, Any] = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "travel", "namespace": "default"},
    "spec": {
        "baseModel": {"source": "hf://Qwen/Qwen3-0.6B"},
        "dataset": {"train": {"source": "pvc://datasets/travel.jsonl"}},
        "output": {"claimName": "models"},
    },
}


@dataclass(frozen=True)
class Bad:
    """One mistake. `field` is the path that the API server names."""

    name: str
    patch: str
    field: str
    message: str

    def manifest(self) -> dict[str, Any]:
        """GOOD with the mistake in it."""
        return {**copy.deepcopy(GOOD), "spec": merged(GOOD["spec"], yaml.safe_load(self.patch))}


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


ONE_FILE = "give exactly one of source, configMapRef and files"
ONE_HELD_OUT = "give exactly one of fraction, source and configMapRef"
ONE_BOUND = "give exactly one of minImprovement, max and min"
NO_USER = "an https URL must not carry a user or a password; put them into a Secret and name it in secretRef"
MULTIPLIER = "learningRateMultiplier: write auto, a whole number from 1 to 9999, or a decimal in quotes"

OURS = (
    Bad(
        "a model by https",
        "baseModel: {source: 'https://example.com/model'}",
        "spec.baseModel",
        "baseModel.source: a model is a folder, which https:// cannot list; use hf://, pvc:// or s3://",
    ),
    Bad(
        "a model with a commit in its source",
        "baseModel: {source: 'hf://Qwen/Qwen3-0.6B/main'}",
        "spec.baseModel",
        "baseModel.source: write hf://OWNER/NAME; a commit goes into baseModel.revision",
    ),
    Bad(
        "a model without an owner",
        "baseModel: {source: 'hf://gpt2'}",
        "spec.baseModel.source",
        "source: write hf://OWNER/NAME, for a dataset hf://OWNER/NAME/FILE",
    ),
    Bad(
        "a revision of a folder",
        "baseModel: {source: 'pvc://models/base', revision: 0123456789abcdef0123456789abcdef01234567}",
        "spec.baseModel",
        "baseModel.revision: only a hub model (hf://) has a revision; remove it",
    ),
    Bad(
        "a claim without a path",
        "baseModel: {source: 'pvc://models'}",
        "spec.baseModel.source",
        "source: write pvc://CLAIM/PATH, for example pvc://datasets/travel/train.jsonl",
    ),
    Bad(
        "a claim with an impossible name",
        "dataset: {train: {source: 'pvc://Data_Sets/x.jsonl'}}",
        "spec.dataset.train.source",
        "source: write pvc://CLAIM/PATH",
    ),
    Bad(
        "a claim with two slashes",
        "dataset: {train: {source: 'pvc://datasets//x.jsonl'}}",
        "spec.dataset.train.source",
        "source: write pvc://CLAIM/PATH",
    ),
    Bad(
        "a way out of the claim",
        "dataset: {train: {source: 'pvc://datasets/../other/x.jsonl'}}",
        "spec.dataset.train.source",
        "source: '..' is not allowed in a path; name the file from the root of its source",
    ),
    Bad(
        "a bucket without a key",
        "dataset: {train: {source: 's3://datasets'}}",
        "spec.dataset.train.source",
        "source: write s3://BUCKET/KEY",
    ),
    Bad(
        "a bucket in capitals",
        "baseModel: {source: 's3://Models/qwen'}",
        "spec.baseModel.source",
        "source: write s3://BUCKET/KEY",
    ),
    Bad(
        "a password in a URL",
        "dataset: {train: {source: 'https://me:secret@example.com/x.jsonl'}}",
        "spec.dataset.train.source",
        NO_USER,
    ),
    Bad(
        "a user in the URL of the held-out data",
        "dataset: {validation: {source: 'https://me@example.com/x.jsonl'}}",
        "spec.dataset.validation.source",
        NO_USER,
    ),
    Bad(
        "a host without a path",
        "dataset: {train: {source: 'https://example.com'}}",
        "spec.dataset.train.source",
        "source: write https://HOST/PATH",
    ),
    Bad(
        "a hub dataset without its file",
        "dataset: {train: {source: 'hf://team/travel'}}",
        "spec.dataset.train",
        "source: a hub dataset needs its file: hf://OWNER/NAME/FILE, for example hf://team/travel/train.jsonl",
    ),
    Bad(
        "a held-out hub dataset without its file",
        "dataset: {validation: {source: 'hf://team/travel'}}",
        "spec.dataset.validation",
        "source: a hub dataset needs its file",
    ),
    Bad("no training data", "dataset: {train: {source: null}}", "spec.dataset.train", ONE_FILE),
    Bad(
        "two kinds of training data",
        "dataset: {train: {configMapRef: {name: travel, key: train.jsonl}}}",
        "spec.dataset.train",
        ONE_FILE,
    ),
    Bad(
        "one training file and several",
        "dataset: {train: {files: [{source: 'pvc://datasets/a.jsonl'}]}}",
        "spec.dataset.train",
        ONE_FILE,
    ),
    Bad(
        "one of several files without a place",
        "dataset: {train: {source: null, files: [{weight: 2}]}}",
        "spec.dataset.train.files[0]",
        "give exactly one of source and configMapRef",
    ),
    Bad(
        "a file with a weight of 0",
        "dataset: {train: {source: null, files: [{source: 'pvc://datasets/a.jsonl', weight: 0}]}}",
        "spec.dataset.train.files[0].weight",
        "weight: write a number from 0.01 to 100; a file that is not to be learned is left out of the list",
    ),
    Bad(
        "a file twice",
        "dataset: {train: {source: null, files: [{source: 'pvc://datasets/a.jsonl'}, "
        "{source: 'pvc://datasets/b.jsonl'}, {source: 'pvc://datasets/a.jsonl', weight: 3}]}}",
        "spec.dataset.train",
        "files: name each file once; to train on it more often, give it a weight",
    ),
    Bad(
        "a key of a ConfigMap twice",
        "dataset: {train: {source: null, files: [{configMapRef: {name: travel, key: a.jsonl}}, "
        "{configMapRef: {name: travel, key: a.jsonl}}]}}",
        "spec.dataset.train",
        "files: name each file once; to train on it more often, give it a weight",
    ),
    Bad("no held-out data", "dataset: {validation: {}}", "spec.dataset.validation", ONE_HELD_OUT),
    Bad(
        "a share and a file of held-out data",
        "dataset: {validation: {fraction: 0.1, source: 'pvc://datasets/v.jsonl'}}",
        "spec.dataset.validation",
        ONE_HELD_OUT,
    ),
    Bad(
        "a file and a ConfigMap of held-out data",
        "dataset: {validation: {source: 'pvc://datasets/v.jsonl', configMapRef: {name: travel, key: v.jsonl}}}",
        "spec.dataset.validation",
        ONE_HELD_OUT,
    ),
    Bad(
        "no held-out example",  # a whole number, which the API server's own bound of 0.01 would let through
        "dataset: {validation: {fraction: 0}}",
        "spec.dataset.validation.fraction",
        "fraction: write a number from 0.01 to 0.5",
    ),
    Bad(
        "a rank for full weights",
        "method: {type: Full, rank: 8}",
        "spec.method",
        "method.rank: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
    ),
    Bad(
        "an alpha for full weights",
        "method: {type: Full, alpha: 8}",
        "spec.method",
        "method.alpha: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
    ),
    Bad(
        "a dropout for full weights",
        "method: {type: Full, dropout: '0.1'}",
        "spec.method",
        "method.dropout: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
    ),
    Bad(
        "layers for full weights",
        "method: {type: Full, targetModules: [q_proj]}",
        "spec.method",
        "method.targetModules: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
    ),
    Bad(
        "no epoch",
        "hyperparameters: {epochs: 0}",
        "spec.hyperparameters.epochs",
        "hyperparameters.epochs: write auto or a whole number from 1 to 100",
    ),
    Bad(
        "too many epochs",
        "hyperparameters: {epochs: 101}",
        "spec.hyperparameters.epochs",
        "hyperparameters.epochs: write auto or a whole number from 1 to 100",
    ),
    Bad(
        "epochs in quotes",
        "hyperparameters: {epochs: '3'}",
        "spec.hyperparameters.epochs",
        "hyperparameters.epochs: write auto or a whole number from 1 to 100",
    ),
    Bad(
        "another magic word",
        "hyperparameters: {batchSize: max}",
        "spec.hyperparameters.batchSize",
        "hyperparameters.batchSize: write auto or a whole number from 1 to 256",
    ),
    Bad(
        "a batch of none",
        "hyperparameters: {batchSize: 0}",
        "spec.hyperparameters.batchSize",
        "hyperparameters.batchSize: write auto or a whole number from 1 to 256",
    ),
    Bad(
        "too short a length",
        "hyperparameters: {maxLength: 8}",
        "spec.hyperparameters.maxLength",
        "hyperparameters.maxLength: write auto or a whole number from 16 to 131072",
    ),
    Bad(
        "too long a length",
        "hyperparameters: {maxLength: 1000000}",
        "spec.hyperparameters.maxLength",
        "hyperparameters.maxLength: write auto or a whole number from 16 to 131072",
    ),
    Bad(
        "no step between evaluations",
        "hyperparameters: {evaluationSteps: 0}",
        "spec.hyperparameters.evaluationSteps",
        "hyperparameters.evaluationSteps: write auto or a whole number from 1 to 100000",
    ),
    Bad(
        "negative steps between checkpoints",
        "hyperparameters: {checkpointSteps: -1}",
        "spec.hyperparameters.checkpointSteps",
        "hyperparameters.checkpointSteps: write auto or a whole number from 1 to 100000",
    ),
    Bad(
        "a multiplier of 0",
        "hyperparameters: {learningRateMultiplier: 0}",
        "spec.hyperparameters.learningRateMultiplier",
        MULTIPLIER,
    ),
    Bad(
        "a multiplier of 0.0",
        "hyperparameters: {learningRateMultiplier: '0.0'}",
        "spec.hyperparameters.learningRateMultiplier",
        MULTIPLIER,
    ),
    Bad(
        "a multiplier in words",
        "hyperparameters: {learningRateMultiplier: high}",
        "spec.hyperparameters.learningRateMultiplier",
        MULTIPLIER,
    ),
    Bad(
        "a multiplier in scientific notation",
        "hyperparameters: {learningRateMultiplier: '1e-3'}",
        "spec.hyperparameters.learningRateMultiplier",
        MULTIPLIER,
    ),
    Bad(
        "a gate without a bound",
        "evaluation: {gate: {rules: [{metric: loss}]}}",
        "spec.evaluation.gate.rules[0]",
        ONE_BOUND,
    ),
    Bad(
        "a gate with two bounds",
        "evaluation: {gate: {rules: [{metric: loss, max: '2'}, {metric: loss, min: '1', max: '2'}]}}",
        "spec.evaluation.gate.rules[1]",
        ONE_BOUND,
    ),
    Bad(
        "vLLM on no GPU",
        "serving: {engine: VLLM, gpus: 0}",
        "spec.serving",
        "serving.engine: VLLM needs a GPU; set serving.gpus to 1 or engine to Native",
    ),
    Bad(
        "vLLM as many GPUs as none",
        "{serving: {engine: VLLM}, compute: {gpus: 0}}",
        "spec",
        "serving.engine: VLLM needs a GPU, and compute.gpus is 0; set serving.gpus to 1 or engine to Native",
    ),
    Bad(
        "a plain resource among the extended ones",
        "compute: {extendedResources: {memory: 1}}",
        "spec.compute.extendedResources",
        "extendedResources: write DOMAIN/NAME, for example rdma/hca; cpu and memory go into resources, GPUs into gpus",
    ),
    Bad(
        "a place in no queue",
        "compute: {workloadPriorityClassName: high}",
        "spec.compute",
        "workloadPriorityClassName: only a queue knows it; set compute.queueName, or remove it",
    ),
    Bad(
        "two GPUs a server",
        "serving: {gpus: 2}",
        "spec.serving.gpus",
        "serving.gpus: write auto or a whole number from 0 to 1",
    ),
    Bad(
        "an approval that nobody asks for",
        "promotion: {approved: {run: 2, digest: 0123456789ab}}",
        "spec.promotion",
        "promotion.approved: only the mode Manual asks for it; remove it or set promotion.mode to Manual",
    ),
)
