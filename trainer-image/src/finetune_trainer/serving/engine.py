"""One thread that owns the models and generates for everybody.

Between two tokens it looks at the queue: who has arrived is prefilled and joins the running batch; who has left,
or has taken too long, is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from finetune_trainer.serving.cohort import Cohort, Piece, Row, can_merge, decode, merge, prefill
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.errors import GenerationFailed, GenerationTimeout, InvalidRequest, QueueFull, Unavailable
from finetune_trainer.serving.lane import Lane
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.sampling import Sampling
from finetune_trainer.serving.smoke import Question
from finetune_trainer.serving.text import Detokenizer, StopScanner
from finetune_trainer.serving.weights import ServedModel, Weights, load_weights

logger = logging.getLogger(__name__)

SMOKE_TOKENS = 2
STOP_SECONDS = 10.0


class Engine:
    """Queue, batches and thread. Everything but the thread's own steps may be called from any thread."""

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        load: Callable[[ServerConfig], Weights] = load_weights,
        question: Question | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.weights: Weights | None = None
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._load = load
        self._question = question
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._cohorts: list[Cohort] = []
        self._running = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # --- for the server --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load the models; `ready` tells when that is done."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present step; whoever still waits gets Unavailable.

        A thread that is still loading a model is left behind: it is a daemon, and ends with the process.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether the models are loaded and have generated something."""
        return self.weights is not None and self.alive

    @property
    def alive(self) -> bool:
        """Whether the thread is at work, or will be."""
        return self.failure is None and (self._thread.is_alive() or self._thread.ident is None)

    def models(self) -> dict[str, ServedModel]:
        """Return the loaded models by name; raise Unavailable before there are any."""
        if self.weights is None:
            raise Unavailable("The model is still being loaded.")
        return self.weights.models

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue all rows of a request, or none: raise QueueFull, or Unavailable when stopping."""
        places = self.config.max_concurrent + self.config.max_queue
        if len(rows) > places:
            raise InvalidRequest(
                f"The request asks for {len(rows)} answers; this server has room for {places} at most.", param="n"
            )
        with self._changed:
            if self._stopping or not self.alive:
                raise Unavailable("The server is shutting down.")
            if self._running + len(self._waiting) + len(rows) > places:
                raise QueueFull("The server has as many requests as it can hold. Try again in a moment.")
            self._waiting.extend(rows)
            self.metrics.queue.set(len(self._waiting))
            self._changed.notify_all()

    # --- the thread ------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            weights = self._load(self.config)
            for model in weights.models.values():
                smoke(weights, model)
            tuned = weights.models.get(self.config.tuned_name or "")
            if self._question is not None and tuned is not None:
                self._question.ask(weights, tuned, make_decode(tuned))
            self.weights = weights
            while self._wait_for_work():
                self._turn(weights)
        except Exception as error:
            # Whatever it is, the process is of no use any more: say so and let it be restarted.
            logger.exception("the engine cannot go on")
            self.failure = error
            self.on_failure()
        self._fail_all(Unavailable("The server is shutting down."))

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._cohorts)
            return not self._stopping

    def _turn(self, weights: Weights) -> None:
        """Let in who waits, and add a token to every row."""
        self._drop_lost()
        for lane, rows in by_lane(self._admit()):
            self._guarded(rows, lambda lane=lane, rows=rows: self._join(prefill(weights, lane, rows)))  # type: ignore[misc]
        for cohort in self._cohorts:
            if cohort.alive:
                self.metrics.batch.observe(len(cohort.rows))
                self._guarded(cohort.rows, lambda cohort=cohort: decode(weights, cohort))  # type: ignore[misc]
        self._cohorts = [cohort for cohort in self._cohorts if cohort.alive]
        self._count()

    def _admit(self) -> list[Row]:
        """Take as many rows from the queue as there are free places, in order."""
        with self._changed:
            free = self.config.max_concurrent - sum(len(cohort.alive) for cohort in self._cohorts)
            rows = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self._running += len(rows)
            return rows

    def _join(self, fresh: Cohort) -> None:
        """Add a cohort to the one of its lane, or let it run beside it."""
        if not fresh.alive:
            return
        for index, cohort in enumerate(self._cohorts):
            if cohort.alive and can_merge(cohort, fresh):
                self._cohorts[index] = merge(cohort, fresh)
                return
        self._cohorts.append(fresh)

    def _guarded(self, rows: Sequence[Row], act: Callable[[], None]) -> None:
        """Do one step for some rows; if it breaks, they fail and everybody else goes on."""
        try:
            act()
        except Exception:
            logger.exception("a generation step failed")
            for row in rows:
                row.fail(GenerationFailed())

    def _drop_lost(self) -> None:
        """End the rows whose client has gone or whose time is over."""
        with self._changed:
            waiting = list(self._waiting)
        for row in [*waiting, *(row for cohort in self._cohorts for row in cohort.alive)]:
            if row.is_cancelled():
                row.done = True
            elif time.monotonic() > row.deadline:
                limit = self.config.request_timeout_seconds
                row.fail(GenerationTimeout(f"The answer took longer than {limit:g} seconds."))
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.done)

    def _count(self) -> None:
        with self._changed:
            self._running = sum(len(cohort.alive) for cohort in self._cohorts)
            self.metrics.running.set(self._running)
            self.metrics.queue.set(len(self._waiting))

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._stopping = True
            rows = [*self._waiting, *(row for cohort in self._cohorts for row in cohort.rows)]
            self._waiting.clear()
        for row in rows:
            row.fail(error)


def by_lane(rows: Sequence[Row]) -> list[tuple[Lane, list[Row]]]:
    """Group rows by the lane that they can share a batch in, in order of arrival."""
    groups: dict[int, tuple[Lane, list[Row]]] = {}
    for row in rows:
        groups.setdefault(id(row.model.lane), (row.model.lane, []))[1].append(row)
    return list(groups.values())


def make_decode(model: ServedModel) -> Callable[[list[int]], str]:
    """Return the function that turns ids into text, without control tokens."""

    def to_text(ids: list[int]) -> str:
        return str(model.decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return to_text


def smoke(weights: Weights, model: ServedModel) -> None:
    """Generate two tokens, so that a server which says it is ready has done it once. Raises what goes wrong."""
    failures: list[Exception] = []

    def emit(event: Piece | Exception) -> None:
        if isinstance(event, Exception):
            failures.append(event)

    row = Row(
        model=model,
        prompt=model.tokenizer("Hello")["input_ids"] or [min(model.end_ids, default=0)],
        limit=SMOKE_TOKENS,
        sampling=Sampling(temperature=0),
        detokenizer=Detokenizer(make_decode(model)),
        stops=StopScanner(()),
        emit=emit,
        is_cancelled=lambda: False,
        deadline=float("inf"),
    )
    cohort = prefill(weights, model.lane, [row])
    while cohort.alive:
        decode(weights, cohort)
    if failures:
        raise failures[0]
