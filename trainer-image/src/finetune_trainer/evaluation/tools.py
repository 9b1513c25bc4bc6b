"""Whether a model calls the right tools: what it writes is read as the server reads it, and compared with the data.

Each held-out conversation whose last answer is a tool call is one question. All calls of an answer count together,
in any order: of three shares the first says that exactly the right functions were called, the second that every
call's arguments fit the schema of its tool, the third that functions and arguments are those of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.tasks import Metric
from finetune_trainer.data.schemas import SchemaUnusableError, broken_rule
from finetune_trainer.evaluation.answers import BATCH, greedy
from finetune_trainer.messages import encode_rendered, render
from finetune_trainer.tasks.kind import HeldOut
from finetune_trainer.tool_calls import call_form, decode, hidden_tokens, read_calls
from finetune_trainer.tool_forms import Call

MOST_QUESTIONS = 50  # an answer takes as long as hundreds of tokens that are only measured
ROOM = 16  # tokens that an answer may be longer than the data's, so that a wrong one is still whole


@dataclass(frozen=True, slots=True)
class ToolQuestion:
    """A conversation up to where the assistant calls, in tokens, and what is to be called."""

    prompt: list[int]
    tools: Sequence[Mapping[str, Any]]
    expected: list[Call]
    expected_tokens: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one answer. `valid` is None when no schema says what is valid."""

    name: bool
    valid: bool | None
    exact: bool


def tool_scores(
    model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = lambda: None
) -> dict[Metric, float]:
    """The three shares, 0 to 1, of the first MOST_QUESTIONS held-out calls that fit into the context.

    Empty when the data calls no tool, or the template writes calls in a form that nothing can read.
    """
    questions = list(islice(tool_questions(held_out), MOST_QUESTIONS))
    form = call_form(held_out.tokenizer) if questions else None
    if form is None:
        return {}
    hidden, end = hidden_tokens(held_out.tokenizer, form), str(held_out.tokenizer.eos_token or "")
    verdicts = []
    for start in range(0, len(questions), BATCH):
        between_batches()
        batch = questions[start : start + BATCH]
        most = max(question.expected_tokens for question in batch) + ROOM
        written = greedy(model, held_out.tokenizer, [question.prompt for question in batch], most)
        for question, answer in zip(batch, written, strict=True):
            text = decode(held_out.tokenizer, answer.tokens, hidden)
            calls = read_calls(form, text, question.tools, ended=answer.ended, end=end)
            verdicts.append(judge(calls, question.expected, question.tools))
    return _shares(verdicts)


def tool_questions(held_out: HeldOut) -> Iterator[ToolQuestion]:
    """The held-out examples of which the last answer calls tools."""
    for example in held_out.examples:
        messages = example["messages"]
        last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        called = messages[last].get("tool_calls")
        if not called or not any(message["role"] == "user" for message in messages[:last]):
            continue
        tools = example.get("tools") or []
        prompt = _ids(held_out.tokenizer, messages[:last], tools, prompt=True)
        whole = _ids(held_out.tokenizer, messages[: last + 1], tools, prompt=False)
        expected_tokens = max(1, len(whole) - len(prompt))
        if len(prompt) + expected_tokens + ROOM <= held_out.context:
            calls = [Call(one["function"]["name"], one["function"]["arguments"]) for one in called]
            yield ToolQuestion(prompt, tools, calls, expected_tokens)


def _ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    *,
    prompt: bool,
) -> list[int]:
    return encode_rendered(tokenizer, render(tokenizer, messages, tools=tools or None, prompt=prompt))


def judge(calls: Sequence[Call], expected: Sequence[Call], tools: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compare the calls of an answer with those of the data. An answer without a call is wrong in everything."""
    return Verdict(
        name=sorted(call.name for call in calls) == sorted(call.name for call in expected),
        valid=_valid(calls, tools),
        exact=_sorted(calls) == _sorted(expected),
    )


def _sorted(calls: Sequence[Call]) -> list[tuple[str, str]]:
    return sorted((call.name, canonical(call.arguments)) for call in calls)


def canonical(value: Any) -> str:
    """Equal JSON values give equal texts: the order of keys says nothing, and 3.0 is 3."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _valid(calls: Sequence[Call], tools: Sequence[Mapping[str, Any]]) -> bool | None:
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    if not schemas:
        return None
    try:
        return bool(calls) and all(
            call.name in schemas and broken_rule(schemas[call.name], call.arguments) is None for call in calls
        )
    except SchemaUnusableError:
        return None


def _shares(verdicts: Sequence[Verdict]) -> dict[Metric, float]:
    judged = [verdict.valid for verdict in verdicts if verdict.valid is not None]
    shares = {
        Metric.TOOL_NAME: sum(verdict.name for verdict in verdicts) / len(verdicts),
        Metric.TOOL_EXACT: sum(verdict.exact for verdict in verdicts) / len(verdicts),
    }
    return {**shares, Metric.TOOL_VALID: sum(judged) / len(judged)} if judged else shares
