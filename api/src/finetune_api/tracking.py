"""Where the course of a run is written down for comparison with others: MLflow, Weights & Biases, TensorBoard."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Named, Rule
from finetune_api.dataset import SecretRef

MLFLOW_URI = "^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[-A-Za-z0-9._~/]*)?$"
WANDB_NAME = "^[A-Za-z0-9][-A-Za-z0-9_.]*$"


class Tracker(Named):
    MLFLOW = "MLflow"
    WANDB = "WandB"
    TENSORBOARD = "TensorBoard"


class WandbMode(Named):
    ONLINE = "Online"
    OFFLINE = "Offline"


class TensorBoard(Named):
    DISABLED = "Disabled"
    ENABLED = "Enabled"


class MlflowSpec(ApiModel):
    """An MLflow tracking server."""

    uri: str = Field(
        min_length=1,
        max_length=512,
        description="Address of the tracking server: https://HOST/PATH, or http:// inside the cluster.",
    )
    experiment: str | None = Field(
        default=None,
        min_length=1,
        max_length=250,
        description="Experiment that the runs belong to; it is made where it is missing. Absent: NAMESPACE/NAME of "
        "the job.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
        "ca.crt for a private authority. Only the package pod sees it.",
    )
    rules: ClassVar = (
        Rule(
            f"self.uri.matches('{MLFLOW_URI}')",
            "tracking.mlflow.uri: write https://HOST/PATH, without user, password or query; these go into a Secret "
            "that secretRef names",
            lambda mlflow: _matches(MLFLOW_URI, mlflow.uri),
        ),
    )


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=WANDB_NAME,
        description="Project that the runs belong to. Absent: the job's name.",
    )
    entity: str | None = Field(
        default=None, min_length=1, max_length=128, pattern=WANDB_NAME, description="Team or user that owns it."
    )
    mode: WandbMode = Field(
        default=WandbMode.ONLINE,
        description="Online: sent to the server. Offline: written to the run's folder on the claim, for `wandb sync`.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with WANDB_API_KEY, and WANDB_BASE_URL for a server of your own. Only the package pod "
        "sees it.",
    )
    rules: ClassVar = (
        Rule(
            "self.mode != 'Online' || has(self.secretRef)",
            "tracking.wandb: Online needs a key; put WANDB_API_KEY into a Secret and name it in secretRef, or set mode "
            "to Offline",
            lambda wandb: wandb.mode is not WandbMode.ONLINE or wandb.secret_ref is not None,
        ),
    )


class TrackingSpec(ApiModel):
    """Where each measured run is written down for comparison: settings, curves, results, lineage. By a pod of its own
    after the measurement, since training pods reach no network. A change trains nothing."""

    mlflow: MlflowSpec | None = Field(default=None, description="An MLflow tracking server.")
    wandb: WandbSpec | None = Field(default=None, description="Weights & Biases.")
    tensor_board: TensorBoard = Field(
        default=TensorBoard.DISABLED,
        description="Enabled: event files in the run's folder tracking/tensorboard on the claim.",
    )

    @property
    def trackers(self) -> list[Tracker]:
        """Those that are asked for."""
        wanted = {
            Tracker.MLFLOW: self.mlflow is not None,
            Tracker.WANDB: self.wandb is not None,
            Tracker.TENSORBOARD: self.tensor_board is TensorBoard.ENABLED,
        }
        return [tracker for tracker, asked in wanted.items() if asked]

    @property
    def secrets(self) -> dict[Tracker, SecretRef]:
        """The Secret of each tracker that has one."""
        refs = {
            Tracker.MLFLOW: self.mlflow and self.mlflow.secret_ref,
            Tracker.WANDB: self.wandb and self.wandb.secret_ref,
        }
        return {tracker: ref for tracker, ref in refs.items() if ref}

    @property
    def settings(self) -> dict[str, object]:
        """Without what equals its default and without Secrets."""
        hidden = {"mlflow": {"secret_ref"}, "wandb": {"secret_ref"}}
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=hidden)


def tracker_prefix(tracker: Tracker) -> str:
    """Begins the environment variables of a tracker's Secret."""
    return f"TRACKING_{tracker.value.upper()}__"


def _matches(pattern: str, text: str) -> bool:
    return bool(re.fullmatch(pattern, text))
