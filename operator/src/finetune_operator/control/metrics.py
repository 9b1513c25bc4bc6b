"""Prometheus metrics. docs/operations.md has the table of what each tells the person on call."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

# A second series beside each counter and histogram, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]
# A registry of our own: several operators can run in one test process, and nothing foreign is exported.
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILE_SECONDS = Histogram(
    "finetune_reconcile_seconds",
    "Duration of a pass over one job, seconds.",
    ["outcome"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)
for _outcome in ("done", "stale", "gone", "not_leader", "unreadable", "api_error", "fault"):
    RECONCILE_SECONDS.labels(_outcome)  # from 0 on: a series that begins with 1 is no increase to Prometheus
QUEUE_DEPTH = Gauge("finetune_queue_depth", "Jobs that wait for a pass.", registry=REGISTRY)
QUEUE_OLDEST_SECONDS = Gauge("finetune_queue_oldest_seconds", "Age of the longest waiting job.", registry=REGISTRY)
API_REQUESTS = Counter(
    "finetune_api_requests_total",
    "Requests to the API server, by verb, resource and status code (0: no answer).",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
JOBS = Gauge("finetune_jobs", "FineTuneJobs by stage and readiness.", ["stage", "ready"], registry=REGISTRY)
WAITING = Gauge(
    "finetune_jobs_waiting",
    "FineTuneJobs that wait for something, by reason; it may right itself.",
    ["reason"],
    registry=REGISTRY,
)
WAITING_SINCE = Gauge(
    "finetune_jobs_waiting_since_timestamp_seconds",
    "Since when the FineTuneJob has waited that has waited longest for the same reason, Unix time.",
    ["reason"],
    registry=REGISTRY,
)
STALLED = Gauge(
    "finetune_jobs_stalled", "FineTuneJobs that do not go on by themselves, by reason.", ["reason"], registry=REGISTRY
)
POLLS_FAILING = Gauge(
    "finetune_dataset_polls_failing",
    "FineTuneJobs whose last look at their data failed, by reason; triggers.datasetPoll starts nothing there.",
    ["reason"],
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "finetune_stage_seconds",
    "Duration of succeeded stages, seconds.",
    ["stage"],
    buckets=(5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600),
    registry=REGISTRY,
)
RUNS = Counter("finetune_runs_total", "Runs that ended, by result.", ["result"], registry=REGISTRY)
# Of money the status is the record: these count what it says when it is written.
GPU_SECONDS = Counter("finetune_gpu_seconds_total", "GPU seconds of runs.", ["namespace"], registry=REGISTRY)
COST = Counter("finetune_cost_total", "Cost of the GPU time of runs.", ["namespace", "currency"], registry=REGISTRY)
BUDGET_STOPS = Counter(
    "finetune_budget_stops_total", "Runs that were held by their budget.", ["namespace"], registry=REGISTRY
)
GPUS_HELD = Gauge("finetune_gpus_held", "GPUs that runs hold now.", ["namespace"], registry=REGISTRY)
# Not `job`: Prometheus gives that label to every target, and would rename ours.
TRAINING = ["namespace", "name", "run"]
PERCENT = Gauge("finetune_training_percent", "Progress of running trainings.", TRAINING, registry=REGISTRY)
LOSS = Gauge("finetune_training_loss", "Last training loss of running trainings.", TRAINING, registry=REGISTRY)
# Made anew from what the jobs are now.
OF_JOBS = (JOBS, WAITING, WAITING_SINCE, STALLED, POLLS_FAILING, PERCENT, LOSS, GPUS_HELD)
EVENTS_SEEN = Counter("finetune_watch_events_total", "Watch events, by resource.", ["resource"], registry=REGISTRY)
WATCH_MISSED = Counter(
    "finetune_watch_missed_total",
    "Changes that a relist found and no watch had told, by resource. Above 0: a watch is broken.",
    ["resource"],
    registry=REGISTRY,
)
RESYNC_TIME = Gauge("finetune_resync_timestamp_seconds", "When the last relist ended, Unix time.", registry=REGISTRY)
LEADER = Gauge("finetune_leader", "1 when this replica acts.", registry=REGISTRY)
PROGRESS_POSTS = Counter("finetune_progress_posts_total", "Progress reports, by answer.", ["code"], registry=REGISTRY)
CERTIFICATE_EXPIRY = Gauge(
    "finetune_progress_certificate_expiry_timestamp_seconds",
    "When the progress receiver's certificate or its authority ends, whichever is first, Unix time.",
    registry=REGISTRY,
)
APPLY_FAILURES = Counter(
    "finetune_apply_failures_total", "Writes that the API server refused, by reason.", ["reason"], registry=REGISTRY
)
CORRECTIONS = Counter(
    "finetune_corrections_total",
    "Children that somebody else had changed, by resource and whether they were put right or fought over too often.",
    ["resource", "result"],
    registry=REGISTRY,
)
UNREADABLE = Gauge(
    "finetune_status_unreadable",
    "Jobs whose stored status this version cannot read; they stay as they are.",
    registry=REGISTRY,
)
SERVERS_WAITING = Gauge(
    "finetune_servers_waiting",
    "Jobs whose servers will be brought up to date with the operator, after those of others.",
    registry=REGISTRY,
)
OTHER_OPERATOR = Gauge(
    "finetune_other_operator_timestamp_seconds",
    "When another release was last seen to make children in a namespace of ours, Unix time.",
    ["operator"],
    registry=REGISTRY,
)
TRACE_SPANS = Counter("finetune_trace_spans_total", "Spans of traces, by result.", ["result"], registry=REGISTRY)
