"""The baseline Previous: the model of an earlier run, measured on the same rows, where that says something."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune_api.run_config import PreviousRun
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import Form
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.training.inputs import FACTS, Prepared, load_tokenizer

VARIABLE = "FINETUNE_PREVIOUS"


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier run's model that can be compared."""

    run: int
    directory: Path
    base_dir: Path
    form: Form


def wanted(environment: Mapping[str, str] = os.environ) -> PreviousRun | None:
    """What the control plane says that the earlier run is; None when there is none."""
    text = environment.get(VARIABLE)
    return PreviousRun.model_validate_json(text) if text else None


def comparable(
    previous: PreviousRun, context: StageContext, prepared: Prepared, tokenizer: PreTrainedTokenizerBase
) -> Earlier:
    """The earlier model. Raises ArtifactInvalidError that says why it cannot be compared: its files are gone or
    changed, it cuts texts into other tokens, it knows other labels."""
    if not previous.mounted:
        raise _not(previous, f"its claim {previous.claim} is not the run's, and no server reads from it now")
    root = context.artifacts if previous.claim is None else context.sources / "pvc" / previous.claim
    directory = root / previous.path
    if not directory.is_dir():
        raise _not(previous, f"{previous.path} is not there any more")
    artifacts.verify(directory)
    form = proof.form_of(directory)
    base_dir = root / previous.base_path if previous.base_path else prepared.base_dir
    if form == "Adapter":
        if previous.base_path is None or not base_dir.is_dir():
            raise _not(previous, "its base model is not there any more")
        artifacts.verify(base_dir, sizes_only=True)
    if _facts(directory) != (prepared.facts.labels, prepared.facts.multi_label):
        raise _not(previous, "it was trained for another task, or on other labels")
    if _cuts(load_tokenizer(directory)) != _cuts(tokenizer):
        raise _not(previous, "its model cuts texts into other tokens, so that the losses do not compare")
    return Earlier(previous.run, directory, base_dir, form)


def _facts(directory: Path) -> tuple[tuple[str, ...], bool]:
    path = directory / FACTS
    found = Facts.from_json(path.read_text(encoding="utf-8")) if path.is_file() else Facts()
    return found.labels, found.multi_label


def _cuts(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What decides which tokens a text and a conversation become."""
    return tokenizer.get_vocab(), tokenizer.chat_template, sorted(tokenizer.all_special_tokens)


def _not(previous: PreviousRun, why: str) -> ArtifactInvalidError:
    return ArtifactInvalidError(f"run {previous.run} could not be compared: {why}")
