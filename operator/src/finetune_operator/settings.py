"""What the platform decides, not the user. Read once from the environment (see control/environment.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune_api.run_config import SourcePolicy
from finetune_operator.prices import Prices


@dataclass(frozen=True, slots=True)
class Settings:
    """Pure values that `decide` depends on."""

    trainer_image: str = "ghcr.io/finetune-operator/trainer:0.1.0"
    vllm_image: str = "docker.io/vllm/vllm-openai:v0.33.0"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    source_policy: SourcePolicy = field(default_factory=SourcePolicy)
    # Environment of the pods that reach out (Prepare, Judge, Package, looks at the data): a mirror of the hub, a proxy.
    # Names and values.
    source_env: tuple[tuple[str, str], ...] = ()
    # Base URL and CA (PEM) of the progress receiver; None: pods do not report (a laptop reads progress.json).
    progress_url: str | None = None
    progress_ca: str | None = None
    progress_audience: str = "finetune-operator.io/progress"
    # System faults are retried this often by the Job controller, with its own exponential backoff (10 s, 20 s, 40 s).
    backoff_limit: int = 3
    # Status is the interface, but etcd is shared: a progress write at most every so many seconds a job.
    progress_interval_seconds: float = 10.0
    run_history_limit: int = 10
    # So long a changed spec must not change again before it is trained; the chart's default is not 0.
    settle_seconds: float = 0.0
    # Step and save must fit between SIGTERM and SIGKILL; Kubernetes' 30 s are too short for a large model.
    train_grace_seconds: int = 120
    serve_grace_seconds: int = 60
    run_as_user: int = 65532
    # After an upgrade the servers of so many jobs are replaced at the same time. 0: of all.
    server_rollouts: int = 10
    prices: Prices = field(default_factory=Prices)
