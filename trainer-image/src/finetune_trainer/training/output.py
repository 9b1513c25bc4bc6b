"""The run's model folder: the best checkpoint's weights, the tokenizer with the exact chat template, a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.run_config import RunConfig
from finetune_trainer import artifacts
from finetune_trainer.methods.continued import moved_on
from finetune_trainer.methods.kind import Form, Trained
from finetune_trainer.methods.proof import ADAPTER_CONFIG
from finetune_trainer.methods.table import METHODS
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import FACTS, Loaded, Prepared, load_model

LINEAGE = "lineage.json"
CPU = Device("cpu", "float32", "cpu")


def trained(checkpoint: Path, config: RunConfig, prepared: Prepared, device: Device) -> Trained:
    """What the method of the run has to know to finish a checkpoint that was trained on `device`."""

    def load(directory: Path, dtype: torch.dtype) -> Loaded:
        return load_model(directory, CPU, prepared.kind, prepared.facts, dtype=dtype)

    rank = prepared.resolved.lora_rank or config.method.resolved_rank
    return Trained(checkpoint, prepared.base_dir, device.dtype, rank, load)


def assemble(
    made: Trained,
    directory: Path,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    before: Path | None = None,
) -> Form:
    """Put what a server needs into `directory`, replacing what an earlier attempt left, and verify it.

    `before` is the adapter that was gone on with. Optimizer and random states stay behind: they are pickles, and no one
    serves them. Raises ArtifactInvalidError.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    method = METHODS[config.method.type]
    form = method.finish(made, directory)
    if form == "Adapter":
        _name_base(directory / ADAPTER_CONFIG, config, prepared.resolved.revision)
    tokenizer.save_pretrained(directory)
    artifacts.write_json(directory / FACTS, prepared.facts.to_json())
    artifacts.write_json(directory / LINEAGE, lineage(config, prepared.resolved.revision))
    method.verify(made, directory, form)
    if before is not None:
        moved_on(directory, before)
    return form


def lineage(config: RunConfig, revision: str | None) -> str:
    """What the model was built on, as JSON: the first base and every run since, the nearest first."""
    continued = config.continued_from
    source = f"{config.base_model.source}@{revision}" if continued is None else continued.model.source
    runs = [ancestor.to_wire() for ancestor in continued.lineage] if continued else []
    own = {"namespace": config.namespace, "job": config.job, "run": config.run}
    return json.dumps({**own, "source": source, "lineage": runs}, indent=1)


def portable_base_name(config: RunConfig) -> str:
    """OWNER/NAME of a hub model; otherwise the name by which the endpoint answers. Never a path of this pod."""
    source = first_source(config)
    return source.removeprefix("hf://").partition("@")[0] if source.startswith("hf://") else config.base_name


def first_source(config: RunConfig) -> str:
    """Where the weights below an adapter came from; empty when they are those of another run."""
    continued = config.continued_from
    if continued is None:
        return config.base_model.source or ""
    own = continued.continues and all(ancestor.mode == "Continue" for ancestor in continued.lineage)
    return (continued.model.source or "") if own else ""


def _name_base(path: Path, config: RunConfig, revision: str | None) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = portable_base_name(config)
    settings["revision"] = revision if first_source(config).startswith("hf://") else None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
