"""Classification: which label a text has, which labels, or how two texts relate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.conditions import FailureReason
from finetune_api.tasks import Metric, Task
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation import classification as figures
from finetune_trainer.tasks.classification_data import ClassificationFormat, labels_of
from finetune_trainer.tasks.classification_text import logits, padded, padding_id, parameters, tell_padding
from finetune_trainer.tasks.kind import (
    Answer,
    Facts,
    HeldOut,
    Measured,
    Question,
    Row,
    TrainerParts,
    no_interruption,
)


class Classification:
    """The TaskKind. One label an example: softmax; a list of labels: each a yes or no of its own."""

    task = Task.CLASSIFICATION
    auto_model = AutoModelForSequenceClassification
    peft_type = "SEQ_CLS"
    needs_reference = False

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if known and not getattr(config, "is_encoder_decoder", False):
            return
        why = (
            "it writes texts from texts" if known else f"transformers has no classifier of the kind {config.model_type}"
        )
        raise UserInputError(
            f"{source} cannot be used for Classification: {why}",
            advice="use an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT, or a decoder such as Llama or Qwen",
            reason=FailureReason.MODEL_INVALID,
        )

    def model_options(self, facts: Facts) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(facts.labels)),
            "label2id": {label: index for index, label in enumerate(facts.labels)},
            "problem_type": "multi_label_classification" if facts.multi_label else "single_label_classification",
            "ignore_mismatched_sizes": True,  # a base that was a classifier of other labels begins with a fresh head
        }

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> ClassificationFormat:
        return ClassificationFormat(tokenizer, special)

    def trainer(self, parts: TrainerParts) -> Any:
        from finetune_trainer.tasks.encoder_trainer import encoder_trainer  # a server needs no trainer

        tell_padding(parts.model, parts.tokenizer)
        accepted = frozenset(parameters(parts.model)) | {"labels"}

        def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
            batch = {**padded(rows, padding_id(parts.tokenizer)), "labels": targets(rows, parts.facts)}
            return {name: tensor for name, tensor in batch.items() if name in accepted}

        return encoder_trainer(parts, collate, ["labels"])

    def measure(
        self,
        model: PreTrainedModel,
        held_out: HeldOut,
        *,
        reference: Measured | None = None,
        between_batches: Callable[[], None] = no_interruption,
    ) -> Measured:
        """Cross-entropy an example. `details` have figures of each label and the confusion matrix."""
        facts = held_out.facts
        scores = self.scores(model, held_out.tokenizer, held_out.rows, between_batches=between_batches)
        expected = figures.truth([row["labels"] for row in held_out.rows], len(facts.labels))
        return Measured(
            loss=figures.losses(scores, expected, multi_label=facts.multi_label),
            weight=np.ones(len(held_out.rows), np.int64),
            metrics=figures.metrics(scores, expected, multi_label=facts.multi_label),
            details=figures.details(scores, expected, facts.labels, multi_label=facts.multi_label),
        )

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        return {}

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        for example, row in zip(held_out.examples, held_out.rows, strict=True):
            pair = f"\n---\n{example['text_pair']}" if "text_pair" in example else ""
            yield Question(example["text"] + pair, ", ".join(labels_of(example)) or NO_LABEL, row)

    def pose(self, prompt: str, held_out: HeldOut) -> Question | None:
        """It writes no text."""
        return None

    def answer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        *,
        facts: Facts,
        between_batches: Callable[[], None] = no_interruption,
    ) -> list[Answer]:
        rows = [question.row for question in questions]
        scores = self.scores(model, tokenizer, rows, between_batches=between_batches)
        return [Answer(_in_words(row, facts)) for row in figures.probabilities(scores, multi_label=facts.multi_label)]

    def scores(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        *,
        between_batches: Callable[[], None] = no_interruption,
    ) -> NDArray[np.float64]:
        """The model's score of each label, before softmax or sigmoid: [rows, labels]."""
        tell_padding(model, tokenizer)
        return logits(model, rows, padding_id(tokenizer), between_batches)


NO_LABEL = "no label"


def targets(rows: Sequence[Row], facts: Facts) -> torch.Tensor:
    """What the loss compares with: the label's number, int64 [rows]; of several labels zeros and ones, float32
    [rows, labels]."""
    if facts.multi_label:
        return torch.from_numpy(figures.truth([row["labels"] for row in rows], len(facts.labels))).float()
    return torch.tensor([row["labels"][0] for row in rows])


def _in_words(probabilities: NDArray[np.float64], facts: Facts) -> str:
    """`spam (97 %)`; of several labels all that apply."""
    if facts.multi_label:
        chosen = [int(index) for index in np.flatnonzero(probabilities >= figures.HALF)]
    else:
        chosen = [int(probabilities.argmax())]
    return ", ".join(f"{facts.labels[index]} ({100 * probabilities[index]:.0f} %)" for index in chosen) or NO_LABEL
