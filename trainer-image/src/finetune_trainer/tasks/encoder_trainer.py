"""Training of encoders with a layer for their task: the stock trainer behind our mixin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.kind import Row, TrainerParts
from finetune_trainer.training.trainer import Checkpointing

Batch = dict[str, torch.Tensor]
MeanLoss = Callable[[PreTrainedModel, Batch], tuple[torch.Tensor, Any]]
"""(model, a batch with its labels) -> (mean loss over the batch's labels, the model's output)."""


def own_loss(model: PreTrainedModel, inputs: Batch) -> tuple[torch.Tensor, Any]:
    """The loss that the model computes itself."""
    output = model(**inputs)
    return output.loss, output


class EncoderTrainer(Checkpointing):
    """Mean loss over all labels of an optimizer step, however it is split into forward passes.

    These models return the mean of a forward pass and ignore how many labels the step has; but as their forward takes
    any keyword, the stock trainer believes that they divide by it, and would add the means up.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, mean_loss: MeanLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._mean_loss = mean_loss
        self.model_accepts_loss_kwargs = True  # so that the labels of a step are counted

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The pass's share of the step's mean loss, in nats a label. `num_items_in_batch`: labels of the step."""
        labels = self._labels(inputs)
        # The gradients of several processes are averaged afterwards, and the count is of all of them.
        share = 1.0 if num_items_in_batch is None else labels * self.accelerator.num_processes / num_items_in_batch
        mean, output = self._mean_loss(model, inputs)
        return (mean * share, output) if return_outputs else mean * share

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """Labels of the passes of one step, in all processes."""
        if not batch_samples:
            return None
        count = torch.stack([self._labels(inputs) for inputs in batch_samples]).sum().to(device)
        return self.accelerator.gather(count).sum() if self.accelerator.num_processes > 1 else count

    def _labels(self, inputs: Batch) -> torch.Tensor:
        """How many are learned: places without IGNORED."""
        return torch.stack([(inputs[name] != IGNORED).sum() for name in self.args.label_names]).sum()


def encoder_trainer(
    parts: TrainerParts,
    collate: Callable[[Sequence[Row]], Batch],
    labels: Sequence[str],
    mean_loss: MeanLoss = own_loss,
) -> EncoderTrainer:
    """`collate` makes a batch of rows; `labels` are its entries that the loss is made of."""
    arguments = {**parts.arguments, "remove_unused_columns": False, "label_names": list(labels)}
    return EncoderTrainer(
        model=parts.model,
        args=TrainingArguments(**arguments),
        train_dataset=parts.train,
        eval_dataset=parts.validation,
        processing_class=parts.tokenizer,
        data_collator=collate,
        mean_loss=mean_loss,
        **parts.extra,
    )
