"""The process: start, signals, and an end that fails no request."""

from __future__ import annotations

import asyncio
import math
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from finetune_api.tasks import TASKS, Task
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.config import ServerConfig, ServingError, check_config
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.lifecycle import Lifecycle
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predict_app import create_predict_app
from finetune_trainer.serving.predict_engine import PredictEngine
from finetune_trainer.serving.predict_table import PREDICTORS
from finetune_trainer.serving.predict_weights import load_predict_model
from finetune_trainer.serving.smoke import Question, SmokeFailedError
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.tasks.table import KINDS


class DrainingServer(uvicorn.Server):
    """Ends in three steps on SIGTERM: not ready but still answering, then finishing what runs, then gone.

    A pod gets SIGTERM at the same time as it is taken off its Service, not after, so new connections still arrive
    for a moment. uvicorn alone would refuse them at once. SIGINT, from a person, leaves out the first step, and a
    second signal of any kind the second.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_seconds: float) -> None:
        super().__init__(config)
        self.lifecycle = lifecycle
        self.drain_seconds = drain_seconds
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Remember the loop that signals are handed to."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. The signal is not raised again afterwards, so that the process ends with 0."""
        again = self.lifecycle.draining
        self.lifecycle.draining = True
        if again:
            self.force_exit = self.should_exit
            self.close()
        elif sig == signal.SIGINT or self.loop is None:
            self.close()
        else:
            self.loop.call_soon_threadsafe(self.loop.call_later, self.drain_seconds, self.close)

    def close(self) -> None:
        """Take no new request, and let uvicorn end when the running ones have."""
        self.lifecycle.draining = self.lifecycle.closing = True
        self.should_exit = True


def serve(config: ServerConfig, task: Task = Task.CHAT, facts: Facts | None = None) -> None:
    """Serve until a signal ends it; blocks. Raise ServingError when the models cannot be loaded or break.

    `facts`: the labels of a task that predicts.
    """
    check_config(config)
    lifecycle = Lifecycle()
    engine: Engine | PredictEngine
    if task in PREDICTORS:
        kind, known = KINDS[task], facts or Facts()
        engine = PredictEngine(
            config, Metrics(), PREDICTORS[task], lambda settings: load_predict_model(settings, kind, known)
        )
        app = create_predict_app(config, engine, lifecycle)
    else:
        engine = Engine(config, Metrics(), question=question_of(config, task))
        app = create_app(config, engine, lifecycle)
    server = make_server(config, app, lifecycle)
    engine.on_failure = server.close
    try:
        server.run()
    except SystemExit as error:
        # uvicorn leaves like this when it cannot bind; it has logged why.
        raise ServingError(
            f"cannot listen on {config.host}:{config.port}: choose another port (exit {error.code})"
        ) from None
    if isinstance(engine.failure, SmokeFailedError):
        raise engine.failure
    if engine.failure is not None:
        raise ServingError(
            f"cannot serve {', '.join(config.names)} from {config.base_dir}: {engine.failure}. "
            "Check that the folders hold a complete model, and an adapter that was trained on that very base"
        ) from engine.failure


def question_of(config: ServerConfig, task: Task) -> Question | None:
    """The smoke test of a task that generates, where there is something to ask."""
    prompt = config.smoke.prompt or config.question
    return Question(config.smoke, prompt, chat=TASKS[task].route.endswith("chat/completions")) if prompt else None


def make_server(config: ServerConfig, app: FastAPI, lifecycle: Lifecycle) -> DrainingServer:
    """Return the server, ready to run."""
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_level="info",
        access_log=False,  # a line a request, and probes among them, hides what matters; /metrics counts them
        server_header=False,
        timeout_keep_alive=75,  # longer than the usual load balancer's, so that the server never closes first
        timeout_graceful_shutdown=math.ceil(config.shutdown_grace_seconds),
    )
    return DrainingServer(settings, lifecycle, config.drain_seconds)
