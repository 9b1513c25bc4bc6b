"""What a training by several pods notes when its last step is done.

What is left then, choosing and proving the model, is the first pod's alone: the others end well, and Kubernetes never
starts such a pod again. If the first one falls now, its successor would wait for them in vain.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from finetune_api.interruptions import StopCosts
from finetune_api.status import ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.training import checkpoints

NAME = "fitted.json"


class Fitted(BaseModel):
    """A training whose last step is done. Losses are the last ones logged, nats a token; `seconds` is the last
    attempt's time. `notes` are for the user."""

    resolved: ResolvedValues
    steps: int
    total_steps: int
    resumed_from_step: int = 0
    train_loss: float | None = None
    seconds: float = 0.0
    stop_costs: StopCosts = StopCosts()
    notes: list[str] = []


def fitted(run_dir: Path) -> Fitted | None:
    """What an earlier attempt noted, if its checkpoints are there still."""
    saved = checkpoints.folders(run_dir / "checkpoints")
    if not any(artifacts.is_complete(path) for _, path in saved):
        return None
    try:
        return Fitted.model_validate_json((run_dir / NAME).read_bytes())
    except (OSError, ValueError):
        return None


def forget(run_dir: Path) -> None:
    """What was trained is lost: the next attempt trains."""
    (run_dir / NAME).unlink(missing_ok=True)


def note(run_dir: Path, done: Fitted) -> None:
    """Before any pod ends for it."""
    artifacts.write_json(run_dir / NAME, done.model_dump_json())
