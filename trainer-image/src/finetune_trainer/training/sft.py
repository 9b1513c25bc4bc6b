"""Supervised training of causal language models: TRL's trainer behind our mixin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl import SFTConfig, SFTTrainer

from finetune_api.optimization import Loss
from finetune_api.status import ResolvedValues
from finetune_trainer.training.trainer import Checkpointing

# TRL would add a loss that spreads the tokens over the experts of a model that has some: another one for each split of
# a step, and none of what Evaluate measures; and a whole model would be left asking for it, and could not generate.
NO_BALANCING = {"router_aux_loss_coef": 0.0}


class SftTrainer(Checkpointing, SFTTrainer):  # type: ignore[misc]  # untyped library
    """Trains on the tokens that are not masked."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No README in every checkpoint."""


def sft_arguments(common: Mapping[str, Any], resolved: ResolvedValues) -> SFTConfig:
    """The common arguments, and those that keep TRL's hands off prepared data."""
    return SFTConfig(
        **common,
        loss_type=(resolved.loss or Loss.NLL).lower(),
        **NO_BALANCING,
        # Several examples in one row without padding: the same batches, losses and steps, only without waste.
        padding_free=resolved.packing,
        packing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
