"""Completion: a text after a text, of which the second is learned."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from finetune_api.tasks import Task
from finetune_trainer.data.completion import check_completion, normalise_completion
from finetune_trainer.evaluation.questions import question
from finetune_trainer.masking import mask_completions
from finetune_trainer.tasks.causal import Causal, CausalFormat
from finetune_trainer.tasks.kind import HeldOut, Question


class Completion(Causal):
    task = Task.COMPLETION

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> CausalFormat:
        return CausalFormat(
            special,
            check_completion,
            normalise_completion,
            lambda examples: mask_completions(tokenizer, [(each["prompt"], each["completion"]) for each in examples]),
        )

    def pose(self, prompt: str, held_out: HeldOut) -> Question | None:
        """As the text that the model goes on with."""
        example = {"prompt": prompt, "completion": ""}
        return question(example, held_out.tokenizer, held_out.context, held_out.answer_tokens)
