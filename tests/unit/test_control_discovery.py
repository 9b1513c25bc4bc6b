"""Kueue's Workloads are watched where the cluster has them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.virtual_time import run_virtually

from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.discovery import until_changed, watched_kinds
from finetune_operator.control.resources import WATCHED


class Answers(Api):
    """An API server that answers one thing."""

    def __init__(self, answer: dict[str, Any] | ApiError) -> None:
        self.answer = answer

    async def request(self, method: str, path: str, label: str, **_: Any) -> dict[str, Any]:
        assert (method, path) == ("GET", "/apis/kueue.x-k8s.io")
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


def serving(*versions: str) -> Answers:
    return Answers({"versions": [{"groupVersion": f"kueue.x-k8s.io/{each}", "version": each} for each in versions]})


@pytest.mark.parametrize(
    ("served", "watched"),
    [
        (("v1beta1",), "v1beta1"),
        (("v1beta1", "v1beta2"), "v1beta2"),
        (("v1beta2", "v1beta1", "v1"), "v1"),
        (("v9",), None),
        ((), None),
    ],
)
def test_the_best_version_that_can_be_read(served: tuple[str, ...], watched: str | None) -> None:
    found = asyncio.run(watched_kinds(serving(*served)))
    assert found[: len(WATCHED)] == WATCHED
    assert [each.version for each in found[len(WATCHED) :]] == ([watched] if watched else [])


@pytest.mark.parametrize("status", [403, 404])
def test_without_kueue_nothing_more_is_watched(status: int) -> None:
    assert asyncio.run(watched_kinds(Answers(ApiError(status, "No", "no")))) == WATCHED


class Changing(Api):
    """An API server that answers one thing after the other, and says how long it had been asked nothing."""

    def __init__(self, *answers: dict[str, Any] | ApiError) -> None:
        self.answers = list(answers)
        self.asked: list[float] = []

    async def request(self, method: str, path: str, label: str, **_: Any) -> dict[str, Any]:
        self.asked.append(asyncio.get_running_loop().time())
        return await Answers(self.answers.pop(0)).request(method, path, label)


def test_others_are_watched_after_two_looks_in_a_row_and_not_because_nobody_answers() -> None:
    absent, away, here = (
        ApiError(404, "NotFound", ""),
        ApiError(503, "Away", ""),
        {"versions": [{"version": "v1beta2"}]},
    )
    api = Changing(absent, away, here, absent, here, away, here)
    run_virtually(until_changed(api, WATCHED, 300.0))
    assert api.asked == [300, 600, 900, 930, 1230, 1260, 1290]
    assert api.answers == []


def test_an_api_server_that_does_not_answer_is_no_answer() -> None:
    with pytest.raises(ApiError):
        asyncio.run(watched_kinds(Answers(ApiError(503, "Away", "away"))))
