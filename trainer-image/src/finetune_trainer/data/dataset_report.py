"""The dataset report: everything that Prepare found, as `reports/dataset.json` and as the page `reports/dataset.html`.

Written for every run, also for data that is refused. What stands in the page stands in the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.status import DatasetStatus
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.data import dataset_page, report
from finetune_trainer.data.problems import Finding, Findings
from finetune_trainer.data.quality.excerpts import SHOWN, Excerpts, first_places
from finetune_trainer.data.quality.inspection import Inspection
from finetune_trainer.errors import UserInputError
from finetune_trainer.resolve import Resolution

JSON, PAGE = "dataset.json", "dataset.html"
# Of data that is refused there is no more than what is wrong with it.
NOTHING: Mapping[str, Any] = {
    "dataset": None,
    "resolved": None,
    "estimate": None,
    "notes": [],
    "examples": [],
    "examplesWithheld": 0,
}
FOLDERS = 4  # NAMESPACE/JOB/runs/RUN: where a run lies on the output claim


def full(
    status: DatasetStatus,
    resolution: Resolution,
    findings: Findings,
    inspection: Inspection,
    samples: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The report of data that is fit for training."""
    return {
        "refused": None,
        "dataset": status.model_dump(mode="json", by_alias=True, exclude={"problems"}),
        "resolved": resolution.values.model_dump(mode="json", by_alias=True),
        "estimate": resolution.estimate.model_dump(mode="json", by_alias=True),
        "notes": resolution.notes,
        **_found(findings, inspection),
        "examples": list(samples),
        "examplesWithheld": inspection.samples.withheld,
    }


def refusal(error: UserInputError, context: StageContext, findings: Findings, inspection: Inspection) -> UserInputError:
    """The error with the problems found so far; they are also logged, and reported in the run's folder."""
    if findings.sorted():
        report.log_problems(findings)
        refused = {"message": error.message, "advice": error.advice}
        # As one finds it on the output claim, whatever the claim is mounted as.
        place = "/".join((*context.run_dir.parts[-FOLDERS:], "reports", PAGE))
        error.advice = f"{error.advice}; every problem with its lines: {place}"
        write(context, {**NOTHING, "refused": refused, **_found(findings, inspection)})
    error.dataset = DatasetStatus(problems=findings.for_status(), cleaned=inspection.cleaned)
    return error


def write(context: StageContext, found: dict[str, Any]) -> None:
    """Both files. Raises OSError when the volume is full."""
    config = context.config
    head = {"job": config.job, "namespace": config.namespace, "run": config.run, "task": config.task.value}
    whole = {**head, "baseModel": config.base_model.told, **found}
    artifacts.write_json(_path(context, JSON), json.dumps(whole, ensure_ascii=False, indent=1))
    artifacts.write_json(_path(context, PAGE), dataset_page.render(whole))


def remove(context: StageContext) -> None:
    """What an earlier attempt has reported."""
    for name in (JSON, PAGE):
        _path(context, name).unlink(missing_ok=True)


def _path(context: StageContext, name: str) -> Path:
    return context.run_dir / "reports" / name


def _found(findings: Findings, inspection: Inspection) -> dict[str, Any]:
    problems = [
        {**kind, "unit": finding.unit, "examples": _excerpts(finding, inspection.excerpts)}
        for kind, finding in zip(findings.for_report(), findings.sorted(), strict=True)
    ]
    counting, comparison = inspection.counting, inspection.comparison
    return {
        "problems": problems,
        "lengths": {str(length): count for length, count in sorted(counting.lengths.items())},
        "roles": dict(counting.roles.most_common()),
        "cleaned": [step.model_dump(by_alias=True) for step in inspection.cleaned],
        "nearDuplicates": {
            "similarity": inspection.similarity,
            "compared": len(comparison),
            "notCompared": comparison.left_out,
            "pairs": inspection.shown_pairs(),
        },
        "sensitiveData": {"lookedFor": inspection.looking.looks},
    }


def _excerpts(finding: Finding, excerpts: Excerpts) -> list[dict[str, Any]]:
    return [
        {"line": line, "where": where, "text": excerpts.of(finding.file, line, where)}
        for line, where in first_places(finding)[:SHOWN]
    ]
