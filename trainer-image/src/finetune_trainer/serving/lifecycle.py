"""From the first second to the last: which answers the probes get, and when connections are closed."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(slots=True)
class Lifecycle:
    """`draining`: no longer ready, still answering. `closing`: only what runs is finished."""

    draining: bool = False
    closing: bool = False


class CloseWhileDraining:
    """Middleware that asks clients to use another connection, so that none is reused when this server goes away."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add `Connection: close` to answers that begin while draining."""

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self.lifecycle.draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, closing if scope["type"] == "http" else send)
