"""Traces to an OpenTelemetry collector, over OTLP/HTTP. Imported only where they are switched on.

Spans wait in a bounded queue for a thread that sends them. A collector that is slow or away costs spans and never a
pass: what does not fit is dropped, oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus
from finetune_operator import FIELD_MANAGER
from finetune_operator.control.environment import TraceSettings
from finetune_operator.control.metrics import TRACE_SPANS
from finetune_operator.control.passes import Pass
from finetune_operator.control.spans import Span, pass_span, run_spans

logger = logging.getLogger(__name__)

QUEUE = 2048  # spans; at some 2 KB each a few MB, however long the collector is away
BATCH = 512
SEND_SECONDS = 1.0  # between two batches that are not full
TIMEOUT_SECONDS = 10.0  # of one batch, repetitions included
FLUSH_SECONDS = 3.0  # at the end of the process; the Lease is released by then


class Traces:
    """Takes what happened, never waits and never raises. `close()` sends what is left, for a few seconds."""

    def __init__(self, settings: TraceSettings, chance: Callable[[], float] = random.random) -> None:
        # The libraries would tell every repetition; ours is a line when it begins and when it ends.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(endpoint=settings.endpoint, headers=dict(settings.headers), timeout=TIMEOUT_SECONDS)
        self._sampling = settings.sampling
        self._chance = chance
        self._ids = GivenIds()
        known = {"service.name": FIELD_MANAGER, "service.instance.id": settings.instance}
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({key: value for key, value in known.items() if value}),
            id_generator=self._ids,
            shutdown_on_exit=False,  # it would wait for the collector, for half a minute
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                Counted(exporter, settings.endpoint),
                max_queue_size=QUEUE,
                max_export_batch_size=BATCH,
                schedule_delay_millis=1000 * SEND_SECONDS,
            )
        )
        self._tracer = self._provider.get_tracer("finetune_operator")

    def moved(self, job: FineTuneJob, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime) -> None:
        """A status was written: what of its run has ended."""
        self._send(lambda: run_spans(job, before, after, now))

    def passed(self, this: Pass) -> None:
        """A pass is over. One that changed nothing is no news."""
        if (this.writes or this.error) and self._chance() < self._sampling:
            self._send(lambda: [pass_span(this, random.getrandbits(128), random.getrandbits(64))])

    async def close(self) -> None:
        """Sends what waits. Gives up after a few seconds: the process ends."""
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def flush() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waited
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=flush, name="traces-flush", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()

    def _send(self, spans: Callable[[], Iterable[Span]]) -> None:
        try:
            for span in spans():
                self._record(span)
        except Exception:  # a trace is never worth a pass
            logger.exception("traces=failed")

    def _record(self, span: Span) -> None:
        self._ids.trace, self._ids.span = span.trace, span.span
        started = self._tracer.start_span(
            span.name,
            context=_below(span.trace, span.parent) if span.parent is not None else Context(),
            attributes=span.attributes,
            links=[Link(_context(*span.link))] if span.link else [],
            start_time=_nanoseconds(span.start),
        )
        if span.error is not None:
            started.set_status(Status(StatusCode.ERROR, span.error))
        started.end(end_time=_nanoseconds(span.end))


class GivenIds(IdGenerator):
    """The ids of the span that is begun next."""

    trace = span = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


class Counted(SpanExporter):
    """Counts what was sent and what was lost, and tells the log when the collector goes away and comes back."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._works = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        works = result is SpanExportResult.SUCCESS
        TRACE_SPANS.labels("exported" if works else "failed").inc(len(spans))
        if works is not self._works:
            self._works = works
            logger.log(
                logging.INFO if works else logging.WARNING,
                "traces=%s endpoint=%s",
                "delivered_again" if works else "not_delivered",
                self._endpoint,
            )
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _context(trace: int, span: int) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _below(trace: int, parent: int) -> Context:
    return set_span_in_context(NonRecordingSpan(_context(trace, parent)), Context())


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)
