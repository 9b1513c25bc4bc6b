"""The routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from finetune_trainer.serving.answers import Shape, collect, stream
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.errors import (
    ApiError,
    GenerationFailed,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    RouteNotFound,
    Unavailable,
)
from finetune_trainer.serving.generation import Ticket, read_body, submit, tokenize
from finetune_trainer.serving.lifecycle import CloseWhileDraining, Lifecycle
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.protocol import ChatRequest, CompletionRequest, parse
from finetune_trainer.serving.tool_calls import make_reading
from finetune_trainer.serving.weights import ServedModel

UNKNOWN = "unknown"  # the label of what a client made up
CLIENT_GONE = 499


class Serving(Protocol):
    """What models, probes and metrics have to know of an engine, whichever kind of model it runs."""

    metrics: Metrics

    def start(self) -> None: ...

    def stop(self) -> None: ...

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    def models(self) -> Mapping[str, Any]: ...


class Cancellable(Protocol):
    """Work of a request that can be given up."""

    def cancel(self) -> None: ...


def create_app(config: ServerConfig, engine: Engine, lifecycle: Lifecycle | None = None) -> FastAPI:
    """Return the application. It starts the engine with itself, and stops it at the end."""
    lifecycle = lifecycle or Lifecycle()
    app = base_app(config, engine, lifecycle, config.names)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, ChatRequest, config, engine, lifecycle)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionRequest, config, engine, lifecycle)

    return app


def base_app(
    config: ServerConfig,
    engine: Serving,
    lifecycle: Lifecycle,
    names: tuple[str, ...],
    metadata: Callable[[Any], Mapping[str, Any]] = lambda model: {},
) -> FastAPI:
    """Return an application with everything but the routes that answer: models, probes, metrics, errors.

    `names` are those that are served, the tuned model first; `metadata` tells more of a model to clients.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    app = FastAPI(lifespan=lifespan, title="finetune-server", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(CloseWhileDraining, lifecycle=lifecycle)
    add_error_handlers(app, engine)
    add_probes(app, config, engine, lifecycle, names)
    add_models(app, config, engine, names, metadata)
    return app


def add_models(
    app: FastAPI,
    config: ServerConfig,
    engine: Serving,
    names: tuple[str, ...],
    metadata: Callable[[Any], Mapping[str, Any]],
) -> None:
    """Add /v1/models."""
    created = int(time.time())

    def describe(model: Any) -> dict[str, Any]:
        tuned = model.name == config.tuned_name
        return {
            "id": model.name,
            "object": "model",
            "created": created,
            "owned_by": "finetune-operator",
            "parent": config.base_name if tuned else None,
            "max_model_len": model.context,
            "metadata": {"run": config.run, "kind": "tuned" if tuned else "base", **metadata(model)},
        }

    @app.get("/v1/models")
    async def list_models(request: Request) -> Response:
        models = engine.models()
        count(request, engine, "", 200)
        return JSONResponse({"object": "list", "data": [describe(models[name]) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def get_model(request: Request, name: str) -> Response:
        model = engine.models().get(name)
        if model is None:
            raise ModelNotFound(name, names)
        count(request, engine, model.name, 200)
        return JSONResponse(describe(model))


def find_model(engine: Engine, config: ServerConfig, name: str) -> ServedModel:
    """Return a served model; raise ModelNotFound, or Unavailable while loading."""
    model = engine.models().get(name)
    if model is None:
        raise ModelNotFound(name, config.names)
    return model


async def answer(
    request: Request,
    kind: type[ChatRequest] | type[CompletionRequest],
    config: ServerConfig,
    engine: Engine,
    lifecycle: Lifecycle,
) -> Response:
    """Answer a request for generation, whole or as a stream."""
    if lifecycle.closing:
        raise Unavailable("The server is shutting down.")
    wanted: ChatRequest | CompletionRequest = parse(kind, await read_body(request, config.max_request_bytes))
    model = find_model(engine, config, wanted.model)
    request.state.model = model.name
    prompts = await tokenize(model, wanted)
    ticket = submit(engine, model, wanted, prompts)
    shape = Shape(chat=kind is ChatRequest, model=model.name, run=config.run)
    prompt_tokens = sum(map(len, prompts))
    reading = make_reading(model, wanted)
    if wanted.stream:
        events = stream(shape, ticket.pieces(), prompt_tokens, ticket.rows, reading, include_usage=wanted.include_usage)
        count(request, engine, model.name, 200)
        # No buffering by proxies: a stream that arrives in one piece is none.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(cancelling(ticket, events), media_type="text/event-stream", headers=headers)
    whole = await unless_gone(request, ticket, collect(shape, ticket.pieces(), prompt_tokens, reading))
    count(request, engine, model.name, CLIENT_GONE if whole is None else 200)
    return JSONResponse(whole) if whole is not None else Response(status_code=CLIENT_GONE)


async def cancelling(ticket: Ticket, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass a stream on, and end the generation when the client has gone."""
    try:
        async for event in events:
            yield event
    finally:
        ticket.cancel()


async def unless_gone(request: Request, ticket: Cancellable, work: Any) -> dict[str, Any] | None:
    """Return the result of the work, or None when the client left before; its generation is ended then."""
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await answering if answering.done() else None
    finally:
        ticket.cancel()
        for task in (answering, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def count(request: Request, engine: Serving, model: str, code: int) -> None:
    """Count an answer, by the route's pattern and a known model."""
    route = getattr(request.scope.get("route"), "path", UNKNOWN)
    engine.metrics.requests.labels(route, model, str(code)).inc()


def add_error_handlers(app: FastAPI, engine: Serving) -> None:
    """Give every error OpenAI's form, and keep what broke inside out of it."""

    def respond(request: Request, error: ApiError) -> Response:
        count(request, engine, getattr(request.state, "model", UNKNOWN), error.status)
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return respond(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        if error.status_code == MethodNotAllowed.status:
            return respond(request, MethodNotAllowed(f"Not allowed to {where}."))
        if error.status_code == RouteNotFound.status:
            return respond(request, RouteNotFound(f"Unknown request URL: {where}."))
        return respond(request, InvalidRequest(str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        # Starlette raises the error again after this answer, so that the server logs it.
        return respond(request, GenerationFailed())


def add_probes(
    app: FastAPI, config: ServerConfig, engine: Serving, lifecycle: Lifecycle, names: tuple[str, ...]
) -> None:
    """Add /healthz, /readyz and /metrics."""

    @app.get("/healthz")
    async def healthz() -> Response:
        content = {"status": "ok" if engine.alive else "failed", "run": config.run, "models": list(names)}
        return JSONResponse(content, 200 if engine.alive else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        if lifecycle.draining or lifecycle.closing:
            return JSONResponse({"status": "shutting down"}, 503)
        if not engine.ready:
            return JSONResponse({"status": "loading" if engine.alive else "failed"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)
