"""`POST /v1/tag`: texts to the entities in them, with their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.evaluation.entities import entities
from finetune_trainer.serving.predictor import Item, PredictModel, PredictRequest, check_items, check_text
from finetune_trainer.tasks import windows
from finetune_trainer.tasks.kind import Row
from finetune_trainer.tasks.token_classification import OUTPUTS, gather
from finetune_trainer.tasks.token_classification_data import Words, words_of_text, words_of_tokens

DIGITS = 6


class TagRequest(PredictRequest):
    """A text, or a list of texts. A text may also be a list of words, which then are the words that are tagged."""

    input: str | list[str | list[str]]

    @property
    def texts(self) -> list[tuple[str, Words]]:
        """(what an error calls it, the words)."""
        if isinstance(self.input, str):
            return [("input", words_of_text(self.input))]
        return [
            (f"input[{index}]", words_of_text(one) if isinstance(one, str) else words_of_tokens(one))
            for index, one in enumerate(self.input)
        ]


@dataclass(frozen=True, slots=True)
class Source:
    """A text on its way: what its windows' scores are gathered by."""

    words: Words
    layout: windows.Layout
    cut: Sequence[windows.Window]


class TagPredictor:
    """The Predictor of the task TokenClassification."""

    route: ClassVar[str] = "/v1/tag"
    sample: ClassVar[Mapping[str, Any]] = {"input": "Hello"}
    request = TagRequest

    def items(self, wanted: TagRequest, model: PredictModel) -> list[Item]:
        check_items(len(wanted.texts))
        return [self._item(param, words, model) for param, words in wanted.texts]

    def _item(self, param: str, words: Words, model: PredictModel) -> Item:
        """A text of any length: it is read in windows, as in the evaluation."""
        check_text(words.text, param)
        for start, end in words.spans:
            check_text(words.text[start:end], f"a word of {param}")
        layout = windows.lay_out(model.tokenizer, words.text)
        cut = windows.windows(layout, min(model.context, windows.context_limit(model.module.config, model.tokenizer)))
        return Item([window.row for window in cut], len(layout.input_ids), Source(words, layout, cut))

    def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[NDArray[np.float32]]:
        """The scores of each token, shape [tokens, labels], for each row."""
        return windows.run(model.module, [windows.Window.of(row) for row in rows], OUTPUTS)

    def render(
        self, wanted: TagRequest, model: PredictModel, item: Item, outputs: Sequence[NDArray[np.float32]]
    ) -> dict[str, Any]:
        """Places are characters [start, end) of `text`. The score of a word is the probability of its tag, that of an
        entity the mean of its words'."""
        words, layout, cut = item.source.words, item.source.layout, item.source.cut
        tagged = gather(words, layout, cut, outputs)
        tags = tagged.tags(model.facts.labels)
        scores = [float(score) for score in tagged.probabilities().max(axis=1)]
        found = [
            {
                **_place(words, entity.first, entity.last),
                "label": entity.label,
                "score": round(float(np.mean(scores[entity.first : entity.last + 1])), DIGITS),
                "first_word": entity.first,
                "last_word": entity.last,
            }
            for entity in entities(tags)
        ]
        each = [
            {**_place(words, index, index), "tag": tag, "score": round(score, DIGITS)}
            for index, (tag, score) in enumerate(zip(tags, scores, strict=True))
        ]
        return {"text": words.text, "entities": found, "words": each}


def _place(words: Words, first: int, last: int) -> dict[str, Any]:
    start, end = words.of(first, last)
    return {"text": words.text[start:end], "start": start, "end": end}
