"""The baseline Previous: which model it is, and whether the Evaluate pod can read it."""

from __future__ import annotations

from finetune_api.conditions import RunResult
from finetune_api.evaluation import Baseline
from finetune_api.job import FineTuneJob
from finetune_api.run_config import PreviousRun
from finetune_api.status import ModelStatus, RunStatus
from finetune_operator import names


def previous_run(job: FineTuneJob, run: RunStatus, claim: str) -> PreviousRun | None:
    """What the run is compared with; None when it is not asked for or there is none. `claim` is the run's own.

    A pod that names a claim which is gone never starts. One that a server reads from is there, for Kubernetes deletes
    no claim that is in use; of any other nobody tells us.
    """
    model = _model(job, run) if Baseline.PREVIOUS in job.spec.evaluation.baselines else None
    if model is None:
        return None
    own = names.claim_of(model.uri)
    served = job.status.endpoint is not None and job.status.endpoint.run == model.run
    return PreviousRun(
        run=model.run,
        path=names.path_of(model.uri),
        base_path=names.path_of(model.base_uri) if model.base_uri else None,
        claim=own if own != claim else None,
        mounted=own == claim or served,
    )


def _model(job: FineTuneJob, run: RunStatus) -> ModelStatus | None:
    """The model in service; where that is the run's own, the last one that was promoted before it."""
    served = job.status.model
    if served is not None and served.run != run.number:
        return served
    earlier = [
        record.model
        for record in job.status.runs
        if record.result is RunResult.PROMOTED and record.model is not None and record.number < run.number
    ]
    return earlier[-1] if earlier else None
