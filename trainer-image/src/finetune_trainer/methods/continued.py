"""Going on with an adapter that another run has trained: the same matrices, of the same form, moved further."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodSpec
from finetune_trainer import artifacts
from finetune_trainer.errors import UserInputError
from finetune_trainer.methods import proof
from finetune_trainer.methods.proof import ADAPTER_CONFIG, ADAPTER_WEIGHTS

BEFORE, OWN = "before", "default"  # names of the adapters on one base


def of_same_form(method: MethodSpec, directory: Path) -> MethodSpec:
    """The method with rank, alpha, scale and layers of the adapter in `directory`."""
    settings = _settings(directory)
    form = {
        "rank": settings["r"],
        "alpha": settings["lora_alpha"],
        "rs_lora": bool(settings.get("use_rslora")) or None,
        "target_modules": sorted(settings["target_modules"]),
    }
    return method.model_copy(update=form)


def refuse_other_adapters(directory: Path) -> None:
    """Raise UserInputError (SpecInvalid) for an adapter that is not LoRA's or QLoRA's."""
    settings = _settings(directory)
    if settings.get("use_dora") or settings.get("peft_type") != "LORA":
        raise UserInputError(
            "baseModel.fineTuneJob: that run's adapter is one of DoRA, which mode Continue cannot go on with",
            advice="set baseModel.fineTuneJob.mode to Stack",
            reason=FailureReason.SPEC_INVALID,
        )


def begin_with(model: Any, directory: Path) -> None:
    """Give the fresh adapter of `model` the weights in `directory`. Raises ArtifactInvalidError if they do not fit."""
    weights = load_file(directory / ADAPTER_WEIGHTS)
    try:
        found = set_peft_model_state_dict(model, weights)
    except (RuntimeError, ValueError, KeyError) as error:
        raise proof.invalid(f"{directory} does not fit the adapter of this run: {error}") from error
    lacking = [name for name in found.missing_keys if ".lora_" in name]
    if found.unexpected_keys or lacking:
        name = [*found.unexpected_keys, *lacking][0]
        raise proof.invalid(f"{directory} is no adapter of the same layers: {name}")


def moved_on(directory: Path, before: Path) -> None:
    """Raise ArtifactInvalidError when the adapter in `directory` is the one that it began as."""
    if artifacts.sha256_of(directory / ADAPTER_WEIGHTS) == artifacts.sha256_of(before / ADAPTER_WEIGHTS):
        raise proof.invalid(f"{directory} equals the adapter that was gone on with: training changed nothing")


@contextmanager
def as_before(model: Any, before: Path | None) -> Iterator[Any]:
    """The tuned model as what it was trained from: with the adapter in `before`, or with none."""
    if before is None:
        with model.disable_adapter():
            yield model
        return
    model.load_adapter(str(before), BEFORE)
    model.set_adapter(BEFORE)
    try:
        yield model
    finally:
        model.set_adapter(OWN)
        model.delete_adapter(BEFORE)


def _settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return settings
