"""What was found in a dataset: short for the status, in plain words for the log."""

from __future__ import annotations

import logging

from finetune_api.status import DatasetStatus, LabelCount, LengthStats
from finetune_trainer.data.problems import Fault, Finding, Findings, line_list, plain_words
from finetune_trainer.data.quality.inspection import Inspection
from finetune_trainer.data.remedy import remedy
from finetune_trainer.data.split import Split
from finetune_trainer.data.tokens import Stored
from finetune_trainer.errors import UserInputError
from finetune_trainer.resolve import Resolution
from finetune_trainer.tasks.kind import Facts

log = logging.getLogger(__name__)

MAX_LABELS = 100  # in the status


def refuse_errors(findings: Findings) -> None:
    """Raise UserInputError (DatasetInvalid) that names the worst problems with their lines."""
    errors = findings.errors()
    if not errors:
        return
    texts = [f"{_place(e, limit=10)}: {e.message}" for e in errors[:3]]
    more = f"; and {len(errors) - 3} more kinds of problem" if len(errors) > 3 else ""
    raise UserInputError("; ".join(texts) + more, advice=remedy(errors, findings))


def unlearned(facts: Facts, train: Stored) -> list[Fault]:
    """A warning of labels that the data has, and that no example is left to learn by."""
    counted = zip(facts.labels, facts.counts, train.labels, strict=True)
    lost = [label for label, given, learned in counted if given and not learned]
    if not lost:
        return []
    text = (
        f"{len(lost)} label(s) of the data are not learned ({plain_words(lost[:5])}): all of their examples are held "
        "out, cut or left out; add examples of them"
    )
    return [Fault("label_not_learned", text, severity="warning")]


def dataset_status(
    sides: Split,
    train: Stored,
    validation: Stored,
    lengths: LengthStats,
    facts: Facts,
    findings: Findings,
    sha256: str,
    inspection: Inspection,
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
        near_duplicates=inspection.near_duplicates,
        near_overlap=inspection.near_overlap,
        cleaned=inspection.cleaned,
        sha256=sha256,
        problems=findings.for_status(),
    )


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
