"""Questions to base and tuned at the same time, over the OpenAI API of the local server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from finetune_api.spec import Task
from finetune_api.status import EndpointStatus
from finetune_operator.cli.asking import route_of
from finetune_operator.local.errors import LocalError

SECONDS = 120.0


class AskFailed(LocalError):
    """The server did not answer, or refused."""


def is_alive(endpoint: EndpointStatus | None) -> bool:
    """Whether the server that the status names answers, and for this model."""
    if endpoint is None:
        return False
    try:
        answer = httpx.get(f"{endpoint.url}/models", timeout=3)
        return endpoint.model in {model["id"] for model in answer.json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def ask(endpoint: EndpointStatus, task: Task, model: str, prompt: str) -> str:
    """One answer, as likely as possible and so the same each time. Raises AskFailed."""
    path, route = route_of(task)
    try:
        answer = httpx.post(f"{endpoint.url}/{path}", json={"model": model, **route.body(prompt)}, timeout=SECONDS)
    except httpx.HTTPError as error:
        raise AskFailed(
            f"{endpoint.url}: {error or type(error).__name__}", "see `finetune logs --stage Serve`"
        ) from error
    if answer.status_code != httpx.codes.OK:
        raise AskFailed(f"the server refused: {_refusal(answer)}")
    return route.read(answer.json())


def ask_both(endpoint: EndpointStatus, task: Task, prompts: Sequence[str]) -> list[tuple[str, str, str]]:
    """(prompt, base, tuned) for each prompt. The server answers them in one batch."""
    names = [endpoint.base_model, endpoint.model]
    pairs = [(name, prompt) for prompt in prompts for name in names]
    with ThreadPoolExecutor(max_workers=max(1, len(pairs))) as pool:
        answers = list(pool.map(lambda pair: ask(endpoint, task, *pair) if pair[0] else "", pairs))
    return [(prompt, answers[2 * i], answers[2 * i + 1]) for i, prompt in enumerate(prompts)]


def converse(read: Callable[[], str], answer: Callable[[str], None]) -> None:
    """Ask until the user has had enough (Ctrl-D, Ctrl-C, or `exit`). An answer that fails ends nothing but itself."""
    while True:
        try:
            prompt = read().strip()
        except (EOFError, KeyboardInterrupt):
            return
        if prompt in ("exit", "quit"):
            return
        if prompt:
            answer(prompt)


def _refusal(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
