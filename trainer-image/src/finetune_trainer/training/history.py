"""The curves of a training, for its report: `reports/training.json`."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune_api.cost import CostSum
from finetune_api.reports import Environment, TrainingPoint, TrainingReport
from finetune_trainer import artifacts
from finetune_trainer.training.device import Device

MOST_POINTS = 1000  # of each curve: more than a screen has columns for it
LIBRARIES = (
    *("finetune-trainer", "torch", "transformers", "trl", "peft", "accelerate", "datasets"),
    *("safetensors", "tokenizers", "bitsandbytes"),
)


def keep_history(path: Path, log_history: Sequence[Mapping[str, Any]], device: Device) -> None:
    """`log_history` is transformers': a resumed training has that of its checkpoint in it."""
    report = TrainingReport(points=points(log_history), environment=environment(device))
    artifacts.write_json(path, report.model_dump_json(by_alias=True, exclude_none=True))


def points(log_history: Sequence[Mapping[str, Any]]) -> list[TrainingPoint]:
    """One for each step at which something was logged, in order; at most about MOST_POINTS of training losses, evenly,
    and every evaluation. What is not finite is left out: JSON has no word for it."""
    steps: dict[int, dict[str, float]] = {}
    for entry in log_history:
        values = {name: entry[name] for name in ("loss", "eval_loss", "learning_rate") if _is_number(entry.get(name))}
        if values:
            steps.setdefault(int(entry["step"]), {}).update(values)
    every = max(1, math.ceil(len(steps) / MOST_POINTS))
    kept = [step for at, step in enumerate(sorted(steps)) if at % every == 0 or "eval_loss" in steps[step]]
    return [TrainingPoint(step=step, **steps[step]) for step in kept]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def environment(device: Device) -> Environment:
    """Of this process."""
    return Environment(
        image=os.environ.get("FINETUNE_IMAGE"),
        device=device.name,
        precision=device.precision,
        python=platform.python_version(),
        versions=dict(_versions(LIBRARIES)),
        training_cost=_training_cost(os.environ),
    )


def _training_cost(variables: Mapping[str, str]) -> CostSum | None:
    """What the control plane counted; nothing on a processor."""
    text = variables.get("FINETUNE_COST")
    return CostSum.from_record(text) if text else None


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # bitsandbytes has no build for every machine
            continue
