"""Weights & Biases, by its own client: sent to the server, or kept for `wandb sync`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from finetune_api.conditions import FailureReason
from finetune_api.tracking import WandbMode, WandbSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.packaging.credentials import in_environment, refused
from finetune_trainer.tracking.story import Story


def track(spec: WandbSpec, story: Story, secret: Mapping[str, str], project: str, key: str, folder: Path) -> str:
    """The run's address; empty offline, where it lies below `folder`. The run's id is the key: what was begun before is
    written again under it.

    Raises UserInputError (DestinationRefused), or TrainerError (DestinationUnavailable), which is tried again.
    """
    import wandb
    from wandb.errors import AuthenticationError, Error

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = {name: value for name, value in secret.items() if name.startswith("WANDB_")}
    with in_environment(own):
        try:
            run = wandb.init(
                project=spec.project or project,
                entity=spec.entity,
                id=key[:32],
                name=story.name,
                mode="online" if spec.mode is WandbMode.ONLINE else "offline",
                dir=str(folder),
                config={**story.parameters, **story.tags},
                resume="allow" if spec.mode is WandbMode.ONLINE else None,
                settings=wandb.Settings(
                    silent=True, console="off", disable_git=True, disable_code=True, init_timeout=60
                ),
            )
            for point in story.points:
                run.log({**point.values, "_timestamp": point.time}, step=point.step)
            run.summary.update(dict(story.results))
            address = str(run.url or "") if spec.mode is WandbMode.ONLINE else ""
            run.finish()
        except AuthenticationError as error:
            raise refused(f"Weights & Biases refuses the key: {error}", "check WANDB_API_KEY in the Secret") from error
        except Error as error:
            raise TrainerError(
                f"Weights & Biases: {str(error).splitlines()[0][:500]}",
                advice="it is tried again; see that the package pod reaches the server, and WANDB_API_KEY is right",
                reason=FailureReason.DESTINATION_UNAVAILABLE,
            ) from error
    return address
