"""Where a stage finds things: the run's configuration and the roots of its volumes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.conditions import Stage
from finetune_api.job import evaluation_hash
from finetune_api.run_config import RunConfig, ServedRun
from finetune_api.spec import EvaluationSpec
from finetune_trainer import artifacts


def report_in(run_dir: Path, stage: Stage) -> Path:
    """Where a run's folder has the stage's Summary: `reports/prepare.json` and so on."""
    return run_dir / "reports" / f"{stage.value.lower()}.json"


@dataclass(frozen=True, slots=True)
class ModelContext:
    """Where the model of a run is, and what is known of it: all that its server needs. `artifacts` is the root of the
    artifact volume."""

    config: ServedRun
    artifacts: Path

    @property
    def run_dir(self) -> Path:
        return self.artifacts / self.config.paths.run

    @property
    def model_dir(self) -> Path:
        return self.run_dir / "model"

    @property
    def evaluation_dir(self) -> Path:
        return self.run_dir / "evaluation"

    @property
    def page_path(self) -> Path:
        """The run report, for people."""
        return self.evaluation_dir / "report.html"

    @property
    def card_path(self) -> Path:
        """The model card."""
        return self.model_dir / artifacts.CARD

    def report_path(self, stage: Stage) -> Path:
        """Where the stage's Summary is kept."""
        return report_in(self.run_dir, stage)


@dataclass(frozen=True, slots=True)
class StageContext(ModelContext):
    """The input of every stage but Serve. `sources` holds `pvc/CLAIM/...` and `configmap/NAME/KEY`, read-only, mounted
    for Prepare only."""

    config: RunConfig
    sources: Path
    # The settings that run.json has, where `config` has later ones: what reports without a hash were measured by.
    first_evaluation: EvaluationSpec | None = None

    @property
    def gpus(self) -> int:
        """GPUs of this very pod. The run's snapshot may say otherwise: a job that waited for a GPU in vain may have
        been given to the CPU since (compute is no part of a run)."""
        return int(os.environ.get("FINETUNE_GPUS", self.config.gpus))

    @property
    def evaluation_hash(self) -> str:
        """Of the settings that Evaluate measures by."""
        return evaluation_hash(self.config.evaluation)

    @property
    def first_evaluation_hash(self) -> str:
        """Of the settings at the run's beginning."""
        return evaluation_hash(self.first_evaluation or self.config.evaluation)

    @property
    def models_dir(self) -> Path:
        return self.artifacts / self.config.paths.models

    @property
    def dataset_dir(self) -> Path:
        return self.run_dir / "dataset"

    @property
    def checkpoints_dir(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def continued_dir(self) -> Path:
        """The adapter that the run goes on with, as it was."""
        return self.run_dir / "continued"

    @property
    def before(self) -> Path | None:
        """The same, where there is one."""
        continued = self.config.continued_from
        return self.continued_dir if continued is not None and continued.continues else None

    @property
    def benchmarks_dir(self) -> Path:
        """The data of the benchmarks, a folder each."""
        return self.run_dir / "benchmarks"

    @property
    def exports_dir(self) -> Path:
        return self.run_dir / "exports"

    @property
    def training_report_path(self) -> Path:
        return self.run_dir / "reports" / "training.json"

    @property
    def progress_path(self) -> Path:
        return self.run_dir / "progress.json"
