"""`POST /v1/classify`: texts, or pairs of texts, to labels with their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from finetune_trainer.evaluation.classification import HALF, probabilities
from finetune_trainer.serving.predictor import (
    Item,
    PredictModel,
    PredictRequest,
    check_items,
    check_length,
    check_text,
)
from finetune_trainer.serving.protocol import Strict
from finetune_trainer.tasks.classification_text import Layout, logits, padding_id, tokenize
from finetune_trainer.tasks.kind import Row

SHOWN_SCORES = 10  # labels with their probabilities, unless top_k says otherwise
DIGITS = 6


class TextPair(Strict):
    """Two texts that are judged together."""

    text: str
    text_pair: str | None = None


def _as_pair(one: Any) -> Any:
    if not isinstance(one, str | dict):
        raise ValueError('must be a text, or {"text": ..., "text_pair": ...}')
    return {"text": one} if isinstance(one, str) else one


def _as_list(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


class ClassifyRequest(PredictRequest):
    """A text or a pair of texts, or a list of them."""

    input: Annotated[list[Annotated[TextPair, BeforeValidator(_as_pair)]], BeforeValidator(_as_list)]
    top_k: Annotated[int, Field(ge=1)] = SHOWN_SCORES
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class ClassifyPredictor:
    """The Predictor of the task Classification."""

    route: ClassVar[str] = "/v1/classify"
    sample: ClassVar[Mapping[str, Any]] = {"input": "Hello"}
    request = ClassifyRequest

    def items(self, wanted: ClassifyRequest, model: PredictModel) -> list[Item]:
        check_items(len(wanted.input))
        layout = Layout.of(model.tokenizer)
        return [self._item(f"input[{index}]", pair, model, layout) for index, pair in enumerate(wanted.input)]

    def _item(self, param: str, pair: TextPair, model: PredictModel, layout: Layout) -> Item:
        check_text(pair.text, param)
        if pair.text_pair is not None:
            check_text(pair.text_pair, f"{param}.text_pair")
        row = tokenize(model.tokenizer, layout, pair.text, pair.text_pair)
        tokens = len(row["input_ids"])
        check_length(tokens, model.context, param)
        return Item([row], tokens)

    def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[NDArray[np.float64]]:
        """The probability of each label, shape [labels], for each row."""
        scores = logits(model.module, rows, padding_id(model.tokenizer))
        return list(probabilities(scores, multi_label=model.facts.multi_label))

    def render(
        self, wanted: ClassifyRequest, model: PredictModel, item: Item, outputs: Sequence[NDArray[np.float64]]
    ) -> dict[str, Any]:
        """`label` is the likeliest, or null when it is less likely than `threshold`. Where several labels can apply,
        `labels` are all that are at least as likely as `threshold`, one half unless the request says otherwise."""
        several = model.facts.multi_label
        threshold = wanted.threshold if wanted.threshold is not None else (HALF if several else 0.0)
        scored = [
            {"label": model.facts.labels[index], "score": round(float(outputs[0][index]), DIGITS)}
            for index in np.argsort(-outputs[0], kind="stable")
        ]
        best = scored[0]
        sure = best["label"] if best["score"] >= threshold else None
        chosen = {"labels": [one["label"] for one in scored if one["score"] >= threshold]} if several else {}
        return {"label": sure, "score": best["score"], **chosen, "scores": scored[: wanted.top_k]}
