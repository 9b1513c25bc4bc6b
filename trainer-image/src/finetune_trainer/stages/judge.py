"""Judge: another model compares the answers that Evaluate kept. No model is loaded here, and no GPU is needed.

The only stage between Evaluate and the gate that reaches the network, and with the judge's Secret alone.
"""

from __future__ import annotations

import logging
import os

from finetune_api.conditions import FailureReason, Stage
from finetune_api.judge import API_KEY
from finetune_api.reports import EvaluateReport, Summary
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.evaluation.judging import Endpoint, connect, judge
from finetune_trainer.reporting.leave import leave_report

log = logging.getLogger(__name__)


def run(context: StageContext) -> Summary:
    """Ask, and write the verdicts into report, page and card. An endpoint that cannot be asked is a note, not a
    failure: a gate rule on the judge then does not hold.

    Raises UserInputError when no judge is named, ArtifactInvalidError when Evaluate's report is not there.
    """
    spec = context.config.evaluation.judge
    if spec is None:
        raise UserInputError(
            "evaluation.judge is not set", advice="name an endpoint and a model", reason=FailureReason.SPEC_INVALID
        )
    path = context.evaluation_dir / "report.json"
    try:
        report = EvaluateReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactInvalidError(f"{path} cannot be read: {error}", advice="set a new spec.rerunToken") from error
    with connect(spec, os.environ.get(API_KEY)) as client:
        judged = judge(Endpoint(client, spec), report.to_judge, context.config.hyperparameters.seed)
    found = judged.status
    log.info("judge: wins=%d ties=%d losses=%d unusable=%d", found.wins, found.ties, found.losses, found.unusable)
    evaluation = report.evaluation.model_copy(update={"judge": found})
    report = report.model_copy(update={"evaluation": evaluation})
    artifacts.write_json(path, report.model_dump_json(by_alias=True, exclude_none=True, indent=1))
    leave_report(context, report, [*report.notes, *judged.notes], report.environment)
    return Summary(stage=Stage.JUDGE, ok=True, evaluation=evaluation, notes=judged.notes)
