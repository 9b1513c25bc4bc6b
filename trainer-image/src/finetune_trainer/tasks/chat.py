"""Chat: conversations, of which the assistant's words are learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason
from finetune_api.tasks import Metric, Task
from finetune_trainer.data.chat import check_chat, normalise_chat
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation.tools import tool_scores
from finetune_trainer.masking import ChatMasker
from finetune_trainer.messages import template_abilities
from finetune_trainer.tasks.causal import Causal, CausalFormat
from finetune_trainer.tasks.kind import HeldOut, no_interruption


class Chat(Causal):
    task = Task.CHAT

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        super().require(config, tokenizer, source)
        if not tokenizer.chat_template:
            raise UserInputError(
                f"{source} has no chat template",
                advice="use the model's instruct variant, which has a chat template, or set spec.task to Completion",
                reason=FailureReason.MODEL_INVALID,
            )

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> CausalFormat:
        abilities = template_abilities(tokenizer)
        return CausalFormat(
            special,
            lambda example: check_chat(example, abilities),
            lambda example: normalise_chat(example, abilities),
            ChatMasker(tokenizer, stop_ids).mask_all,
        )

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        return tool_scores(model, held_out, between_batches=between_batches)
