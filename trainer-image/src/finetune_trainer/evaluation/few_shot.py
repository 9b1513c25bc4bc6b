"""Held-out examples with training examples before them: what prompting alone would reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune_trainer.data.problems import EncodingError
from finetune_trainer.evaluation.scoring import Row
from finetune_trainer.masking import ChatMasker, MaskedTokens, mask_completion


def few_shot_row(
    shots: Sequence[Mapping[str, Any]],
    example: Mapping[str, Any],
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Row:
    """The held-out row with as many shots before it as fit into `max_tokens`; the row itself when none does.

    Only the example's own answer is measured, token for token the same as without shots.
    """
    trained = [label for label in row["labels"] if label != -100]
    for count in range(len(shots), 0, -1):
        try:
            tokens = _with_shots(shots[:count], example, tokenizer, stop_ids)
        except EncodingError:  # this template refuses such a conversation
            continue
        same = [label for label in tokens.labels if label != -100] == trained
        if same and len(tokens.input_ids) <= max_tokens:
            return {"input_ids": tokens.input_ids, "labels": tokens.labels}
    return row


def _with_shots(
    shots: Sequence[Mapping[str, Any]],
    example: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: frozenset[int],
) -> MaskedTokens:
    if "messages" not in example:
        before = "".join(f"{shot['prompt']}{shot['completion']}\n\n" for shot in shots)
        return mask_completion(tokenizer, before + example["prompt"], example["completion"])
    own = list(example["messages"])
    instructions = own[:1] if own[0]["role"] in ("system", "developer") else []
    # The example's own instructions stand first, once; those of the shots would contradict or repeat them.
    turns = [
        {**message, "weight": 0}
        for shot in shots
        for message in shot["messages"]
        if message["role"] not in ("system", "developer")
    ]
    conversation = {**example, "messages": [*instructions, *turns, *own[len(instructions) :]]}
    return ChatMasker(tokenizer, stop_ids).mask(conversation)
