"""Training on preferences: TRL's trainer behind our mixin, with the base's log-probabilities computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from finetune_api.optimization import PREFERENCE_LOSSES, Loss
from finetune_api.status import ResolvedValues
from finetune_trainer.distribution.group import Group, alone
from finetune_trainer.errors import InterruptedStageError
from finetune_trainer.tasks.preference_scoring import log_probabilities
from finetune_trainer.training.sft import NO_BALANCING
from finetune_trainer.training.stopping import StopRequest
from finetune_trainer.training.trainer import Checkpointing

log = logging.getLogger(__name__)

CHUNK = 1000  # pairs that are taken into memory at once
COPY = "ref"  # TRL's name for the copy of an adapter that it would compare with


class DpoTrainer(Checkpointing, DPOTrainer):  # type: ignore[misc]  # untyped library
    """Makes the better answer more likely than the worse one, compared with the base.

    The model that is handed in is the base, or the base with a fresh adapter, also when the training goes on from a
    checkpoint: that is loaded after the base was measured. So no second model is needed in memory, and none is
    asked twice for the same pair.
    """

    def __init__(self, *, stop: StopRequest, group: Group | None = None, **kwargs: Any) -> None:
        # TRL measures the base before the mixin has been told of them.
        self._asked_to_stop, self._processes = stop, group or alone()
        super().__init__(stop=stop, group=group, **kwargs)
        if COPY in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter(COPY)  # the base was measured: it would only be saved with each checkpoint

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No README in every checkpoint."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """It is prepared: TRL would look for texts in it."""
        return dataset

    def weight_of(self, examples: int) -> float:
        """TRL takes the mean of each pass, and the mean of those: right where all passes have as many examples."""
        passes: int = self.current_gradient_accumulation_steps * self._group.place.size
        return examples * passes / self._batches.step_size(self.state.global_step)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The dataset with the columns that TRL's loss compares with. Evaluation is ours and has its own."""
        if name != "train":
            return dataset
        log.info("measuring the base model on %d pairs", len(dataset))
        self.model.eval()
        place = self._processes.place
        mine = dataset.shard(place.size, place.rank, contiguous=True)
        with self.accelerator.autocast():  # as the training computes
            parts = [self._measured(mine[start : start + CHUNK]) for start in range(0, len(mine), CHUNK)]
        chosen, rejected = np.concatenate([each for part in self._processes.all_of(parts) for each in part]).T
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _measured(self, columns: Mapping[str, list[list[int]]]) -> Any:
        pairs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return log_probabilities(self.model, pairs, between_batches=self._stop_measuring)

    def _stop_measuring(self) -> None:
        """Each process for itself: they have different numbers of batches, and nothing to save."""
        if self._asked_to_stop.requested:
            raise InterruptedStageError("asked to stop: the base model was being measured", advice="nothing to do")


def dpo_arguments(common: Mapping[str, Any], resolved: ResolvedValues, model: PreTrainedModel) -> DPOConfig:
    """The common arguments, and those that keep TRL's hands off prepared data."""
    adapters = getattr(model, "peft_config", {}).values()
    return DPOConfig(
        **common,
        beta=resolved.beta,
        **NO_BALANCING,
        loss_type=[PREFERENCE_LOSSES[resolved.loss or Loss.SIGMOID]],
        label_smoothing=resolved.label_smoothing or 0.0,
        max_length=None,
        precompute_ref_log_probs=True,
        # Dropout that nobody asked for would compare a model with itself and find a difference.
        disable_dropout=not any(getattr(adapter, "lora_dropout", 0) for adapter in adapters),
    )
