"""One thread that owns the model and predicts for everybody: whatever waits when it is free goes into one batch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.errors import ApiError, GenerationFailed, GenerationTimeout, QueueFull, Unavailable
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predictor import PredictModel, Predictor
from finetune_trainer.serving.smoke import judge_predicted, predicting
from finetune_trainer.tasks.kind import Row

logger = logging.getLogger(__name__)

BATCH_ROWS, BATCH_TOKENS = 32, 8192  # of a forward call, padded: bounds its memory
STOP_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class Work:
    """The rows of one request. `deliver` is called once, by the engine's thread: their outputs, or why there are
    none."""

    rows: Sequence[Row]
    deliver: Callable[[list[Any] | ApiError], None]
    deadline: float
    cancelled: bool = False
    done: bool = False
    outputs: dict[int, Any] = field(default_factory=dict)

    def take(self, index: int, output: Any) -> None:
        """Keep the output of a row; with the last one the request is answered."""
        self.outputs[index] = output
        if len(self.outputs) == len(self.rows):
            self._finish([self.outputs[at] for at in range(len(self.rows))])

    def fail(self, error: ApiError) -> None:
        """Answer with an error."""
        self._finish(error)

    def _finish(self, result: list[Any] | ApiError) -> None:
        if not self.done:
            self.done = True
            self.deliver(result)


@dataclass(frozen=True, slots=True)
class Place:
    """One row in the queue."""

    work: Work
    index: int

    @property
    def row(self) -> Row:
        return self.work.rows[self.index]

    @property
    def length(self) -> int:
        return len(self.row["input_ids"])


class PredictEngine:
    """Queue, batches and thread. Everything but the thread's own steps may be called from any thread."""

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        predictor: Predictor[Any],
        load: Callable[[ServerConfig], PredictModel],
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.predictor = predictor
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._model: PredictModel | None = None
        self._load = load
        self._changed = threading.Condition()
        self._waiting: deque[Place] = deque()
        self._running: list[Place] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="predict-engine", daemon=True)

    # --- for the server --------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The one name that is answered: a base model has no trained layer for the task, so beside a tuned model it
        is not served."""
        return (self.config.tuned_name or self.config.base_name,)

    def start(self) -> None:
        """Begin to load the model; `ready` tells when that is done."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present batch; whoever still waits gets Unavailable."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and has predicted something."""
        return self._model is not None and self.alive

    @property
    def alive(self) -> bool:
        """Whether the thread is at work, or will be."""
        return self.failure is None and (self._thread.is_alive() or self._thread.ident is None)

    def models(self) -> dict[str, PredictModel]:
        """Return the loaded model by its name; raise Unavailable before there is one."""
        if self._model is None:
            raise Unavailable("The model is still being loaded.")
        return {self._model.name: self._model}

    def submit(self, work: Work) -> None:
        """Queue all rows of a request, or none: raise QueueFull, or Unavailable when stopping.

        A request alone in the queue is always taken, however many rows a long text was split into.
        """
        places = self.config.max_concurrent + self.config.max_queue
        with self._changed:
            if self._stopping or not self.alive:
                raise Unavailable("The server is shutting down.")
            taken = len(self._running) + len(self._waiting)
            if taken and taken + len(work.rows) > places:
                raise QueueFull("The server has as many requests as it can hold. Try again in a moment.")
            self._waiting.extend(Place(work, index) for index in range(len(work.rows)))
            self.metrics.queue.set(len(self._waiting))
            self._changed.notify_all()

    # --- the thread ------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            model = self._load(self.config)
            self._smoke(model)
            self._model = model
            while self._wait_for_work():
                self._turn(model)
        except Exception as error:
            # Whatever it is, the process is of no use any more: say so and let it be restarted.
            logger.exception("the engine cannot go on")
            self.failure = error
            self.on_failure()
        self._fail_all(Unavailable("The server is shutting down."))

    def _smoke(self, model: PredictModel) -> None:
        """Answer a request of our own, so that a server which says it is ready has done it once."""
        test = self.config.smoke
        asked = {"model": model.name, **predicting(test, self.predictor.sample)}
        wanted = self.predictor.request.model_validate(asked)
        for item in self.predictor.items(wanted, model):
            judge_predicted(test, self.predictor.render(wanted, model, item, self.predictor.predict(model, item.rows)))

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting)
            return not self._stopping

    def _turn(self, model: PredictModel) -> None:
        batch = self._take()
        if batch:
            self.metrics.batch.observe(len(batch))
            self._predict(model, batch)
        with self._changed:
            self._running = []
            self.metrics.running.set(0)

    def _take(self) -> list[Place]:
        """The next batch, in order of arrival, without those who have gone or whose time is over."""
        batch: list[Place] = []
        with self._changed:
            while self._waiting and len(batch) < BATCH_ROWS:
                place = self._waiting[0]
                longest = max([place.length, *(one.length for one in batch)])
                if batch and (len(batch) + 1) * longest > BATCH_TOKENS:
                    break
                self._waiting.popleft()
                if not self._lost(place.work):
                    batch.append(place)
            self._running = batch
            self.metrics.running.set(len(batch))
            self.metrics.queue.set(len(self._waiting))
        return batch

    def _lost(self, work: Work) -> bool:
        if time.monotonic() > work.deadline:
            limit = self.config.request_timeout_seconds
            work.fail(GenerationTimeout(f"The answer took longer than {limit:g} seconds."))
        return work.done or work.cancelled

    def _predict(self, model: PredictModel, batch: Sequence[Place]) -> None:
        """Predict; when that breaks, row by row, so that only the request which breaks it fails."""
        try:
            outputs = self.predictor.predict(model, [place.row for place in batch])
        except Exception:
            if len(batch) > 1:
                for place in batch:
                    self._predict(model, [place])
                return
            logger.exception("a prediction failed")
            batch[0].work.fail(GenerationFailed())
            return
        for place, output in zip(batch, outputs, strict=True):
            place.work.take(place.index, output)

    def _fail_all(self, error: ApiError) -> None:
        with self._changed:
            self._stopping = True
            places = [*self._running, *self._waiting]
            self._waiting.clear()
        for place in places:
            place.work.fail(error)
