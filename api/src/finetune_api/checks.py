"""Behaviour checks: what every answer must do, whatever its words. Run by Evaluate on generated answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, Int, Rule
from finetune_api.fields import distinct, given
from finetune_api.judge import JUDGE_CHECK

MOST_CHECKS = 16
CHECK_NAME = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
NAME_LENGTH = 40  # sixteen of them, with their shares, fit into a termination message of 4,096 bytes
CheckName = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=CHECK_NAME)]
Phrases = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(min_length=1, max_length=32),
    AfterValidator(distinct),
]
Pattern = Annotated[str, Field(min_length=1, max_length=512)]
Prompt = Annotated[str, Field(min_length=1, max_length=4096)]
KINDS = ("contains", "notContains", "matches", "notMatches", "jsonSchema", "maxWords", "maxTokens")
_SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}


def _kinds(check: BehaviourCheck) -> int:
    texts = (check.contains, check.not_contains, check.matches, check.not_matches, check.json_schema)
    return given(*texts, check.max_words, check.max_tokens)


class BehaviourCheck(ApiModel):
    """One thing that an answer must do. Exactly one of the seven kinds is given."""

    name: CheckName = Field(description="Name, by which a gate rule and the report call it.")
    contains: Phrases | None = Field(
        default=None, description="All of these stand in the answer.", json_schema_extra=_SET
    )
    not_contains: Phrases | None = Field(
        default=None, description="None of these stands in the answer.", json_schema_extra=_SET
    )
    matches: Pattern | None = Field(
        default=None, description="Regular expression (Python's) that is found somewhere in the answer."
    )
    not_matches: Pattern | None = Field(
        default=None, description="Regular expression that is found nowhere in the answer."
    )
    json_schema: Annotated[str, Field(min_length=2, max_length=4096)] | None = Field(
        default=None, description="JSON schema, as a text. The whole answer is JSON that fits it."
    )
    max_words: Int | None = Field(default=None, ge=1, le=2000, description="Words of the answer at most.")
    max_tokens: Int | None = Field(
        default=None, ge=1, le=2047, description="Tokens of the answer at most; below `answerTokens`."
    )
    ignore_case: bool = Field(
        default=True, description="Whether contains, notContains, matches and notMatches take hotel and Hotel alike."
    )
    prompts: list[Prompt] = Field(
        default=[],
        max_length=32,
        description="What is asked, each by itself, as a user's only message. Absent: the questions of the held-out "
        "examples, `checkAnswers` of them at most.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    rules: ClassVar = (
        Rule(
            f"[{', '.join(f'has(self.{kind})' for kind in KINDS)}].filter(x, x).size() == 1",
            f"give exactly one of {', '.join(KINDS[:-1])} and {KINDS[-1]}",
            lambda check: _kinds(check) == 1,
        ),
        Rule(
            f"self.name != '{JUDGE_CHECK}'",
            f"a check cannot be called {JUDGE_CHECK}: that is evaluation.judge in a gate rule; give it another name",
            lambda check: check.name != JUDGE_CHECK,
        ),
    )
