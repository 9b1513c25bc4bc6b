"""`spec.triggers`: what starts a run beside a change of the spec. Names and meaning are those of a CronJob where it has
them. No part of a run: a change trains nothing."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Bool, Int, Named, Rule, StatusModel
from finetune_api.conditions import Trigger
from finetune_api.dataset_poll import DatasetPollSpec
from finetune_api.failure import Time, Word

FIELDS = 5
# What each field of a crontab takes: (name, one value by RE2 and by Python's re, an example of it).
_VALUES = (
    ("minute", "[0-5]?[0-9]", "0 to 59"),
    ("hour", "([01]?[0-9]|2[0-3])", "0 to 23"),
    ("day of the month", "(0?[1-9]|[12][0-9]|3[01])", "1 to 31"),
    ("month", "(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))", "1 to 12, or JAN to DEC"),
    ("day of the week", "([0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))", "0 to 7, or SUN to SAT"),
)
_SPLIT = "self.cron.split(' ')"


def _field_rule(index: int) -> Rule:
    name, value, example = _VALUES[index]
    item = f"([*]|{value}(-{value})?)(/[1-9][0-9]?)?"
    pattern = f"^{item}(,{item})*$"
    return Rule(
        f"{_SPLIT}.size() != {FIELDS} || {_SPLIT}[{index}].matches('{pattern}')",
        f"cron: the {name} is *, {example}, a range, a list, or steps such as */2",
        lambda schedule: (
            len(fields := schedule.cron.split(" ")) != FIELDS or re.search(pattern, fields[index]) is not None
        ),
    )


class ConcurrencyPolicy(Named):
    FORBID = "Forbid"
    REPLACE = "Replace"


class ScheduleSpec(ApiModel):
    """Runs of the same specification at set times, for data that changes behind an unchanged name."""

    cron: str = Field(
        min_length=9,
        max_length=100,
        description="Minute, hour, day of the month, month and day of the week as in a crontab: `0 2 * * SUN` is each "
        "Sunday at two. Where clocks are put forward, a time that does not exist is met right after the gap; where "
        "they are put back, a set hour is met once, and `*` in the hour goes on by real hours.",
    )
    time_zone: str = Field(
        default="Etc/UTC",
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z][-+_A-Za-z0-9]*(/[A-Za-z][-+_A-Za-z0-9]*){0,2}$",
        description="IANA name of the time zone that `cron` is in, for example Europe/Berlin.",
    )
    concurrency_policy: ConcurrencyPolicy = Field(
        default=ConcurrencyPolicy.FORBID,
        description="What becomes of an occasion while a run is under way. Forbid: it waits for that run's end; of "
        "several that wait the last one counts. Replace: it supersedes that run.",
    )
    starting_deadline_seconds: Int | None = Field(
        default=None,
        ge=60,
        le=31536000,
        description="How late a run may begin, seconds (60 to a year), when a run was under way or the operator was "
        "down. Later the occasion is passed over. Absent: of the occasions that were missed the last one is made up "
        "for, however late.",
    )
    suspend: Bool = Field(
        default=False,
        description="true: no run begins by the schedule. Occasions that pass meanwhile are not made up for.",
    )
    rules: ClassVar = (
        Rule(
            f"{_SPLIT}.size() == {FIELDS}",
            "cron: write five fields with one blank between them: minute, hour, day of the month, month, day of the "
            "week; for example 0 2 * * SUN",
            lambda schedule: len(schedule.cron.split(" ")) == FIELDS,
        ),
        *(_field_rule(index) for index in range(FIELDS)),
        Rule(
            "self.timeZone != 'Local'",
            "timeZone: Local is another one on each machine; write an IANA name, for example Europe/Berlin",
            lambda schedule: schedule.time_zone != "Local",
        ),
    )


class TriggersSpec(ApiModel):
    """What starts a run of an unchanged specification."""

    schedule: ScheduleSpec | None = Field(default=None, description="A run at each of these times.")
    dataset_poll: DatasetPollSpec | None = Field(
        default=None, description="A run when the data behind the names in `dataset` has changed."
    )


class Beginning(StatusModel):
    """What began a run."""

    trigger: Trigger = Field(description="Why it was started.")
    occasion: Word | None = Field(default=None, description="What the trigger came with.")
    time: Time = Field(description="When its data was read.")


class ScheduleStatus(StatusModel):
    """Where the schedule is."""

    cron: Word = Field(description="The schedule that this is about: cron and time zone.")
    since: Time = Field(description="Occasions after this moment are still to come or to be made up for.")
    next_time: Time | None = Field(
        default=None, description="The next occasion. One that has passed waits for the run under way."
    )
    last_time: Time | None = Field(default=None, description="The occasion of the last run by the schedule.")
    missed_time: Time | None = Field(default=None, description="The last occasion that was passed over as too late.")
