"""An OpenAI-compatible endpoint that judges by a rule of the test's, over real HTTP, and can misbehave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = re.compile(r"<answer_a>\n(.*)\n</answer_a>\n\n<answer_b>\n(.*)\n</answer_b>", re.DOTALL)


@dataclass
class Judge:
    """`opinion` gets both answers in the order in which they are shown and returns the reply's text. `faults` come
    before it, one a request: a status, or a body in place of a completion. `seen` are the bodies of the requests."""

    opinion: Callable[[str, str], str]
    faults: list[int | bytes | float] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def judging(judge: Judge) -> Iterator[Judge]:
    """The judge, answering at `judge.url` within the block."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing on the test's output."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.seen.append({"path": self.path, **body})
            judge.keys.add(self.headers.get("Authorization", ""))
            fault = judge.faults.pop(0) if judge.faults else None
            if isinstance(fault, float):  # hangs until the test is over
                judge.released.wait(fault)
                return
            if isinstance(fault, int):
                self.reply(fault, b'{"error": "try later"}')
            elif fault is not None:
                self.reply(200, fault)
            else:
                found = ANSWERS.search(body["messages"][-1]["content"])
                assert found is not None
                message = {"role": "assistant", "content": judge.opinion(found[1], found[2])}
                self.reply(200, json.dumps({"choices": [{"message": message}]}).encode())

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            for name, value in judge.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        judge.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
