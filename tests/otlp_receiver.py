"""A collector as small as can be: takes OTLP/HTTP as the protocol has it, decodes it, and keeps the spans."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """A span as it came; ids in hexadecimal digits, times in nanoseconds."""

    name: str
    trace: str
    span: str
    parent: str
    start: int
    end: int
    error: str
    links: list[str]
    attributes: dict[str, Any]
    service: dict[str, Any]


@dataclass
class Receiver:
    """What has come so far. `answer` is the status of all later answers; None: it hangs until `released`."""

    url: str
    spans: list[Received] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    requests: int = 0
    answer: int | None = 200
    released: threading.Event = field(default_factory=threading.Event)

    def of_run(self, run: int = 1) -> dict[str, Received]:
        """The spans of a run and its stages, by name."""
        return {
            each.name: each
            for each in self.spans
            if each.name != "reconcile" and each.attributes["finetune.run"] == run
        }


def _values(attributes: Any) -> dict[str, Any]:
    found = {}
    for each in attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def _decode(body: bytes) -> Iterator[Received]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Received(
                name=span.name,
                trace=span.trace_id.hex(),
                span=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                start=span.start_time_unix_nano,
                end=span.end_time_unix_nano,
                error=span.status.message if span.status.code == 2 else "",
                links=[link.trace_id.hex() for link in span.links],
                attributes=_values(span.attributes),
                service=service,
            )


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A collector on a free port, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.requests += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.answer is None:
                receiver.released.wait(60)
            elif receiver.answer == 200:
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                receiver.spans.extend(_decode(plain))
                receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                receiver.paths.add(self.path)
            self.send_response(receiver.answer or 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
