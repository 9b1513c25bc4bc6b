"""The application of a server that predicts: one route of the task beside models, probes and metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from finetune_trainer.serving.app import CLIENT_GONE, base_app, count, unless_gone
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.errors import ApiError, ModelNotFound, Unavailable
from finetune_trainer.serving.generation import read_body
from finetune_trainer.serving.lifecycle import Lifecycle
from finetune_trainer.serving.predict_engine import PredictEngine, Work
from finetune_trainer.serving.predictor import Item, PredictModel, Predictor, PredictRequest
from finetune_trainer.serving.protocol import parse

# Tokenisers are not for two threads at a time.
_one_at_a_time = threading.Lock()


class BaseNotServed(ModelNotFound):
    """The base model was asked for a task that it has not learned."""

    def __init__(self, name: str, served: tuple[str, ...]) -> None:
        ApiError.__init__(
            self,
            f"The base model {name!r} has not learned this task: the layer that answers comes with the tuned model. "
            f"Served: {', '.join(served)}.",
        )


def create_predict_app(config: ServerConfig, engine: PredictEngine, lifecycle: Lifecycle | None = None) -> FastAPI:
    """Return the application. It starts the engine with itself, and stops it at the end."""
    lifecycle = lifecycle or Lifecycle()
    app = base_app(config, engine, lifecycle, engine.names, metadata=_metadata)

    @app.post(engine.predictor.route)
    async def predict(request: Request) -> Response:
        return await answer(request, config, engine, lifecycle)

    return app


def _metadata(model: PredictModel) -> dict[str, Any]:
    return {"labels": list(model.facts.labels)} if model.facts.labels else {}


async def answer(request: Request, config: ServerConfig, engine: PredictEngine, lifecycle: Lifecycle) -> Response:
    """Answer a request: all of its texts or an error, nothing in between."""
    if lifecycle.closing:
        raise Unavailable("The server is shutting down.")
    started = time.monotonic()
    predictor = engine.predictor
    wanted: PredictRequest = parse(predictor.request, await read_body(request, config.max_request_bytes))
    model = find_model(engine, config, wanted.model)
    request.state.model = model.name
    items = await anyio.to_thread.run_sync(lambda: _tokenized(predictor, wanted, model))
    pending = Pending(engine, items, deadline=started + config.request_timeout_seconds)
    whole = await unless_gone(request, pending, _whole(pending, predictor, wanted, model))
    count(request, engine, model.name, CLIENT_GONE if whole is None else 200)
    if whole is None:
        return Response(status_code=CLIENT_GONE)
    engine.metrics.prompt_tokens.labels(model.name).inc(whole["usage"]["prompt_tokens"])
    engine.metrics.generation.labels(model.name).observe(time.monotonic() - started)
    return JSONResponse(whole)


def find_model(engine: PredictEngine, config: ServerConfig, name: str) -> PredictModel:
    """Return the served model; raise ModelNotFound, or Unavailable while loading."""
    model = engine.models().get(name)
    if model is None:
        raise (BaseNotServed if name == config.base_name else ModelNotFound)(name, engine.names)
    return model


def _tokenized(predictor: Predictor[Any], wanted: PredictRequest, model: PredictModel) -> list[Item]:
    with _one_at_a_time:
        return predictor.items(wanted, model)


@dataclass(slots=True)
class Pending:
    """A request on its way through the engine. The result comes from the engine's thread, and is read in the loop."""

    engine: PredictEngine
    items: list[Item]
    deadline: float
    _work: Work = field(init=False)
    _result: asyncio.Future[list[Any]] = field(init=False)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._result = loop.create_future()

        def deliver(result: list[Any] | ApiError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._take, result)

        rows = [row for item in self.items for row in item.rows]
        self._work = Work(rows, deliver, self.deadline)
        self.engine.submit(self._work)

    def _take(self, result: list[Any] | ApiError) -> None:
        if self._result.done():
            return
        if isinstance(result, ApiError):
            self._result.set_exception(result)
        else:
            self._result.set_result(result)

    def cancel(self) -> None:
        """Tell the engine that nobody waits any more."""
        self._work.cancelled = True

    async def outputs(self) -> list[list[Any]]:
        """The outputs of each item's rows; raises the ApiError that ended the request."""
        outputs = iter(await self._result)
        return [[next(outputs) for _ in item.rows] for item in self.items]


async def _whole(
    pending: Pending, predictor: Predictor[Any], wanted: PredictRequest, model: PredictModel
) -> dict[str, Any]:
    rendered = [
        {"index": index, **predictor.render(wanted, model, item, outputs)}
        for index, (item, outputs) in enumerate(zip(pending.items, await pending.outputs(), strict=True))
    ]
    tokens = sum(item.tokens for item in pending.items)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": model.name, "data": rendered, "usage": usage}
