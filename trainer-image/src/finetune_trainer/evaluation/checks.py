"""Behaviour checks on answers: pure functions of the check and what a model has written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import regex  # type: ignore[import-untyped]

from finetune_api.checks import BehaviourCheck
from finetune_api.conditions import FailureReason
from finetune_trainer.data.schemas import MATCH_SECONDS, SchemaUnusableError, broken_rule, require_schema
from finetune_trainer.errors import UserInputError
from finetune_trainer.tasks.kind import Answer


def require_checks(checks: Sequence[BehaviourCheck]) -> None:
    """Raise UserInputError (SpecInvalid) for a pattern or a schema that is none: the API server cannot tell."""
    for check in checks:
        for field, pattern in (("matches", check.matches), ("notMatches", check.not_matches)):
            try:
                _compiled(pattern or "", check.ignore_case)
            except (regex.error, RecursionError, OverflowError) as error:
                raise _invalid(check, field, f"not a regular expression: {error}") from error
        if check.json_schema is not None:
            _require_json_schema(check, check.json_schema)


def _require_json_schema(check: BehaviourCheck, text: str) -> None:
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("a schema is a JSON object")
        require_schema(found)
    except (ValueError, RecursionError) as error:
        raise _invalid(check, "jsonSchema", f"not a JSON schema: {error}") from error


def _invalid(check: BehaviourCheck, field: str, what: str) -> UserInputError:
    return UserInputError(
        f"evaluation.checks, {check.name}: {field} is {what}",
        advice=f"correct {field} of the check {check.name}",
        reason=FailureReason.SPEC_INVALID,
    )


def fault(check: BehaviourCheck, answer: Answer) -> str | None:
    """Why the answer does not pass; None when it does."""
    if check.contains is not None or check.not_contains is not None:
        return _phrases(check, answer.text)
    if check.matches is not None or check.not_matches is not None:
        return _pattern(check, answer.text)
    if check.json_schema is not None:
        return _json(check.json_schema, answer.text)
    return _length(check, answer)


def _phrases(check: BehaviourCheck, text: str) -> str | None:
    def folded(words: str) -> str:
        return words.casefold() if check.ignore_case else words

    found = folded(text)
    missing = [phrase for phrase in check.contains or () if folded(phrase) not in found]
    if missing:
        return f"does not contain {missing[0]!r}"
    present = [phrase for phrase in check.not_contains or () if folded(phrase) in found]
    return f"contains {present[0]!r}" if present else None


def _pattern(check: BehaviourCheck, text: str) -> str | None:
    pattern = check.matches if check.matches is not None else check.not_matches or ""
    try:
        found = _compiled(pattern, check.ignore_case).search(text, timeout=MATCH_SECONDS)
    except TimeoutError:
        return f"the pattern did not come to an end within {MATCH_SECONDS} seconds"
    if check.matches is not None:
        return None if found else "does not match the pattern"
    return f"matches the pattern: {found[0][:80]!r}" if found else None


@lru_cache(maxsize=64)
def _compiled(pattern: str, ignore_case: bool) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


def _json(schema: str, text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "is not JSON"
    try:
        broken = broken_rule(json.loads(schema), found)
    except SchemaUnusableError as error:
        return f"could not be compared with the schema: {error}"
    return f"breaks the schema's rule {broken!r}" if broken else None


def _length(check: BehaviourCheck, answer: Answer) -> str | None:
    """An answer that was cut off is longer than what is seen of it, and nobody knows how long."""
    words = len(answer.text.split())
    if check.max_words is not None and words > check.max_words:
        return f"has {words} words"
    if check.max_tokens is not None and answer.length > check.max_tokens:
        return f"has {answer.length} tokens"
    return "did not end by itself" if answer.stopped is False else None
