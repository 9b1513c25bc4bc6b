"""When each alert of the chart shall fire and when not, as series a minute apart. promtool evaluates them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FROM = {"namespace": "finetune-system", "service": "finetune-operator", "pod": "operator-a"}
DAY = 24 * 60  # minutes


@dataclass(frozen=True)
class Series:
    """One series in promtool's notation: `0+1x60` counts up by one a minute for an hour."""

    metric: str
    values: str
    labels: dict[str, str]

    def to_input(self) -> dict[str, str]:
        labels = ",".join(f'{name}="{value}"' for name, value in {**FROM, **self.labels}.items())
        return {"series": f"{self.metric}{{{labels}}}", "values": self.values}


@dataclass(frozen=True)
class Case:
    """What is seen at a minute. `says` is the summary of the alert that fires; None: it does not."""

    alert: str
    what: str
    series: tuple[Series, ...]
    minute: int
    says: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    def to_test(self, severity: str) -> dict[str, Any]:
        """A test of promtool's."""
        fired = {"exp_labels": {"severity": severity, **dict(self.labels)}, "exp_annotations": {"summary": self.says}}
        expected = {
            "eval_time": f"{self.minute}m",
            "alertname": self.alert,
            "exp_alerts": [fired] if self.says is not None else [],
        }
        return {
            "name": f"{self.alert}: {self.what}",
            "interval": "1m",
            "input_series": [each.to_input() for each in self.series],
            "alert_rule_test": [expected],
        }


def series(metric: str, values: str, **labels: str) -> Series:
    return Series(f"finetune_{metric}", values, labels)


def began(values: str, **labels: str) -> Series:
    return Series("process_start_time_seconds", values, labels)


def passes(outcome: str, values: str) -> Series:
    return series("reconcile_seconds_count", values, outcome=outcome)


def waits(reason: str, since: str) -> Series:
    return series("jobs_waiting_since_timestamp_seconds", since, reason=reason)


LEADS, FOLLOWS = series("leader", "1x90"), series("leader", "0x90", pod="operator-b")
DOWN = "No replica of the operator acts. What runs goes on; nothing new begins, no status moves."
STALE = "The operator has not read the cluster as a whole for several periods; its picture may be old."
FAULT = "The operator met something that it was not made for; its log has the trace and the job's name."
REFUSED = "The API server refuses pods to the operator (403): rights or definition do not fit this version."

