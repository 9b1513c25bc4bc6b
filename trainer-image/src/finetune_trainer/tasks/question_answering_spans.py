"""The answer in the context: from scores of tokens to characters. Evaluation and server both find it here.

The model scores every token as first and as last of the answer, and the start of the sequence as "no answer" (as in
SQuAD 2.0). In a context of several windows the best passage of all of them is taken; there is no answer when each
window prefers none to that passage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel, PeftModelForQuestionAnswering
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.tasks import windows
from finetune_trainer.tasks.kind import no_interruption

LONGEST_ANSWER = 128  # tokens
OUTPUTS = ("start_logits", "end_logits")


@dataclass(frozen=True, slots=True)
class Passage:
    """Characters [start, end) of the context, or no answer (None). `score`: its share of the probability of all
    passages and of no answer, 0 to 1."""

    text: str | None
    start: int | None
    end: int | None
    score: float


@dataclass(frozen=True, slots=True)
class Scored:
    """One window. `start` and `end` are the scores of its part of the context, [tokens]; `none` is that of no answer
    as first and last token together; `normaliser` the logarithm of the summed exponentials of all of its tokens,
    likewise together."""

    part: windows.Span
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    none: float
    normaliser: float

    def loss(self, answer: windows.Span | None) -> float:
        """Mean nats of the answer's first and last token, [first, after) in the whole context; None: no answer."""
        if answer is None:
            return (self.normaliser - self.none) / 2
        first, last = answer[0] - self.part[0], answer[1] - 1 - self.part[0]
        return (self.normaliser - float(self.start[first] + self.end[last])) / 2


@dataclass(frozen=True, slots=True)
class Read:
    """A question about a context, as the model has read it."""

    layout: windows.Layout
    scored: Sequence[Scored]


def keep_segments(model: Any) -> None:
    """Let an adapter's wrapper hand on which tokens are the question's and which the context's.

    PEFT's wrapper for this task (0.21) takes `token_type_ids` and drops them, so that a model would be trained and
    measured without them, and served with them once the adapter is merged. PEFT's general wrapper hands on all.
    """
    if isinstance(model, PeftModelForQuestionAnswering) and "forward" not in vars(model):
        model.forward = MethodType(PeftModel.forward, model)


def no_answer_position(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for "no answer": the start of the sequence, where the tokenizer puts it."""
    start = tokenizer.cls_token_id
    return list(input_ids).index(start) if start in input_ids else 0


def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[str, str]],
    between_batches: Callable[[], None] = no_interruption,
) -> list[Read]:
    """Read (question, context) pairs of any length."""
    keep_segments(model)
    limit = windows.context_limit(model.config, tokenizer)
    layouts = [windows.lay_out(tokenizer, context, question) for question, context in asked]
    cuts = [windows.windows(layout, limit) for layout in layouts]
    everything = [window for cut in cuts for window in cut]
    scores = iter(windows.run(model, everything, OUTPUTS, between_batches))
    return [
        Read(layout, [score(window, next(scores), tokenizer) for window in cut])
        for layout, cut in zip(layouts, cuts, strict=True)
    ]


def score(window: windows.Window, scores: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase) -> Scored:
    """`scores` are those of all tokens of the window, [tokens, 2]."""
    wide = scores.astype(np.float64)
    none = wide[no_answer_position(window.input_ids, tokenizer)].sum()
    normaliser = np.logaddexp.reduce(wide, axis=0).sum()
    return Scored(window.part, wide[window.here, 0], wide[window.here, 1], float(none), float(normaliser))


def best_passage(context: str, offsets: Sequence[windows.Span], scored: Sequence[Scored]) -> Passage:
    """The most probable answer of all windows."""
    none = min(window.none for window in scored)
    found = [_best(window, offsets) for window in scored]
    value, first, last = max(found)
    total = np.logaddexp.reduce([none, *(_total(window, offsets) for window in scored)])
    if none >= value:
        return Passage(None, None, None, float(np.exp(none - total)))
    start, end = offsets[first][0], offsets[last][1]
    return Passage(context[start:end], start, end, float(np.exp(value - total)))


def _best(window: Scored, offsets: Sequence[windows.Span]) -> tuple[float, int, int]:
    """(score, first token, last token) of the best passage in a window, tokens counted in the whole context."""
    start, end = _usable(window, offsets)
    best = (-np.inf, 0, 0)
    for length in range(min(LONGEST_ANSWER, len(start))):
        sums = start[: len(start) - length] + end[length:]
        first = int(sums.argmax())
        if sums[first] > best[0]:
            best = (float(sums[first]), window.part[0] + first, window.part[0] + first + length)
    return best


def _total(window: Scored, offsets: Sequence[windows.Span]) -> float:
    """Logarithm of the summed exponentials of all passages in a window."""
    start, end = _usable(window, offsets)
    sums = [
        np.logaddexp.reduce(start[: len(start) - length] + end[length:])
        for length in range(min(LONGEST_ANSWER, len(start)))
    ]
    return float(np.logaddexp.reduce(sums)) if sums else -np.inf


def _usable(window: Scored, offsets: Sequence[windows.Span]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores in which a token without characters (only space) can neither begin nor end an answer."""
    empty = np.array([first == last for first, last in offsets[slice(*window.part)]], dtype=bool)
    return np.where(empty, -np.inf, window.start), np.where(empty, -np.inf, window.end)


def answer_tokens(offsets: Sequence[windows.Span], start: int, end: int) -> windows.Span | None:
    """The tokens [first, after) that the characters [start, end) touch; None when there is none."""
    touched = [index for index, span in enumerate(offsets) if span[0] < end and span[1] > start]
    return (touched[0], touched[-1] + 1) if touched else None


def window_of(answer: windows.Span, parts: Sequence[windows.Span], length: int) -> int | None:
    """Which part holds the whole answer with most text around it; None when it is longer than each of them."""
    margins = [windows.margin(part, answer, length) for part in parts]
    best = max(range(len(parts)), key=lambda index: margins[index])
    return best if margins[best] >= 0 else None
