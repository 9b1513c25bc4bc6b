"""The smoke test: a question that the new model has answered before its server says that it is ready."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.conditions import FailureReason
from finetune_api.rollout import SMOKE_TOKENS, SmokeTest
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.serving.cohort import Piece, Row, decode, prefill
from finetune_trainer.serving.errors import ApiError
from finetune_trainer.serving.prompts import render_chat
from finetune_trainer.serving.sampling import Sampling
from finetune_trainer.serving.seq2seq import Seq2SeqLane
from finetune_trainer.serving.text import Detokenizer, StopScanner
from finetune_trainer.serving.weights import ServedModel, Weights


class SmokeFailedError(ArtifactInvalidError):
    """The model answers, but not as it must. To load it once more would change nothing."""

    default_reason = FailureReason.SMOKE_FAILED

    def __init__(self, fault: str) -> None:
        super().__init__(f"Smoke test: {fault}.")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, of a chat or as a text to go on from, and what the answer must be."""

    test: SmokeTest
    prompt: str
    chat: bool

    def ask(self, weights: Weights, model: ServedModel, to_text: Any) -> None:
        """Called by the engine's thread. Raises SmokeFailedError, or what goes wrong while generating."""
        said: list[Piece | Exception] = []
        begun = time.monotonic()
        row = self._row(model, said, to_text, begun + self.test.timeout_seconds)
        cohort = prefill(weights, model.lane, [row])
        while cohort.alive and not self._is_over(said):
            if time.monotonic() > row.deadline:
                raise SmokeFailedError(f"there was no whole answer within {self.test.timeout_seconds} seconds")
            decode(weights, cohort)
        failures = [event for event in said if isinstance(event, Exception)]
        if failures:
            raise failures[0]
        self.judge("".join(event.text for event in said if isinstance(event, Piece)))

    def judge(self, answer: str) -> None:
        """Raises SmokeFailedError when the answer will not do."""
        fault = self.test.fault(answer)
        if fault is not None:
            raise SmokeFailedError(f"asked {self.prompt[:200]!r}, {fault}")

    def _is_over(self, said: list[Piece | Exception]) -> bool:
        """Whether what is there will do already."""
        text = "".join(event.text for event in said if isinstance(event, Piece))
        return bool(text.strip()) and self.test.fault(text) is None

    def _row(self, model: ServedModel, said: list[Piece | Exception], to_text: Any, deadline: float) -> Row:
        try:
            ids = (
                render_chat(model.tokenizer, [{"role": "user", "content": self.prompt}])
                if self.chat
                else model.encode(self.prompt)
            )
        except ApiError as error:
            raise SmokeFailedError(f"the model cannot be asked: {error}") from error
        reads = model.context if isinstance(model.lane, Seq2SeqLane) else model.context - 1
        return Row(
            model=model,
            prompt=ids[-reads:],
            limit=SMOKE_TOKENS
            if isinstance(model.lane, Seq2SeqLane)
            else min(SMOKE_TOKENS, model.context - len(ids[-reads:])),
            sampling=Sampling(temperature=0),
            detokenizer=Detokenizer(to_text),
            stops=StopScanner(()),
            emit=said.append,
            is_cancelled=lambda: False,
            deadline=deadline,
        )


def predicting(test: SmokeTest, sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request that a server which predicts asks itself."""
    return sample if test.prompt is None else {"input": test.prompt}


def judge_predicted(test: SmokeTest, answer: Mapping[str, Any]) -> None:
    """Raises SmokeFailedError when the JSON of the answer will not do."""
    fault = test.fault(json.dumps(answer, ensure_ascii=False, sort_keys=True))
    if fault is not None:
        raise SmokeFailedError(fault)
