"""A run to one tracker after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping

from finetune_api.package import PackageInputs, TrackerStatus
from finetune_api.tracking import Tracker, tracker_prefix
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.tracking.story import Story, folder_of


def track(context: StageContext, inputs: PackageInputs, tracker: Tracker, story: Story) -> TrackerStatus:
    """Raises as the tracker does."""
    spec, secret = inputs.tracking, _secret(tracker, os.environ)
    key = artifacts.digest_of([context.config.uid, context.config.hash, inputs.measured, story.tags, story.results])
    address = ""
    if tracker is Tracker.MLFLOW and spec.mlflow:
        from finetune_trainer.tracking import mlflow_server

        experiment = f"{context.config.namespace}/{context.config.job}"
        address = mlflow_server.track(spec.mlflow, story, secret, experiment, key)
    elif tracker is Tracker.WANDB and spec.wandb:
        from finetune_trainer.tracking import weights_and_biases

        folder = folder_of(context) / "wandb"
        address = weights_and_biases.track(spec.wandb, story, secret, context.config.job, key, folder)
    else:
        from finetune_trainer.tracking import tensorboard

        tensorboard.track(story, folder_of(context) / "tensorboard")
    return TrackerStatus(tracker=tracker, url=address)


def _secret(tracker: Tracker, environment: Mapping[str, str]) -> dict[str, str]:
    """The keys of the tracker's Secret; without any, on a laptop, the user's environment."""
    prefix = tracker_prefix(tracker)
    own = {key.removeprefix(prefix): value for key, value in environment.items() if key.startswith(prefix)}
    return own or dict(environment)
