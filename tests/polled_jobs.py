"""Jobs of the simulator's cluster whose data is looked at, and the data that they find."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_api.status import DatasetStatus
from tests.simulator import Cluster, Manifest, good_summary, make_job, succeed

HOURLY = {"datasetPoll": {}}


@dataclass
class Source:
    """The data that Prepare and looks find. `read`: to what it has changed when Prepare reads it; `data`: its digest,
    where that is not the version; `restless`: each look finds another version; `digest`: which a look finds."""

    version: str | None = "a"
    read: str | None = None
    data: str | None = None
    restless: bool = False
    digest: str | None = None
    trouble: FailureReason | None = None
    looks: list[str] = field(default_factory=list)  # what the first looks find, each when it looks
    orders: list[dict[str, str]] = field(default_factory=list)

    def answer(self, pod: Manifest) -> tuple[int, str]:
        stage = pod["metadata"]["labels"]["finetune-operator.io/stage"]
        if stage == "Poll":
            env = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
            self.orders.append(json.loads(env["FINETUNE_POLL"]))
            self.version = f"v{len(self.orders)}" if self.restless else self.version
            self.version = self.looks.pop(0) if self.looks else self.version
            return self.words(self.version, self.trouble, self.digest)
        if stage != "Prepare":
            return succeed(pod)
        run = int(pod["metadata"]["labels"]["finetune-operator.io/run"])
        summary = Summary.model_validate_json(good_summary(stage, run))
        assert summary.dataset is not None
        self.version, self.read = self.read or self.version, None
        data = self.data or self.version
        found = summary.dataset.model_copy(update={"fingerprint": self.version, "sha256": data})
        return 0, summary.model_copy(update={"dataset": found}).to_message()

    @staticmethod
    def words(version: str | None, trouble: FailureReason | None, digest: str | None = None) -> tuple[int, str]:
        if trouble is None:
            found = DatasetStatus(fingerprint=version, sha256=digest)
            return 0, Summary(stage=Stage.PREPARE, ok=True, run=1, dataset=found).to_message()
        failure = StageFailure(reason=trouble, message="https://h/x answered HTTP 404", advice="correct the address")
        return 10, Summary(stage=Stage.PREPARE, ok=False, failure=failure).to_message()


def polled(source: Source | None = None, **spec: Any) -> Cluster:
    """A job that serves its first run, whose data is looked at."""
    source = source or Source()
    return Cluster(make_job(**{"triggers": HOURLY, **spec}), answer=source.answer).run()


def wait(cluster: Cluster, **time: float) -> Cluster:
    """Time passes, and each pass that was asked for comes."""
    end = cluster.now + timedelta(**time)
    while (again := cluster.run().plan().requeue_after) is not None and cluster.now + timedelta(seconds=again) <= end:
        cluster.now += timedelta(seconds=again)
    cluster.now = max(end, cluster.now)
    return cluster.run()


def looks(cluster: Cluster) -> list[str]:
    """All that were ever made, as Kind/name."""
    return [name for name in cluster.created if "-poll-" in name]


def started(cluster: Cluster) -> list[tuple[int, str, str | None]]:
    """The runs: number, trigger and occasion."""
    return [(record.number, record.trigger, record.occasion) for record in cluster.job.status.runs]


def there(cluster: Cluster) -> list[str]:
    """Names of the Jobs of looks that are not deleted yet."""
    return [name for kind, name in cluster.objects if kind == "Job" and "-poll-" in name]


def words(cluster: Cluster) -> str:
    """What the condition DatasetPolled says."""
    return next(each.message for each in cluster.job.status.conditions if each.type == "DatasetPolled")


def wait_for_pass(cluster: Cluster) -> bool:
    """Until the pass that was asked for; always True, so that a condition can have it."""
    again = cluster.plan().requeue_after
    assert again is not None
    cluster.now += timedelta(seconds=again)
    return True


def due(source: Source) -> Cluster:
    """At the moment of the first look."""
    cluster = polled(source)
    wait_for_pass(cluster)
    return cluster
