"""Behaviour checks: what an answer must do, and what of a check cannot be run."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from finetune_api.checks import BehaviourCheck
from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation.checks import fault, require_checks
from finetune_trainer.tasks.kind import Answer

SCHEMA = json.dumps(
    {"type": "object", "required": ["city"], "properties": {"city": {"type": "string", "pattern": "^(a+)+$"}}}
)


def check(**kind: Any) -> BehaviourCheck:
    return BehaviourCheck.model_validate({"name": "one", **kind})


def written(text: str, *, stopped: bool = True, length: int = 5) -> Answer:
    return Answer(text, stopped, length, length)


TABLE = [
    ({"contains": ["sea", "May"]}, "The SEA is wide. may it carry you.", None),
    ({"contains": ["sea", "May"]}, "The sea is wide.", "does not contain 'May'"),
    ({"contains": ["Sea"], "ignoreCase": False}, "The sea is wide.", "does not contain 'Sea'"),
    ({"notContains": ["hotel"]}, "Sleep at the Hotel Mar.", "contains 'hotel'"),
    ({"notContains": ["hotel"]}, "Sleep on board.", None),
    ({"notContains": ["straße"]}, "Die STRASSE.", "contains 'straße'"),
    ({"matches": r"\bMay\b.*\.$"}, "Go. May you come home.", None),
    ({"matches": "^[a-z ]+$", "ignoreCase": False}, "Go.", "does not match the pattern"),
    ({"notMatches": r"\d{3}"}, "Room 412.", "matches the pattern: '412'"),
    ({"notMatches": r"\d{3}"}, "Room 4.", None),
    ({"jsonSchema": SCHEMA}, '{"city": "aa"}', None),
    ({"jsonSchema": SCHEMA}, '{"city": 3}', "breaks the schema's rule 'type'"),
    ({"jsonSchema": SCHEMA}, "[1]", "breaks the schema's rule 'type'"),
    ({"jsonSchema": SCHEMA}, '{"city": "aa"', "is not JSON"),
    ({"jsonSchema": SCHEMA}, "[" * 100_000, "is not JSON"),
    ({"maxWords": 3}, "one two three", None),
    ({"maxWords": 3}, "one two three four", "has 4 words"),
    ({"maxTokens": 5}, "five", None),
    ({"maxTokens": 4}, "five", "has 5 tokens"),
]


@pytest.mark.parametrize(("kind", "text", "expected"), TABLE)
def test_an_answer(kind: dict[str, Any], text: str, expected: str | None) -> None:
    assert fault(check(**kind), written(text)) == expected


def test_a_length_that_was_not_seen_does_not_pass() -> None:
    cut = written("one two", stopped=False)
    assert fault(check(maxWords=9), cut) == "did not end by itself"
    assert fault(check(contains=["one"]), cut) is None


@pytest.mark.parametrize("kind", [{"matches": "(a+)+$"}, {"notMatches": "(a|a)+$"}, {"jsonSchema": SCHEMA}])
def test_a_pattern_that_backtracks_without_end_does_not_pass(kind: dict[str, Any]) -> None:
    text = "a" * 5000 + "!"
    answer = written(json.dumps({"city": text}) if "jsonSchema" in kind else text)
    started = time.monotonic()
    found = fault(check(**kind), answer)
    assert found is not None
    # Without a bound it would take longer than the universe is old.
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"matches": "("}, "matches is not a regular expression"),
        ({"notMatches": "a{99999999999999999999}"}, "notMatches is not a regular expression"),
        ({"jsonSchema": "{,"}, "jsonSchema is not a JSON schema"),
        ({"jsonSchema": "[]"}, "jsonSchema is not a JSON schema"),
        ({"jsonSchema": '{"type": "nothing"}'}, "jsonSchema is not a JSON schema"),
    ],
)
def test_what_is_no_check_is_refused_with_its_name(kind: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=f"evaluation.checks, one: {message}") as caught:
        require_checks([check(maxWords=3), check(**kind)])
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert "correct" in caught.value.advice
