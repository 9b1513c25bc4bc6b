"""Kueue's Workloads are watched where the cluster has them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.control.api_client import Api, ApiError
from finetune_operator.control.discovery import watched_kinds
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


def test_an_api_server_that_does_not_answer_is_no_answer() -> None:
    with pytest.raises(ApiError):
        asyncio.run(watched_kinds(Answers(ApiError(503, "Away", "away"))))
