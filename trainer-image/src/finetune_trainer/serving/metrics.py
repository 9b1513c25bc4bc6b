"""What Prometheus sees. Labels come from closed sets, so that no request can add a series."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "finetune_server_requests", "Answered requests.", ["route", "model", "code"], registry=self.registry
        )
        self.prompt_tokens = Counter("finetune_server_prompt_tokens", "Tokens read.", ["model"], registry=self.registry)
        self.completion_tokens = Counter(
            "finetune_server_completion_tokens", "Tokens generated.", ["model"], registry=self.registry
        )
        self.queue = Gauge("finetune_server_queue_depth", "Sequences that wait.", registry=self.registry)
        self.running = Gauge("finetune_server_running", "Sequences that are generated.", registry=self.registry)
        self.batch = Histogram(
            "finetune_server_batch_size", "Sequences in a forward call.", buckets=ROWS, registry=self.registry
        )
        self.first_token = Histogram(
            "finetune_server_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.generation = Histogram(
            "finetune_server_generation_seconds",
            "From the arrival of a request to its last token.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
