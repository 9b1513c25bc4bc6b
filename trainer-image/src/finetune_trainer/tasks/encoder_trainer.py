"""Training of encoders with a layer for their task: the stock trainer behind our mixin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, TrainingArguments

from finetune_api.optimization import Loss
from finetune_api.status import ResolvedValues
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.kind import Facts, Row, TrainerParts
from finetune_trainer.training.trainer import Checkpointing

Batch = dict[str, torch.Tensor]
MeanLoss = Callable[[PreTrainedModel, Batch], tuple[torch.Tensor, Any]]
"""(model, a batch with its labels) -> (mean loss over the batch's labels, the model's output)."""


def own_loss(model: PreTrainedModel, inputs: Batch) -> tuple[torch.Tensor, Any]:
    """The loss that the model computes itself."""
    output = model(**inputs)
    return output.loss, output


def label_loss(resolved: ResolvedValues, facts: Facts) -> MeanLoss:
    """The loss of labels that were resolved: the model's own where nothing is weighted or smoothed.

    A weight is examples / (labels x examples with the label), scikit-learn's "balanced": every label counts alike,
    and an average one 1. The sum is divided by the number of labels learned, not of their weights, so that the loss
    does not depend on how a batch is split.
    """
    weighted, smoothing = resolved.loss is Loss.WEIGHTED_CROSS_ENTROPY, resolved.label_smoothing or 0.0
    if not weighted and not smoothing:
        return own_loss
    weights = balanced_weights(facts.counts) if weighted else None

    def mean(model: PreTrainedModel, inputs: Batch) -> tuple[torch.Tensor, Any]:
        output = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
        labels = inputs["labels"].flatten()
        scores = output.logits.reshape(len(labels), -1).float()
        weight = None if weights is None else weights.to(scores.device)
        total = cross_entropy(scores, labels, weight, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
        return total / (labels != IGNORED).sum(), output

    return mean


def balanced_weights(counts: Sequence[int]) -> torch.Tensor:
    """Weight of each label, shape [labels]. One that never occurs weighs as if it did once."""
    occurring = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return sum(counts) / (len(counts) * occurring)


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
        loss = mean * share * self.pass_weight
        return (loss, output) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """Labels of the passes of one step, in all processes, without those that are there for company."""
        if not batch_samples:
            return None
        sizes = zip(batch_samples, self._pass_sizes, strict=True)
        count = torch.stack([self._labels(inputs) * (size > 0) for inputs, size in sizes]).sum().to(device)
        return self.accelerator.gather(count).sum() if self.accelerator.num_processes > 1 else count

    def _labels(self, inputs: Batch) -> torch.Tensor:
        """How many are learned: places without IGNORED."""
        return torch.stack([(inputs[name] != IGNORED).sum() for name in self.args.label_names]).sum()


def encoder_trainer(
    parts: TrainerParts,
    collate: Callable[[Sequence[Row]], Batch],
    labels: Sequence[str],
    mean_loss: MeanLoss | None = None,
) -> EncoderTrainer:
    """`collate` makes a batch of rows; `labels` are its entries that the loss is made of. Without `mean_loss` it is the
    one that was resolved for labels."""
    arguments = {**parts.arguments, "remove_unused_columns": False, "label_names": list(labels)}
    return EncoderTrainer(
        model=parts.model,
        args=TrainingArguments(**arguments),
        train_dataset=parts.train,
        eval_dataset=parts.validation,
        processing_class=parts.tokenizer,
        data_collator=collate,
        mean_loss=mean_loss or label_loss(parts.resolved, parts.facts),
        **parts.extra,
    )
