"""How one question is put to a server, and its answer read, by the task's route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.spec import Task
from finetune_api.tasks import TASKS

TOKENS = 160
GENERATING: Mapping[str, Any] = {"max_tokens": TOKENS, "temperature": 0}  # the same answer each time


@dataclass(frozen=True, slots=True)
class Route:
    """`body`: the request for a line that somebody typed. `read`: what to show of the answer. `example`: such a line.

    `python`: the same with the openai client, with {name} and {url}; None where that client has no word for it.
    """

    body: Callable[[str], dict[str, Any]]
    read: Callable[[dict[str, Any]], str]
    example: str = "Hello"
    python: str | None = None


def _question(line: str) -> dict[str, Any]:
    """`Who left? Anna left Bern.`: the question ends at its mark, the text follows."""
    question, mark, context = line.partition("?")
    return {"input": {"question": question + mark, "context": context.strip()}}


def _entities(answer: dict[str, Any]) -> str:
    found = answer["data"][0]["entities"]
    return ", ".join(f"{one['text']} ({one['label']})" for one in found) or "(nothing found)"


def _labels(answer: dict[str, Any]) -> str:
    entry = answer["data"][0]
    return ", ".join(f"{one['label']} {one['score']:.0%}" for one in entry["scores"][:3])


ROUTES: Mapping[str, Route] = {
    "/v1/chat/completions": Route(
        lambda line: {"messages": [{"role": "user", "content": line}], **GENERATING},
        lambda answer: str(answer["choices"][0]["message"]["content"]),
        python='client.chat.completions.create(model="{name}", messages=[{{"role": "user", "content": "Hello"}}])'
        ".choices[0].message.content",
    ),
    "/v1/completions": Route(
        lambda line: {"prompt": line, **GENERATING},
        lambda answer: str(answer["choices"][0]["text"]),
        python='client.completions.create(model="{name}", prompt="Hello").choices[0].text',
    ),
    "/v1/classify": Route(lambda line: {"input": line}, _labels),
    "/v1/tag": Route(lambda line: {"input": line}, _entities, example="Anna left New York."),
    "/v1/answer": Route(
        _question,
        lambda answer: answer["data"][0]["answer"] or "(no answer in the text)",
        example="Who left Bern? Anna left Bern.",
    ),
}


def route_of(task: Task) -> tuple[str, Route]:
    """(path below the endpoint's /v1, how to use it)."""
    route = TASKS[task].route
    return route.removeprefix("/v1/"), ROUTES[route]
