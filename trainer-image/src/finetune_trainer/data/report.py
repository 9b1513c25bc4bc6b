"""The dataset report: in full for the artifact volume, short for the status, in plain words for the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.status import DatasetStatus, LabelCount, LengthStats
from finetune_trainer import artifacts
from finetune_trainer.data.flow import Example
from finetune_trainer.data.problems import Finding, Findings, line_list
from finetune_trainer.data.remedy import remedy
from finetune_trainer.data.split import Split
from finetune_trainer.data.tokens import Stored
from finetune_trainer.errors import UserInputError
from finetune_trainer.masking import IGNORED
from finetune_trainer.resolve import Resolution
from finetune_trainer.tasks.kind import Facts

log = logging.getLogger(__name__)

MAX_LABELS = 100  # in the status
PROBLEMS_FILE = "dataset-problems.json"


def refuse_errors(findings: Findings) -> None:
    """Raise UserInputError (DatasetInvalid) that names the worst problems with their lines."""
    errors = findings.errors()
    if not errors:
        return
    texts = [f"{_place(e, limit=10)}: {e.message}" for e in errors[:3]]
    more = f"; and {len(errors) - 3} more kinds of problem" if len(errors) > 3 else ""
    raise UserInputError("; ".join(texts) + more, advice=remedy(errors, findings))


def refusal(error: UserInputError, findings: Findings, run_dir: Path) -> UserInputError:
    """The error with the problems found so far; they are also logged, and kept in the run's folder."""
    if findings.sorted():
        log_problems(findings)
        text = json.dumps({"error": error.message, "problems": findings.for_report()}, ensure_ascii=False, indent=1)
        artifacts.write_json(run_dir / "reports" / PROBLEMS_FILE, text)
        # As one finds it on the output claim, whatever the claim is mounted as.
        place = "/".join((*run_dir.parts[-4:], "reports", PROBLEMS_FILE))
        error.advice = f"{error.advice}; every problem with every line: {place}"
    error.dataset = DatasetStatus(problems=findings.for_status())
    return error


def dataset_status(
    sides: Split,
    train: Stored,
    validation: Stored,
    lengths: LengthStats,
    facts: Facts,
    findings: Findings,
    sha256: str,
) -> DatasetStatus:
    """Figures for the status. Tokens are those that are trained on, after the cut; lengths those before it."""
    return DatasetStatus(
        train_examples=train.examples,
        validation_examples=validation.examples,
        train_tokens=train.tokens,
        loss_tokens=train.learned,
        labels=[
            LabelCount(label=label[:253], count=count)
            for label, count in zip(facts.labels[:MAX_LABELS], facts.counts, strict=False)
        ],
        length=lengths,
        truncated=train.truncated + validation.truncated,
        dropped=train.dropped + validation.dropped,
        duplicates=sides.duplicates,
        overlap=sides.overlap,
        sha256=sha256,
        problems=findings.for_status(),
    )


def full_report(
    status: DatasetStatus, resolution: Resolution, findings: Findings, examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """`dataset/report.json`: figures, every problem with every line, and a few examples as the model sees them."""
    return {
        "dataset": status.model_dump(mode="json", by_alias=True, exclude={"problems"}),
        "resolved": resolution.values.model_dump(mode="json", by_alias=True),
        "estimate": resolution.estimate.model_dump(mode="json", by_alias=True),
        "notes": resolution.notes,
        "problems": findings.for_report(),
        "examples": examples,
    }


def shown(examples: Sequence[Example], tokenizer: Any) -> list[dict[str, Any]]:
    """Examples as the model reads them, and what it learns of each."""
    return [{"line": example.line, **_as_read(example, tokenizer)} for example in examples]


def _as_read(example: Example, tokenizer: Any) -> dict[str, Any]:
    labels = example.tokens.get("labels")
    if labels is not None and len(labels) == len(example.tokens["input_ids"]) and _are_tokens(example):
        return {"pieces": pieces(example.tokens["input_ids"], labels, tokenizer)}
    return {"read": tokenizer.decode(example.tokens["input_ids"]), "example": json.loads(example.text)}


def _are_tokens(example: Example) -> bool:
    """Whether the labels are the tokens themselves, as where text is generated."""
    pairs = zip(example.tokens["input_ids"], example.tokens["labels"], strict=True)
    return all(label in (IGNORED, token) for token, label in pairs)


def pieces(input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> list[dict[str, Any]]:
    """Runs of tokens with the same fate: [{"trained": bool, "text": str}]."""
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(input_ids, labels, strict=True):
        trained = label != IGNORED
        if not runs or runs[-1][0] != trained:
            runs.append((trained, []))
        runs[-1][1].append(token)
    return [{"trained": trained, "text": tokenizer.decode(ids)} for trained, ids in runs]


def log_problems(findings: Findings) -> None:
    for finding in findings.sorted():
        level = logging.ERROR if finding.fault.severity == "error" else logging.WARNING
        log.log(level, "%s: %s", _place(finding, limit=100), finding.fault.message)


def _place(finding: Finding, limit: int) -> str:
    """`train data, lines 3 and 7`; `train data` for the file as a whole."""
    lines = line_list(finding.lines, limit, finding.unit, finding.count)
    return f"{finding.file} data" + (f", {lines}" if lines else "")


def log_result(status: DatasetStatus, resolution: Resolution, findings: Findings) -> None:
    """What a newcomer wants to read at the end of Prepare."""
    log_problems(findings)
    values, needs = resolution.values, resolution.estimate
    length = status.length
    log.info(
        "data: %s tokens, of which %s (%.0f %%) are the answers that are trained on",
        f"{status.train_tokens:,}",
        f"{status.loss_tokens:,}",
        100 * status.loss_tokens / max(1, status.train_tokens),
    )
    if length:
        log.info(
            "data: an example has %d to %d tokens, half have at most %d; cut at %d: %d cut, %d left out",
            length.min,
            length.max,
            length.p50,
            values.max_length,
            status.truncated,
            status.dropped,
        )
    log.info(
        "training: %d epochs, %d steps of %d examples (%d at once), learning rate %g, %s",
        values.epochs,
        values.total_steps,
        values.batch_size,
        values.micro_batch_size,
        values.learning_rate,
        values.precision,
    )
    log.info("estimate: %.1f GiB of memory, %s of training", needs.memory_bytes / 2**30, duration(needs.train_seconds))
    for note in resolution.notes:
        log.warning("%s", note)


def duration(seconds: int) -> str:
    """`40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 120:
        return f"{seconds} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
