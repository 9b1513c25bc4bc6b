"""Training of encoder-decoder models: the stock trainer behind our mixin, with a loss that counts every token alike."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import LabelSmoother

from finetune_trainer.evaluation.scoring import IGNORED
from finetune_trainer.training.trainer import Checkpointing


class Seq2SeqTrainer(Checkpointing):
    """Mean loss over all target tokens of an optimizer step, however it is split into forward passes.

    These models return the mean of a forward pass and ignore the number of tokens in the step; but as their forward
    takes any keyword, the stock trainer believes that they divide by it, and adds the means up.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._smooth = LabelSmoother(epsilon=smoothing, ignore_index=IGNORED) if smoothing else None
        self.model_accepts_loss_kwargs = True  # so that the tokens of a step are counted

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The pass's share of the step's mean loss, in nats a token. `num_items_in_batch`: tokens of the step."""
        output = model(**inputs, use_cache=False)
        mean = self._smooth(output, inputs["labels"]) if self._smooth else output.loss
        tokens = (inputs["labels"] != IGNORED).sum()
        # The gradients of several processes are averaged afterwards, and the count is of all of them.
        share = tokens / (tokens if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes)
        loss = mean * share * self.pass_weight
        return (loss, output) if return_outputs else loss
