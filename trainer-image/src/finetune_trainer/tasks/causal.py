"""What Chat and Completion share: a causal language model that learns to write the answer."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.conditions import FailureReason
from finetune_api.tasks import Metric
from finetune_trainer.data.problems import EncodingError, Fault, Findings
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation import answers
from finetune_trainer.evaluation.questions import question
from finetune_trainer.evaluation.scoring import request_tokens, score
from finetune_trainer.evaluation.statistics import perplexity
from finetune_trainer.masking import IGNORED, MaskedTokens
from finetune_trainer.tasks.kind import (
    Answer,
    Facts,
    HeldOut,
    Measured,
    Question,
    Tokens,
    TrainerParts,
    no_interruption,
)

# Architectures with these endings hold weights of another task, though a causal model could be built around them.
GENERATING = ("ForCausalLM", "LMHeadModel")
NOT_GENERATING = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True, slots=True)
class CausalFormat:
    """The ExampleFormat of both: `mask` says which tokens of each example are the answer."""

    windowed: ClassVar[bool] = False
    special: re.Pattern[str]
    check: Callable[[Mapping[str, Any]], list[Fault]]
    normalise: Callable[[Mapping[str, Any]], dict[str, Any]]
    mask: Callable[[Sequence[Mapping[str, Any]]], Sequence[MaskedTokens | EncodingError]]

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        (found,) = self.encode_all([normal])
        if isinstance(found, EncodingError):
            raise found
        return found

    def encode_all(self, normals: Sequence[Mapping[str, Any]]) -> Sequence[Tokens | EncodingError]:
        return [each if isinstance(each, EncodingError) else _columns(each) for each in self.mask(normals)]

    def settled(self, tokens: Tokens) -> Tokens:
        return tokens

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """The first `max_length` tokens."""
        if len(tokens["input_ids"]) <= max_length:
            return tokens
        shorter = {name: column[:max_length] for name, column in tokens.items()}
        return shorter if self.learned(shorter) else None

    def beside(self, tokens: Tokens, max_length: int) -> Sequence[Tokens]:
        return ()

    def learned(self, tokens: Tokens) -> int:
        return len(tokens["labels"]) - tokens["labels"].count(IGNORED)

    def end_of_training_data(self, findings: Findings) -> None:
        """Nothing is learned of the data beforehand."""

    @property
    def facts(self) -> Facts:
        return Facts()


def _columns(masked: MaskedTokens) -> Tokens:
    return {"input_ids": array("i", masked.input_ids), "labels": array("i", masked.labels)}


class Causal:
    """The verbs of TaskKind that do not depend on the form of the data."""

    auto_model = AutoModelForCausalLM
    peft_type = "CAUSAL_LM"
    needs_reference = False

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        if getattr(config, "is_encoder_decoder", False):  # some would load, with half of their weights
            raise UserInputError(
                f"{source} cannot be used as a causal language model: it has an encoder beside its decoder",
                advice="set spec.task to Seq2Seq, with source and target, or use a model such as Llama or Qwen",
                reason=FailureReason.MODEL_INVALID,
            )
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise UserInputError(
                f"{source}: the tokenizer has neither a pad_token nor an eos_token, so that shorter examples of a "
                "batch could not be filled up",
                advice="set eos_token in the model's tokenizer_config.json to the token that ends an answer",
                reason=FailureReason.MODEL_INVALID,
            )
        encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
        for name in config.architectures or []:
            if name.endswith(NOT_GENERATING) or (encoder and not name.endswith(GENERATING)):
                raise UserInputError(
                    f"{source} cannot be used as a causal language model: it is a {name}",
                    advice="use a language model that generates text, or the task that the model was made for",
                    reason=FailureReason.MODEL_INVALID,
                )

    def model_options(self, facts: Facts) -> dict[str, Any]:
        return {}

    def trainer(self, parts: TrainerParts) -> Any:
        """TRL's. The dataset is ready: it must not tokenise, cut, drop or shuffle anything."""
        from finetune_trainer.training.sft import SftTrainer, sft_arguments  # a server needs no TRL

        return SftTrainer(
            model=parts.model,
            args=sft_arguments(parts.arguments, parts.resolved),
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
        found = score(model, held_out.rows, between_batches=between_batches)
        metrics = {Metric.PERPLEXITY: perplexity(found.mean_loss), Metric.TOKEN_ACCURACY: found.token_accuracy}
        return Measured(found.loss, found.tokens, metrics, request_tokens=request_tokens(held_out.rows))

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        return {}

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        for example in held_out.examples:
            if found := question(example, held_out.tokenizer, held_out.context, held_out.answer_tokens):
                yield found

    def pose(self, prompt: str, held_out: HeldOut) -> Question | None:
        """As a user's only message."""
        example = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]}
        found = question(example, held_out.tokenizer, held_out.context, held_out.answer_tokens)
        return found and replace(found, expected="", expected_tokens=0)

    def answer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        *,
        facts: Facts,
        between_batches: Callable[[], None] = no_interruption,
    ) -> list[Answer]:
        return answers.answer(model, tokenizer, questions, between_batches=between_batches)
