"""Schedules that cannot be meant: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

PLACE = "spec.triggers.schedule"


def _cron(name: str, cron: str, message: str) -> Bad:
    return Bad(f"a schedule with {name}", f"triggers: {{schedule: {{cron: {cron!r}}}}}", PLACE, message)


TRIGGER_RULES = (
    _cron("four fields", "0 2 * MON", "cron: write five fields with one blank between them"),
    _cron("seconds", "0 0 2 * * SUN", "cron: write five fields with one blank between them"),
    _cron("two blanks", "0 2  * * SUN", "cron: write five fields with one blank between them"),
    _cron("a word for it", "@every 1h30m", "cron: write five fields with one blank between them"),
    _cron("minute 60", "60 2 * * *", "cron: the minute is *, 0 to 59, a range, a list, or steps"),
    _cron("hour 24", "0 24 * * *", "cron: the hour is *, 0 to 23"),
    _cron("day 32", "0 2 32 * *", "cron: the day of the month is *, 1 to 31"),
    _cron("month 0", "0 2 * 0 *", "cron: the month is *, 1 to 12"),
    _cron("a day in another language", "0 2 * * SO", "cron: the day of the week is *, 0 to 7, or SUN to SAT"),
    _cron("a step of nothing", "*/0 2 * * *", "cron: the minute is *, 0 to 59"),
    _cron("a time zone within", "TZ=UTC 2 * * *", "cron: the minute is *, 0 to 59"),
    Bad(
        "a schedule in the machine's zone",
        "triggers: {schedule: {cron: 0 2 * * SUN, timeZone: Local}}",
        PLACE,
        "timeZone: Local is another one on each machine; write an IANA name",
    ),
)
TRIGGER_SCHEMA = (
    Bad(
        "a schedule in a file of the machine",
        "triggers: {schedule: {cron: 0 2 * * SUN, timeZone: ../../etc/passwd}}",
        f"{PLACE}.timeZone",
        "should match",
    ),
    Bad(
        "runs beside each other",
        "triggers: {schedule: {cron: 0 2 * * SUN, concurrencyPolicy: Allow}}",
        f"{PLACE}.concurrencyPolicy",
        'supported values: "Forbid", "Replace"',
    ),
    Bad(
        "a look each second",
        "triggers: {datasetPoll: {periodSeconds: 1}}",
        "spec.triggers.datasetPoll.periodSeconds",
        "should be greater than or equal to 60",
    ),
    Bad(
        "a look a year",
        "triggers: {datasetPoll: {periodSeconds: 31536000}}",
        "spec.triggers.datasetPoll.periodSeconds",
        "should be less than or equal to 2592000",
    ),
    Bad(
        "a period in words",
        "triggers: {datasetPoll: {periodSeconds: 1h}}",
        "spec.triggers.datasetPoll.periodSeconds",
        'must be of type integer: "string"',
    ),
    Bad(
        "a deadline of a second",
        "triggers: {schedule: {cron: 0 2 * * SUN, startingDeadlineSeconds: 1}}",
        f"{PLACE}.startingDeadlineSeconds",
        "should be greater than or equal to 60",
    ),
)
