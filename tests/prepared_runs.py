"""Prepare on a laptop: folders as a pod sees them, and data for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from finetune_api.conditions import Stage
from finetune_api.reports import MAX_MESSAGE_BYTES, Summary, parse_summary
from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.spec import (
    BaseModelSpec,
    ConfigMapRef,
    DataFile,
    DatasetSpec,
    EvaluationSpec,
    Hyperparameters,
    MethodSpec,
    Task,
    TrainData,
    ValidationData,
)
from finetune_trainer import frame
from finetune_trainer.context import StageContext

PLACES = ["Lisbon", "Porto", "Oslo", "Rome", "Paris", "Cork", "Bern", "Graz", "Nice", "Bath", "Lima", "Doha"]


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **more,
    }


CHATS = [chat(f"Is {place} nice?", f"{place} is a harbour town, and yes.") for place in PLACES]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass
class Laptop:
    """Folders as a pod sees them, with the models of `models` on the claim of that name."""

    root: Path
    models: Path

    def __post_init__(self) -> None:
        (self.root / "sources" / "pvc").mkdir(parents=True)
        self.mount(self.models)

    def mount(self, models: Path) -> None:
        # A link in the place of the mount point, not inside it: links out of a claim are refused.
        link = self.root / "sources" / "pvc" / "models"
        link.unlink(missing_ok=True)
        link.symlink_to(models)

    def put(self, name: str, content: bytes) -> DataFile:
        """A key of the ConfigMap `travel`."""
        path = self.root / "sources" / "configmap" / "travel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return DataFile(config_map_ref=ConfigMapRef(name="travel", key=name))

    def context(self, train: DataFile, validation: DataFile | None = None, **fields: Any) -> StageContext:
        held = {"config_map_ref": validation.config_map_ref} if validation else {"fraction": 0.2}
        values: dict[str, Any] = {
            "task": Task.CHAT,
            "base_model": BaseModelSpec(source="pvc://models/tiny"),
            "hyperparameters": Hyperparameters(),
            "max_lost_percent": 5,
            **fields,
        }
        lost = values.pop("max_lost_percent")
        config = RunConfig(
            namespace="team-a",
            job="travel",
            run=1,
            hash="0123456789abcdef",
            base_name="tiny",
            tuned_name="travel",
            dataset=DatasetSpec(
                train=TrainData(**dict(train)), validation=ValidationData(**held), max_lost_percent=lost
            ),
            method=MethodSpec(rank=4),
            evaluation=EvaluationSpec(),
            paths=RunPaths(run="team-a/travel/runs/1-01234567", models="team-a/models"),
            **values,
        )
        return StageContext(config=config, artifacts=self.root / "artifacts", sources=self.root / "sources")

    def prepare(self, context: StageContext) -> tuple[int, Summary]:
        log = self.root / "termination-log"
        code = frame.run_stage(Stage.PREPARE, context, log)
        assert len(log.read_bytes()) <= MAX_MESSAGE_BYTES
        summary = parse_summary(log.read_text())
        assert summary is not None
        return code, summary


def rows(context: StageContext, part: str) -> list[dict[str, list[int]]]:
    return list(datasets.load_from_disk(str(context.dataset_dir / part)))
