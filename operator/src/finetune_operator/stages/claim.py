"""Which claim a run's files are on: the one that its first stage wrote to."""

from __future__ import annotations

from finetune_api.conditions import Stage
from finetune_api.status import RunStatus
from finetune_operator import names
from finetune_operator.builders.stage_job import run_claim
from finetune_operator.diagnose import ever_ran, job_condition
from finetune_operator.runs import ended_with_failure, is_done
from finetune_operator.stages.job_stage import job_of, pods_of
from finetune_operator.stages.view import View, is_deleting


def with_claim(view: View, run: RunStatus) -> RunStatus:
    """The run with its claim. Until something has been written to it, it follows output.claimName, so that a wrong
    name can be corrected; from then on the run keeps it, in training and in service."""
    return run.model_copy(update={"claim_name": _claim(view, run)})


def _claim(view: View, run: RunStatus) -> str:
    wanted = view.job.spec.output.claim_name
    if run.model is not None:
        return names.claim_of(run.model.uri)
    if is_done(run, Stage.PREPARE):
        return run_claim(view.job, run)
    first = job_of(view, run, Stage.PREPARE)
    if first is None or is_deleting(first):
        return run_claim(view.job, run) if ended_with_failure(run) else wanted
    ended = any(job_condition(first, kind) for kind in ("Complete", "SuccessCriteriaMet", "Failed", "FailureTarget"))
    if ended or any(ever_ran(pod) for pod in pods_of(view, first)):
        return names.annotation(first, names.ANNOTATION_CLAIM) or run_claim(view.job, run)
    return wanted
