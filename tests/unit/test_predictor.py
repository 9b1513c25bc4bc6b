"""The engine of the predicting server with a task of the test's own: batches, limits, faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from tests.counting_task import BAD, BOUND, CONFIG, Asked, Counting, load, row, wait_for

from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.errors import GenerationFailed, GenerationTimeout, QueueFull, Unavailable
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predict_engine import BATCH_ROWS, BATCH_TOKENS, PredictEngine
from finetune_trainer.serving.predictor import (
    PredictModel,
)
from finetune_trainer.tasks.kind import Row


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def engine(counting: Counting) -> Iterator[PredictEngine]:
    engine = PredictEngine(CONFIG, Metrics(), counting, load)
    engine.start()
    wait_for(lambda: engine.ready)
    yield engine
    counting.gate.set()
    engine.stop()


def test_what_waits_while_a_batch_runs_is_the_next_batch(engine: PredictEngine, counting: Counting) -> None:
    first = Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    others = [Asked(engine, row(*range(length)), row(7)) for length in (2, 3)]
    counting.gate.set()
    assert [first.result(), *(one.result() for one in others)] == [[1], [2, 1], [3, 1]]
    assert counting.batches == [[1], [2, 1, 3, 1]]


def test_a_batch_is_bounded_in_rows_and_in_padded_tokens(engine: PredictEngine, counting: Counting) -> None:
    counting.gate.set()
    many = Asked(engine, *(row(1) for _ in range(BATCH_ROWS + 1)))
    assert many.result() == [1] * (BATCH_ROWS + 1)
    long = row(*[0] * (BATCH_TOKENS // 2))
    huge = row(*[0] * (BATCH_TOKENS + 1))
    Asked(engine, long, long, long, huge, row(1)).result()
    assert [len(batch) for batch in counting.batches] == [BATCH_ROWS, 1, 2, 1, 1, 1]


def test_a_full_queue_takes_no_more_but_a_lone_long_request(engine: PredictEngine, counting: Counting) -> None:
    places = CONFIG.max_concurrent + CONFIG.max_queue
    lone = Asked(engine, *(row(1) for _ in range(places + 5)))
    assert counting.entered.acquire(timeout=BOUND)
    with pytest.raises(QueueFull):
        Asked(engine, row(1))
    counting.gate.set()
    assert lone.result() == [1] * (places + 5)
    wait_for(lambda: engine.metrics.registry.get_sample_value("finetune_server_running") == 0)
    assert Asked(engine, row(1)).result() == [1]


def test_only_the_request_that_breaks_fails(engine: PredictEngine, counting: Counting) -> None:
    gate = Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    good, bad, other = Asked(engine, row(1, 2)), Asked(engine, row(5), row(BAD)), Asked(engine, row(3))
    counting.gate.set()
    assert gate.result() == [1]
    assert isinstance(bad.result(), GenerationFailed)
    assert (good.result(), other.result()) == ([2], [1])
    assert engine.alive


def test_who_has_gone_or_waits_too_long_is_not_predicted(engine: PredictEngine, counting: Counting) -> None:
    Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    gone, late = Asked(engine, row(1, 2)), Asked(engine, row(1, 2, 3), deadline=0.0)
    last = Asked(engine, row(1, 2, 3, 4))
    gone.work.cancelled = True
    counting.gate.set()
    assert last.result() == [4]
    error = late.result()
    assert isinstance(error, GenerationTimeout)
    assert "300 seconds" in error.message
    assert counting.batches == [[1], [4]]
    assert gone.results == []


def test_stopping_answers_those_who_wait_and_takes_nobody_else(engine: PredictEngine, counting: Counting) -> None:
    Asked(engine, row(1))
    assert counting.entered.acquire(timeout=BOUND)
    waiting = Asked(engine, row(2))
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    wait_for(lambda: engine._stopping)
    with pytest.raises(Unavailable):
        Asked(engine, row(3))
    counting.gate.set()
    stopping.join(BOUND)
    assert isinstance(waiting.result(), Unavailable)
    assert not engine.ready


@pytest.mark.parametrize("broken", ["load", "smoke"])
def test_a_model_that_does_not_work_is_a_failure(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    def cannot_load(_: ServerConfig) -> PredictModel:
        raise OSError("no such folder")

    class Mute(Counting):
        def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[int]:
            raise OSError("no such folder")

    engine = PredictEngine(
        CONFIG, Metrics(), Mute() if broken == "smoke" else Counting(), cannot_load if broken == "load" else load
    )
    told = threading.Event()
    engine.on_failure = told.set
    engine.start()
    assert told.wait(BOUND)
    assert (str(engine.failure), engine.ready, engine.alive) == ("no such folder", False, False)
    with pytest.raises(Unavailable):
        engine.models()
