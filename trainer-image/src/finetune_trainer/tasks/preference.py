"""Preference: of two answers to the same conversation, the better one becomes more likely (DPO)."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason
from finetune_api.tasks import Task
from finetune_trainer.data.problems import EncodingError, Fault, Findings
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation.questions import question
from finetune_trainer.masking import IGNORED, ChatMasker
from finetune_trainer.messages import TemplateAbilities, template_abilities
from finetune_trainer.tasks.causal import Causal
from finetune_trainer.tasks.kind import (
    Facts,
    HeldOut,
    Measured,
    OneByOne,
    Question,
    Tokens,
    TrainerParts,
    no_interruption,
)
from finetune_trainer.tasks.preference_data import check_preference, conversation, normalise_preference
from finetune_trainer.tasks.preference_scoring import log_probabilities, preferences


@dataclass(frozen=True, slots=True)
class PreferenceFormat(OneByOne):
    """Columns: `prompt_ids`, `chosen_ids`, `rejected_ids` as TRL takes them, and `input_ids`, the longer of the two
    conversations, by which an example's length is measured."""

    windowed: ClassVar[bool] = False
    special: re.Pattern[str]
    abilities: TemplateAbilities
    masker: ChatMasker

    def check(self, row: Mapping[str, Any]) -> list[Fault]:
        return check_preference(row, self.abilities)

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return normalise_preference(row, self.abilities)

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        better, chosen = self._tokens(normal, "chosen")
        worse, rejected = self._tokens(normal, "rejected")
        # A token across the border belongs to the answer, and may be there in one of the two only.
        shared = _agreement(better, worse)
        if not shared:
            raise EncodingError("template", "the model's chat template writes what comes before the two answers anew")
        return _columns(better[:shared], better[shared:] + chosen, worse[shared:] + rejected)

    def _tokens(self, normal: Mapping[str, Any], answer: str) -> tuple[list[int], list[int]]:
        """Those before the answer, and those of it up to its end-of-turn token."""
        try:
            masked = self.masker.mask(conversation(normal, answer))
        except EncodingError as error:
            last = f"messages[{len(normal['messages'])}]"
            raise EncodingError(error.check, error.message, answer if error.where == last else error.where) from error
        learned = [place for place, label in enumerate(masked.labels) if label != IGNORED]
        return masked.input_ids[: learned[0]], masked.input_ids[learned[0] : learned[-1] + 1]

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """The first `max_length` tokens of both conversations; None when the answers do not differ in them."""
        if len(tokens["input_ids"]) <= max_length:
            return tokens
        room = max(0, max_length - len(tokens["prompt_ids"]))
        chosen, rejected = tokens["chosen_ids"][:room], tokens["rejected_ids"][:room]
        if chosen == rejected:
            return None
        return {**tokens, "input_ids": tokens["input_ids"][:max_length], "chosen_ids": chosen, "rejected_ids": rejected}

    def learned(self, tokens: Tokens) -> int:
        """Tokens of the longer answer."""
        return len(tokens["input_ids"]) - len(tokens["prompt_ids"])

    def end_of_training_data(self, findings: Findings) -> None:
        """Nothing is learned of the data beforehand."""

    @property
    def facts(self) -> Facts:
        return Facts()


class Preference(Causal):
    task = Task.PREFERENCE
    needs_reference = True

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        super().require(config, tokenizer, source)
        if not tokenizer.chat_template:
            raise UserInputError(
                f"{source} has no chat template, and preferences are learned of a model that chats",
                advice="use the model's instruct variant, which has a chat template",
                reason=FailureReason.MODEL_INVALID,
            )

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> PreferenceFormat:
        return PreferenceFormat(special, template_abilities(tokenizer), ChatMasker(tokenizer, stop_ids))

    def trainer(self, parts: TrainerParts) -> Any:
        """TRL's. The dataset is ready: it must not tokenise or cut anything."""
        from finetune_trainer.training.dpo import DpoTrainer, dpo_arguments  # a server needs no TRL

        return DpoTrainer(
            model=parts.model,
            args=dpo_arguments(parts.arguments, parts.resolved, parts.model),
            train_dataset=parts.train,
            eval_dataset=parts.validation,
            processing_class=parts.tokenizer,
            **parts.extra,
        )

    def measure(
        self,
        model: PreTrainedModel,
        held_out: HeldOut,
        *,
        reference: Measured | None = None,
        between_batches: Callable[[], None] = no_interruption,
    ) -> Measured:
        """`outputs` are the log-probabilities of both answers, shape [n, 2]. The base's loss is ln 2."""
        if held_out.resolved is None or held_out.resolved.beta is None:
            raise ValueError("what a preference is measured by, beta, is missing in the resolved values")
        outputs = log_probabilities(model, held_out.rows, between_batches=between_batches)
        base = outputs if reference is None else reference.outputs
        assert base is not None, "the reference was measured by this task"
        return preferences(outputs, base, held_out.resolved.beta)

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        """What is expected is the better answer."""
        for example in held_out.examples:
            chat = conversation(example, "chosen")
            if found := question(chat, held_out.tokenizer, held_out.context, held_out.answer_tokens):
                yield found


def _agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens in which two rows agree from their beginning."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _columns(prompt: list[int], chosen: list[int], rejected: list[int]) -> Tokens:
    if chosen == rejected:
        text = "the model's chat template writes both answers alike, so there is nothing to prefer; remove the line"
        raise EncodingError("equal_outputs", text, "rejected")
    longer = max(chosen, rejected, key=len)
    columns = {"input_ids": prompt + longer, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    return {name: array("i", ids) for name, ids in columns.items()}
