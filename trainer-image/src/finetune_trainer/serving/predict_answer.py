"""`POST /v1/answer`: the passage of a context that answers a question, or null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.predictor import Item, PredictModel, PredictRequest, check_items, check_text
from finetune_trainer.serving.protocol import Strict
from finetune_trainer.tasks import windows
from finetune_trainer.tasks.kind import Row
from finetune_trainer.tasks.question_answering_spans import OUTPUTS, best_passage, score

DIGITS = 6


class AskedAbout(Strict):
    """A question and the text that may answer it."""

    question: str
    context: str


class AnswerRequest(PredictRequest):
    """One question with its context, or several."""

    input: AskedAbout | list[AskedAbout]

    @property
    def asked(self) -> list[tuple[str, AskedAbout]]:
        """(what an error calls it, the question)."""
        if isinstance(self.input, list):
            return [(f"input[{index}]", one) for index, one in enumerate(self.input)]
        return [("input", self.input)]


@dataclass(frozen=True, slots=True)
class Source:
    """A question on its way: what its windows' scores are read by."""

    context: str
    layout: windows.Layout
    cut: Sequence[windows.Window]


class AnswerPredictor:
    """The Predictor of the task QuestionAnswering."""

    route: ClassVar[str] = "/v1/answer"
    sample: ClassVar[Mapping[str, Any]] = {"input": {"question": "Who?", "context": "Anna."}}
    request = AnswerRequest

    def items(self, wanted: AnswerRequest, model: PredictModel) -> list[Item]:
        check_items(len(wanted.asked))
        return [self._item(param, asked, model) for param, asked in wanted.asked]

    def _item(self, param: str, asked: AskedAbout, model: PredictModel) -> Item:
        """A context of any length: it is read in windows, as in the evaluation."""
        check_text(asked.question, f"{param}.question")
        check_text(asked.context, f"{param}.context")
        layout = windows.lay_out(model.tokenizer, asked.context, asked.question)
        try:
            cut = windows.windows(
                layout, min(model.context, windows.context_limit(model.module.config, model.tokenizer))
            )
        except ValueError as error:
            raise InvalidRequest(
                f"'{param}.question' is too long: {error}.", param=f"{param}.question", code="context_length_exceeded"
            ) from None
        return Item([window.row for window in cut], len(layout.input_ids), Source(asked.context, layout, cut))

    def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[NDArray[np.float32]]:
        """The scores of each token as the first and as the last of the answer, shape [tokens, 2], for each row."""
        return windows.run(model.module, [windows.Window.of(row) for row in rows], OUTPUTS)

    def render(
        self, wanted: AnswerRequest, model: PredictModel, item: Item, outputs: Sequence[NDArray[np.float32]]
    ) -> dict[str, Any]:
        """The answer is characters [start, end) of the context; null where the context has none."""
        source: Source = item.source
        scored = [score(window, output, model.tokenizer) for window, output in zip(source.cut, outputs, strict=True)]
        found = best_passage(source.context, source.layout.offsets, scored)
        return {"answer": found.text, "start": found.start, "end": found.end, "score": round(found.score, DIGITS)}