CASES = (
    Case("FinetuneOperatorDown", "nobody leads", (series("leader", "0x20"), FOLLOWS), 6, DOWN),
    Case("FinetuneOperatorDown", "nobody is there", (), 6, DOWN),
    Case("FinetuneOperatorDown", "another release leads", (series("leader", "1x20", service="other"),), 6, DOWN),
    Case("FinetuneOperatorDown", "one of two leads", (LEADS, FOLLOWS), 60),
    Case("FinetuneOperatorDown", "the lease is taken over", (series("leader", "1x5 0 0 0 1x20"),), 12),
    Case(
        "FinetuneOperatorRestarts",
        "two replicas that fall in turn",
        (began("0 0 60 60 180x60"), began("0 30 30 90 210x60", pod="operator-b")),
        10,
        "The operator has begun anew 5 times within an hour.",
    ),
    Case("FinetuneOperatorRestarts", "an upgrade", (began("0x20"), began("_x5 300x60", pod="operator-c")), 20),
    Case("FinetuneOperatorRestarts", "a node that was drained", (began("0 0 60x60"),), 20),
    Case(
        "FinetuneListsStale",
        "the leader's lists fail",
        (LEADS, series("resync_timestamp_seconds", "0x90")),
        31,
        STALE,
        tuple(FROM.items()),
    ),
    Case("FinetuneListsStale", "lists are done", (LEADS, series("resync_timestamp_seconds", "0+60x90")), 60),
    Case(
        "FinetuneListsStale",
        "a follower lists nothing",
        (LEADS, FOLLOWS, series("resync_timestamp_seconds", "0x90", pod="operator-b")),
        60,
    ),
    Case(
        "FinetuneWatchSilent",
        "it misses a change in every list",
        (series("watch_missed_total", "0+1x60", resource="pods"),),
        30,
        "The watch of pods tells nothing while they change.",
        (("resource", "pods"),),
    ),
    Case("FinetuneWatchSilent", "three in an hour", (series("watch_missed_total", "0x9 3x50", resource="pods"),), 30),
    Case(
        "FinetuneQueueOld",
        "a job waits for three minutes",
        (series("queue_oldest_seconds", "180x20"),),
        6,
        "A job has waited for 3m 0s for the operator to look at it.",
    ),
    Case("FinetuneQueueOld", "a burst", (series("queue_oldest_seconds", "1 180 180 1x20"),), 6),
    Case(
        "FinetuneApiErrors",
        "half of the passes",
        (passes("done", "0+5x60"), passes("api_error", "0+5x60")),
        30,
        "The API server does not take 50% of the operator's passes.",
    ),
    Case("FinetuneApiErrors", "one of twenty", (passes("done", "0+19x60"), passes("api_error", "0+1x60")), 30),
    Case("FinetuneApiErrors", "nothing is done", (passes("done", "7x60"), passes("api_error", "7x60")), 30),
    Case(
        "FinetuneRefused",
        "pods are not shown",
        (series("api_requests_total", "0+1x60", verb="LIST", resource="pods", code="403"),),
        20,
        REFUSED,
        (("resource", "pods"), ("code", "403")),
    ),
    Case(
        "FinetuneRefused",
        "a namespace that ends takes no Events",
        (series("api_requests_total", "0+1x60", verb="POST", resource="events", code="403"),),
        20,
    ),
    Case("FinetuneFault", "the first one", (passes("fault", "0x5 1x60"),), 7, FAULT),
    Case("FinetuneFault", "an hour ago", (passes("fault", "0x5 1x90"),), 65),
    Case(
        "FinetuneStatusUnreadable",
        "after a downgrade",
        (series("status_unreadable", "2x20"),),
        11,
        "2 jobs have a status of a newer version and are left alone.",
    ),
    Case("FinetuneStatusUnreadable", "all are read", (series("status_unreadable", "0x20"),), 11),
    Case(
        "FinetuneFoughtOver",
        "a policy engine",
        (series("corrections_total", "0+1x90", resource="deployments", result="fought_over"),),
        20,
        "Another controller changes our deployments again and again.",
        (("resource", "deployments"),),
    ),
    Case(
        "FinetuneFoughtOver",
        "put right",
        (series("corrections_total", "0+1x90", resource="deployments", result="corrected"),),
        20,
    ),
    Case(
        "FinetuneTwoOperators",
        "it made something ten minutes ago",
        (series("other_operator_timestamp_seconds", "_x10 600x90", operator="ml/finetune"),),
        20,
        "The release ml/finetune serves a namespace of ours, too.",
        (("operator", "ml/finetune"),),
    ),
    Case(
        "FinetuneTwoOperators",
        "it has left",
        (series("other_operator_timestamp_seconds", "600x90", operator="ml/finetune"),),
        71,
    ),
    Case(
        "FinetuneJobsWaiting",
        "for a GPU, more than an hour",
        (waits("Unschedulable", "0x90"),),
        61,
        "A job has waited for 1h 1m 0s: Unschedulable.",
        (("reason", "Unschedulable"),),
    ),
    Case(
        "FinetuneJobsWaiting",
        "for a pod in the place of one that was interrupted",
        (waits("Interrupted", "0x90"),),
        65,
        "A job has waited for 1h 5m 0s: Interrupted.",
        (("reason", "Interrupted"),),
    ),
    Case("FinetuneJobsWaiting", "for half an hour", (waits("Unschedulable", "0x90"),), 30),
    Case("FinetuneJobsWaiting", "always another one", (waits("Interrupted", "0x19 1200x19 2400x19 3600x60"),), 80),
    Case("FinetuneJobsWaiting", "for their turn", (waits("Queued", "0x90"),), 65),
    Case("FinetuneJobsWaiting", "for another job", (waits("BaseNotPromoted", "0x90"),), 65),
    Case(
        "FinetuneJobsStalled",
        "something is broken now",
        (series("jobs_stalled", f"1x{DAY // 2} 2x60", reason="SystemFault"),),
        DAY // 2 + 30,
        "2 jobs do not go on by themselves: SystemFault.",
        (("reason", "SystemFault"),),
    ),
    Case(
        "FinetuneJobsStalled",
        "the first one ever",
        (series("jobs_stalled", "1x60", reason="ConfigUnreadable"),),
        11,
        "1 jobs do not go on by themselves: ConfigUnreadable.",
        (("reason", "ConfigUnreadable"),),
    ),
    Case("FinetuneJobsStalled", "since yesterday", (series("jobs_stalled", f"2x{DAY}", reason="SystemFault"),), DAY),
    Case("FinetuneJobsStalled", "by its author", (series("jobs_stalled", "2x60", reason="DatasetInvalid"),), 30),
    Case(
        "FinetuneServersFail",
        "an image that does not start, minutes after the upgrade",
        (series("jobs_waiting", "0x4 10x60", reason="NotReady"), series("jobs_stalled", "1x70", reason="SmokeFailed")),
        30,
        "The servers of 11 more jobs fail than six hours ago; those that they should replace go on.",
    ),
    Case(
        "FinetuneServersFail",
        "half an hour later",
        (series("jobs_stalled", "0x40 7x60", reason="NotReady"),),
        60,
        "The servers of 7 more jobs fail than six hours ago; those that they should replace go on.",
    ),
    Case("FinetuneServersFail", "two jobs' authors", (series("jobs_stalled", "2x60", reason="SmokeFailed"),), 30),
    Case("FinetuneServersFail", "since yesterday", (series("jobs_stalled", f"9x{DAY}", reason="NotReady"),), DAY),
    Case(
        "FinetuneCertificateEnds",
        "in ten days",
        (series("progress_certificate_expiry_timestamp_seconds", f"{10 * 86400 + 3600}x90"),),
        60,
        "The certificate of live progress ends in 10d 0h 0m 0s.",
    ),
    Case(
        "FinetuneCertificateEnds",
        "next year",
        (series("progress_certificate_expiry_timestamp_seconds", f"{365 * 86400}x90"),),
        61,
    ),
    Case("FinetuneCertificateEnds", "none", (series("progress_certificate_expiry_timestamp_seconds", "0x90"),), 61),
    Case(
        "FinetuneProgressRefused",
        "tokens that prove nothing",
        (series("progress_posts_total", "0+2x90", code="401"),),
        65,
        "Reports of training pods are refused (401): percent and loss stand still, trainings do not.",
        (("code", "401"),),
    ),
    Case("FinetuneProgressRefused", "pods not known yet", (series("progress_posts_total", "0+2x90", code="404"),), 65),
    Case("FinetuneProgressRefused", "while nobody led", (series("progress_posts_total", "0x5 9x90", code="503"),), 65),
)
