"""A task of the tests' own for the predicting server: it counts letters, and waits at a gate that the test opens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.errors import ApiError
from finetune_trainer.serving.predict_engine import PredictEngine, Work
from finetune_trainer.serving.predictor import (
    Item,
    PredictModel,
    PredictRequest,
    check_items,
    check_length,
    check_text,
)
from finetune_trainer.tasks.kind import Facts, Row

BOUND = 30.0  # seconds after which a wait is a failure
BAD = 666  # a token that the model cannot take
CONTEXT = 10
CONFIG = ServerConfig(
    base_dir=Path("unused"), base_name="base", tuned_name="tuned", run=7, max_request_bytes=2000, max_queue=70
)


class CountRequest(PredictRequest):
    input: str | list[str]


@dataclass
class Counting:
    """Counts the letters of words: a word is a row, a text an item. Waits at a gate that the test opens."""

    route: ClassVar[str] = "/v1/count"
    sample: ClassVar[Mapping[str, Any]] = {"input": "smoke"}
    request: ClassVar[type[CountRequest]] = CountRequest
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def items(self, wanted: CountRequest, model: PredictModel) -> list[Item]:
        texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        check_items(len(texts))
        items = []
        for index, text in enumerate(texts):
            check_text(text, f"input[{index}]")
            rows = [row(*word.encode()) if word != "bad" else row(BAD) for word in text.split()]
            check_length(max(len(one["input_ids"]) for one in rows), model.context, f"input[{index}]")
            items.append(Item(rows, sum(len(one["input_ids"]) for one in rows), text))
        return items

    def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[int]:
        lengths = [len(one["input_ids"]) for one in rows]
        if rows[0]["input_ids"] != list(b"smoke"):
            self.batches.append(lengths)
            self.entered.release()
            assert self.gate.wait(BOUND)
        if any(BAD in one["input_ids"] for one in rows):
            raise ValueError("no such token")
        return lengths

    def render(self, wanted: CountRequest, model: PredictModel, item: Item, outputs: Sequence[int]) -> dict[str, Any]:
        return {"text": item.source, "letters": list(outputs)}


def row(*ids: int) -> Row:
    return {"input_ids": list(ids)}


def load(_: ServerConfig) -> PredictModel:
    return PredictModel("tuned", cast(Any, None), cast(Any, None), Facts(("a", "b"), (1, 1)), CONTEXT)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


class Asked:
    """A request of the test and what became of it."""

    def __init__(self, engine: PredictEngine, *rows: Row, deadline: float = float("inf")) -> None:
        self.results: list[list[Any] | ApiError] = []
        self.work = Work(list(rows), self.results.append, deadline)
        engine.submit(self.work)

    def result(self) -> list[Any] | ApiError:
        wait_for(lambda: bool(self.results))
        return self.results[0]
