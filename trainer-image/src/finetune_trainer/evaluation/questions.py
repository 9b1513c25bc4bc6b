"""Held-out examples as questions: what a user would ask, and what the data answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune_api.evaluation import ANSWER_TOKENS
from finetune_trainer.messages import encode_rendered, prompt_ids, render
from finetune_trainer.tasks.kind import Question


@dataclass(frozen=True, slots=True)
class Questions:
    """`too_long`: questions that were passed over, since the context has no room for an answer after them."""

    asked: list[Question]
    too_long: int
    context: int
    answer_tokens: int = ANSWER_TOKENS

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        if not self.too_long:
            return []
        return [
            f"{self.too_long} held-out question(s) were not asked: they leave fewer than {self.answer_tokens} tokens "
            f"for an answer in the model's context of {self.context}"
        ]


def choose(questions: Iterable[Question], context: int, most: int, answer_tokens: int = ANSWER_TOKENS) -> Questions:
    """The first `most` questions that leave room for an answer."""
    asked: list[Question] = []
    too_long = 0
    for found in questions:
        if len(asked) >= most:
            break
        if found.fits:
            asked.append(found)
        else:
            too_long += 1
    return Questions(asked, too_long, context, answer_tokens)


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model of this configuration takes, prompt and answer together."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


def question(
    example: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    answer_tokens: int = ANSWER_TOKENS,
) -> Question | None:
    """The question in a chat or completion example; None when nothing can be asked (no user turn before an answer).

    It fits when it leaves room for an answer of `answer_tokens` in a context of `context` tokens.
    """
    if "messages" not in example:
        tokens = prompt_ids(tokenizer, example["prompt"])
        # There are none for an empty prompt without a start token.
        if not tokens:
            return None
        return _question(example["prompt"], example["completion"], tokens, tokenizer, context, answer_tokens)
    messages: list[dict[str, Any]] = example["messages"]
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    asked = messages[:last]
    if not any(message["role"] == "user" for message in asked):
        return None
    tokens = encode_rendered(tokenizer, render(tokenizer, asked, tools=example.get("tools"), prompt=True))
    prompt = next(_text(message) for message in reversed(asked) if message["role"] == "user")
    return _question(prompt, _text(messages[last]), tokens, tokenizer, context, answer_tokens)


def asked_text(example: Mapping[str, Any]) -> str:
    """What is asked in a chat or completion example; empty when nothing is."""
    if "messages" not in example:
        return str(example["prompt"])
    return next((_text(message) for message in reversed(example["messages"]) if message["role"] == "user"), "")


def _question(
    prompt: str,
    expected: str,
    tokens: list[int],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    answer_tokens: int,
) -> Question:
    return Question(
        prompt,
        expected,
        {"input_ids": tokens},
        expected_tokens=len(encode_rendered(tokenizer, expected)),
        fits=len(tokens) + answer_tokens <= context,
        most=answer_tokens,
    )


def _text(message: Mapping[str, Any]) -> str:
    """What a person would read: the content, or the calls of an answer that has none."""
    return message.get("content") or json.dumps(message.get("tool_calls") or "", ensure_ascii=False)
