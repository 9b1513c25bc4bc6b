"""Every route has its way of asking, and what the servers answer is read."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.spec import Task
from finetune_api.tasks import TASKS
from finetune_operator.cli.asking import ROUTES, route_of


def test_every_route_can_be_asked() -> None:
    assert set(ROUTES) == {rules.route for rules in TASKS.values()}


@pytest.mark.parametrize(
    ("task", "line", "body"),
    [
        (Task.CHAT, "Hi", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 160, "temperature": 0}),
        (Task.PREFERENCE, "Hi", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 160, "temperature": 0}),
        (Task.SEQ2SEQ, "Hi", {"prompt": "Hi", "max_tokens": 160, "temperature": 0}),
        (Task.CLASSIFICATION, "Hi", {"input": "Hi"}),
        (Task.QUESTION_ANSWERING, "Who? Anna.", {"input": {"question": "Who?", "context": "Anna."}}),
        (Task.QUESTION_ANSWERING, "Who", {"input": {"question": "Who", "context": ""}}),  # the server says what lacks
    ],
)
def test_a_line_becomes_a_request(task: Task, line: str, body: dict[str, Any]) -> None:
    assert route_of(task)[1].body(line) == body


@pytest.mark.parametrize(
    ("task", "answer", "shown"),
    [
        (Task.CHAT, {"choices": [{"message": {"content": "Hello"}}]}, "Hello"),
        (Task.COMPLETION, {"choices": [{"text": "Hello"}]}, "Hello"),
        (
            Task.CLASSIFICATION,
            {"data": [{"scores": [{"label": "spam", "score": 0.9}, {"label": "ham", "score": 0.1}]}]},
            "spam 90%, ham 10%",
        ),
        (Task.TOKEN_CLASSIFICATION, {"data": [{"entities": [{"text": "Bern", "label": "PLACE"}]}]}, "Bern (PLACE)"),
        (Task.TOKEN_CLASSIFICATION, {"data": [{"entities": []}]}, "(nothing found)"),
        (Task.QUESTION_ANSWERING, {"data": [{"answer": None}]}, "(no answer in the text)"),
    ],
)
def test_an_answer_is_read(task: Task, answer: dict[str, Any], shown: str) -> None:
    assert route_of(task)[1].read(answer) == shown
