"""Answers of a model to held-out prompts, the way the server would give them: the model's template, greedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.endings import end_ids, never_written
from finetune_trainer.tasks.kind import Answer, Question

BATCH = 8  # prompts answered at once


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens of an answer without the one that ended it, and whether there was one."""

    tokens: list[int]
    ended: bool


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    between_batches: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Greedy answers, each of at most its question's `most` tokens, in order."""
    answers: list[Answer] = []
    for start in range(0, len(questions), BATCH):
        between_batches()
        answers += _answer_batch(model, tokenizer, questions[start : start + BATCH])
    return answers


def _answer_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[Answer]:
    most = max(question.most for question in questions)
    written = greedy(model, tokenizer, [question.row["input_ids"] for question in questions], most)
    return [
        Answer(
            tokenizer.decode(each.tokens, skip_special_tokens=True).strip(),
            each.ended,
            len(each.tokens),
            len(set(each.tokens)),
        )
        for each in written
    ]


def greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], most: int
) -> list[Written]:
    """What the model writes after each prompt, at most `most` tokens, in one batch: the likeliest token each time."""
    table = model.get_output_embeddings().weight
    ends = end_ids(model.generation_config, tokenizer)
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    inputs = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, prompt in enumerate(prompts):  # padded on the left: generation goes on at the right
        inputs[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    plain = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        suppress_tokens=never_written(tokenizer, table.shape[0], ends) or None,
    )
    with torch.no_grad(), _settings(model, plain):
        output = model.generate(
            input_ids=inputs.to(table.device), attention_mask=mask.to(table.device), generation_config=plain
        )
    return [_until_end(row.tolist(), ends) for row in output[:, longest:].cpu()]


@contextmanager
def _settings(model: PreTrainedModel, plain: GenerationConfig) -> Iterator[None]:
    """While it generates the model has no settings but these: it would add its own to them (beams, rules against
    repetition), which the server has none of."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    inner.generation_config = plain
    try:
        yield
    finally:
        inner.generation_config = own


def _until_end(tokens: list[int], ends: frozenset[int]) -> Written:
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    return Written(tokens if end is None else tokens[:end], end is not None)
