"""What Prepare changes in the data because the user asks for it, and what it does about secrets in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.tasks import Task, other_than

SIMILARITY = r"^(0\.[5-9][0-9]{0,2}|1(\.0{1,3})?)$"
Text = Annotated[str, Field(max_length=1024)]


class SensitiveData(Named):
    """About keys, passwords and personal data that are found in the examples."""

    WARN = "Warn"
    REFUSE = "Refuse"
    IGNORE = "Ignore"


class MissingValues(Named):
    REFUSE = "Refuse"
    DROP = "Drop"


class ControlCharacters(Named):
    KEEP = "Keep"
    STRIP = "Strip"


class Repeated(Named):
    """Of examples that occur again."""

    KEEP = "Keep"
    DROP = "Drop"


class OverLong(Named):
    """Of examples that are longer than maxLength."""

    TRUNCATE = "Truncate"
    DROP = "Drop"


class Fill(ApiModel):
    """What stands in for a value that is absent, null or blank, by the task's own names."""

    label: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Classification: the label of texts without one."
    )
    text_pair: Text | None = Field(default=None, description="Classification: the second text.")
    prompt: Text | None = Field(default=None, description="Completion: what comes before; may be empty.")
    completion: Text | None = Field(default=None, description="Completion: what the model writes.")
    target: Text | None = Field(default=None, description="Seq2Seq: what the model writes.")


FILLED: Mapping[Task, tuple[str, ...]] = {
    Task.CLASSIFICATION: ("label", "text_pair"),
    Task.COMPLETION: ("prompt", "completion"),
    Task.SEQ2SEQ: ("target",),
}


class Cleaning(ApiModel):
    """Changes to the data, in this order: fill, missingValues, controlCharacters; then every example is checked; then
    duplicates, nearDuplicates, and after the split overLong. Nothing is changed that is not asked for, and the report
    counts what each step did."""

    fill: Fill | None = Field(default=None, description="Texts that stand in for missing values.")
    missing_values: MissingValues = Field(
        default=MissingValues.REFUSE,
        description="Examples in which a value that the task needs is absent, null or blank. Refuse: the data is "
        "refused, with the lines. Drop: they are left out.",
    )
    control_characters: ControlCharacters = Field(
        default=ControlCharacters.KEEP,
        description="Characters that cannot be seen and steer terminals or turn the direction of the text (not line "
        "ends and tabs). Strip: removed; in data with places (spans, answers) replaced by a blank, so that the places "
        "stay right.",
    )
    duplicates: Repeated = Field(
        default=Repeated.KEEP, description="Examples that occurred before, to the letter. Drop: the first one stays."
    )
    near_duplicates: Repeated = Field(
        default=Repeated.KEEP,
        description="Examples that are nearly one that came before. Drop: the first one stays, and so no held-out "
        "example is nearly a training example.",
    )
    similarity: str | None = Field(
        default=None,
        max_length=5,
        pattern=SIMILARITY,
        description="Share of the word pairs of two examples that both have, from which on they are near-duplicates: "
        '"0.5" to "1". Default "0.8".',
    )
    over_long: OverLong = Field(
        default=OverLong.TRUNCATE,
        description="Examples longer than maxLength. Truncate: cut. Drop: left out, and not counted for "
        "maxLostPercent.",
    )
    max_dropped_percent: Int = Field(
        default=50,
        ge=1,
        le=100,
        description="Share of the examples, in percent, that cleaning may leave out. Above it the data is refused.",
    )


def over_long_rule() -> Rule:
    """Of the job's spec: no task drops what it does not cut."""
    return Rule(
        "!has(self.dataset.cleaning) || !has(self.dataset.cleaning.overLong) || "
        "self.dataset.cleaning.overLong != 'Drop'",
        "dataset.cleaning.overLong: QuestionAnswering reads long texts in windows and cuts nothing; remove it",
        lambda spec: spec.task is not Task.QUESTION_ANSWERING or spec.dataset.cleaning.over_long is not OverLong.DROP,
        unless=other_than(Task.QUESTION_ANSWERING),
    )


def fill_rule(task: Task) -> Rule:
    """Of the job's spec: the values of this task can be filled in no other."""
    names = FILLED[task]
    spelled = [Fill.model_fields[name].alias or name for name in names]
    none = " && ".join(f"!has(self.dataset.cleaning.fill.{name})" for name in spelled)
    return Rule(
        f"self.task == '{task}' || ({none})",
        f"dataset.cleaning.fill: only the task {task} has {' and '.join(spelled)}; remove what is not of spec.task",
        lambda spec: (
            spec.task is task
            or spec.dataset.cleaning.fill is None
            or all(getattr(spec.dataset.cleaning.fill, name) is None for name in names)
        ),
        unless="!has(self.dataset.cleaning) || !has(self.dataset.cleaning.fill)",
    )
