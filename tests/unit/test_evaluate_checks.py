"""Behaviour checks: what an answer must do, and what of a check cannot be run."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from finetune_api.checks import BehaviourCheck
from finetune_api.conditions import FailureReason
from finetune_trainer.data.schemas import broken_rule
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


SLOW = "^(a|aa)+$"


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {SLOW: {"type": "string"}}},
        {"patternProperties": {SLOW: {}}, "additionalProperties": False},
        {"additionalProperties": {"patternProperties": {SLOW: {}}}},
        # A part that refers to the whole is read by the same rules as the whole.
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "properties": {"more": {"$ref": "#"}},
            "patternProperties": {SLOW: {}},
        },
        {"propertyNames": {"pattern": SLOW}},
    ],
    ids=["names", "others", "inner", "itself", "propertyNames"],
)
def test_a_pattern_for_names_comes_to_an_end(schema: dict[str, Any]) -> None:
    name = "a" * 5000 + "!"
    started = time.monotonic()
    found = fault(
        check(jsonSchema=json.dumps(schema)), written(json.dumps({"more": {name: {name: 1}}, name: {name: 1}}))
    )
    assert found is not None
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("schema", "value", "broken"),
    [
        ({"patternProperties": {"^n": {"type": "integer"}}}, {"n1": 1, "x": "a"}, None),
        ({"patternProperties": {"^n": {"type": "integer"}}}, {"n1": "a"}, "type"),
        ({"patternProperties": {"^n": False}}, {"n1": 1}, "false"),
        (
            {"properties": {"a": {}}, "patternProperties": {"^n": {}}, "additionalProperties": False},
            {"a": 1, "n": 1},
            None,
        ),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"a": 1, "b": 1}, "additionalProperties"),
        ({"additionalProperties": {"type": "string"}}, {"b": 1}, "type"),
        ({"additionalProperties": False}, [1], None),
        ({"unevaluatedProperties": False, "properties": {"a": {}}}, {"b": 1}, "unevaluatedProperties"),
        ({"properties": {"$schema": {"type": "string"}}}, {"$schema": 1}, "type"),
    ],
)
def test_names_are_judged_as_the_standard_has_it(schema: dict[str, Any], value: Any, broken: str | None) -> None:
    assert broken_rule(schema, value) == broken


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"a": {}}, "unevaluatedProperties": False},
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": SLOW}}},
        {"properties": {"a": {"pattern": "("}}},
        {"patternProperties": {"(": {}}},
    ],
)
def test_what_could_not_be_bounded_is_refused_before_the_training(schema: dict[str, Any]) -> None:
    with pytest.raises(UserInputError, match="one: jsonSchema is not a JSON schema"):
        require_checks([check(jsonSchema=json.dumps(schema))])


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
