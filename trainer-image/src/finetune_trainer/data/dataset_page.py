"""The dataset report as a page, for people who never trained a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_trainer.data.quality.samples import learned
from finetune_trainer.pages import charts, page

WORKED = {"fill": "missing values filled", "missingValues": "left out: a value is missing"}
WORKED |= {"controlCharacters": "rid of control characters", "duplicates": "left out: occurred before"}
WORKED |= {"nearDuplicates": "left out: nearly the same as one before", "overLong": "left out: longer than maxLength"}
# What a person calls the words that only the one side of a conversation says.
SPEAKERS = {"user": "user (who asks)", "assistant": "assistant (what is learned)", "system": "system (instructions)"}
SPEAKERS |= {"tool": "tool (results of functions)", "developer": "developer (instructions)"}


def render(report: Mapping[str, Any]) -> str:
    """The page of a report as `dataset_report` writes it."""
    lengths = _lengths(report)
    sections = list(_sections(report, lengths))
    return page.render(
        "dataset.html",
        report=report,
        sections=sections,
        shown={id for id, _ in sections},
        figures=list(_figures(report)),
        lengths=lengths,
        labels=_labels(report),
        roles=[(SPEAKERS.get(role, role), count) for role, count in report["roles"].items()],
        worked=WORKED,
        learned=learned,
        warnings=sum(problem["severity"] == "warning" for problem in report["problems"]),
        sensitive=[each for each in report["problems"] if each["check"].startswith(("secret_", "personal_"))],
    )


def _sections(report: Mapping[str, Any], lengths: charts.Chart | None) -> Iterator[tuple[str, str]]:
    if report["dataset"]:
        yield "glance", "At a glance"
    yield "problems", "What was found"
    if report["examples"] or report["examplesWithheld"]:
        yield "learned", "What the model learns"
    if lengths:
        yield "lengths", "How long the examples are"
    if _labels(report):
        yield "labels", "How often each label occurs"
    if report["roles"]:
        yield "roles", "Who speaks"
    yield "repetition", "Repetition and leaks"
    yield "sensitive", "Secrets and personal data"
    if report["cleaned"]:
        yield "cleaned", "What was changed"


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, value, hint) of the tiles."""
    data = report["dataset"]
    if not data:
        return
    yield "examples to learn from", f"{data['trainExamples']:,}", ""
    yield "examples held out", f"{data['validationExamples']:,}", "never trained on: the model is measured by them"
    if data["labels"]:
        yield "labels", f"{len(data['labels']):,}", "what the model tells apart"
    else:
        share = 100 * data["lossTokens"] / max(1, data["trainTokens"])
        hint = f"{share:.0f} % of {data['trainTokens']:,}; the rest is only read"
        yield "tokens to learn", f"{data['lossTokens']:,}", hint
    if length := data["length"]:
        yield "length of half of them", f"≤ {length['p50']:,} tokens", f"longest {length['max']:,}"
    values = report["resolved"]
    yield "passes over the data", f"{values['epochs']:,}", f"{values['totalSteps']:,} steps in all"


def _lengths(report: Mapping[str, Any]) -> charts.Chart | None:
    counts = {int(length): count for length, count in report["lengths"].items()}
    if not counts:
        return None
    limit = report["resolved"]["maxLength"] if report["resolved"] else None
    longer = sum(count for length, count in counts.items() if limit and length > limit)
    summary = f"{sum(counts.values()):,} examples, from {min(counts):,} to {max(counts):,} tokens."
    if limit:
        summary += (
            f" maxLength is {limit:,} tokens: {longer:,} are longer."
            if longer
            else f" None is longer than maxLength ({limit:,})."
        )
    return charts.histogram(
        counts,
        title="Tokens of an example",
        summary=summary,
        unit="tokens",
        of="examples",
        limits={"maxLength": limit} if limit else {},
    )


def _labels(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The most frequent first."""
    data = report["dataset"] or {"labels": []}
    return sorted(((each["label"], each["count"]) for each in data["labels"]), key=lambda each: -each[1])
