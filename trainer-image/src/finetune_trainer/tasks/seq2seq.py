"""Seq2Seq: an encoder reads the source, a decoder writes the target. Translation, summary, correction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from finetune_api.conditions import FailureReason
from finetune_api.tasks import Metric, Task
from finetune_trainer.endings import end_ids
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation.questions import context_length
from finetune_trainer.evaluation.statistics import perplexity
from finetune_trainer.tasks.kind import (
    Answer,
    Facts,
    HeldOut,
    Measured,
    Question,
    TrainerParts,
    no_interruption,
)
from finetune_trainer.tasks.seq2seq_data import Seq2SeqFormat, source_ids
from finetune_trainer.tasks.seq2seq_scoring import batch_of, score
from finetune_trainer.tasks.seq2seq_steps import write

GENERATED_EXAMPLES = 200  # held-out examples that are written out for BLEU, chrF and ROUGE: the first ones
ANSWER_TOKENS = 256  # of a written answer, at most
ANSWER_BATCH = 16  # sources answered at once


class Seq2Seq:
    """TaskKind of encoder-decoder models."""

    task = Task.SEQ2SEQ
    auto_model = AutoModelForSeq2SeqLM
    peft_type = "SEQ_2_SEQ_LM"
    needs_reference = False

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        if not getattr(config, "is_encoder_decoder", False):
            raise _unfit(
                f"{source} has no encoder and decoder, it is a {config.model_type} model",
                "use an encoder-decoder such as T5, BART, Marian or mBART for Seq2Seq; to train this model on the "
                "same data, set spec.task to Completion and dataset.columns to {prompt: source, completion: target}",
            )
        if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            raise _unfit(
                f"{source} is a {config.model_type} model, which does not turn text into text",
                "use a text model such as T5, BART, Marian or mBART",
            )
        if tokenizer.eos_token_id is None:
            raise _unfit(
                f"{source}: the tokenizer has no end-of-sequence token, so nothing would stop an answer",
                "set eos_token in the model's tokenizer_config.json",
            )
        _require_languages(tokenizer, source)

    def model_options(self, facts: Facts) -> dict[str, Any]:
        return {}

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> Seq2SeqFormat:
        return Seq2SeqFormat(tokenizer, special)

    def trainer(self, parts: TrainerParts) -> Any:
        from finetune_trainer.tasks.seq2seq_trainer import Seq2SeqTrainer  # a server needs no trainer

        return Seq2SeqTrainer(
            model=parts.model,
            args=TrainingArguments(**parts.arguments),
            train_dataset=parts.train,
            eval_dataset=parts.validation,
            processing_class=parts.tokenizer,
            data_collator=batch_of,
            smoothing=parts.resolved.label_smoothing or 0.0,
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
        return Measured(found.loss, found.tokens, metrics)

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        """BLEU, chrF and ROUGE-L of what the model writes for the first GENERATED_EXAMPLES sources."""
        from finetune_trainer.evaluation.text_overlap import text_overlap  # a server needs no metrics

        questions = [question for question, _ in zip(self.ask(held_out), range(GENERATED_EXAMPLES), strict=False)]
        answers = self.answer(
            model, held_out.tokenizer, questions, facts=held_out.facts, between_batches=between_batches
        )
        return text_overlap([answer.text for answer in answers], [question.expected for question in questions])

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        for row, example in zip(held_out.rows, held_out.examples, strict=True):
            yield Question(example["source"], example["target"], row, expected_tokens=len(row["labels"]))

    def pose(self, prompt: str, held_out: HeldOut) -> Question | None:
        """As the source."""
        ids = source_ids(held_out.tokenizer, prompt)
        fits = len(ids) <= held_out.context
        return Question(prompt, "", {"input_ids": ids}, expected_tokens=held_out.answer_tokens // 2, fits=fits)

    def answer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        *,
        facts: Facts,
        between_batches: Callable[[], None] = no_interruption,
    ) -> list[Answer]:
        """Greedy answers, each at most about twice as long as the longest expected one of its batch: one that is
        longer by then is wrong anyway, and a base model that never ends would take hours."""
        ends = end_ids(model.generation_config, tokenizer)
        most = min(ANSWER_TOKENS, context_length(model.config, tokenizer) - 2)  # the first tokens take places as well
        order = sorted(range(len(questions)), key=lambda at: -questions[at].expected_tokens)
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), ANSWER_BATCH):
            between_batches()
            batch = order[start : start + ANSWER_BATCH]
            limit = min(most, 2 * questions[batch[0]].expected_tokens + 16)
            written = write(model, tokenizer, [questions[at].row["input_ids"] for at in batch], limit)
            answers |= {at: _read(ids, ends, tokenizer) for at, ids in zip(batch, written, strict=True)}
        return [answers[at] for at in range(len(questions))]


def _read(ids: list[int], ends: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    stopped = bool(ids) and ids[-1] in ends
    kept = ids[:-1] if stopped else ids
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    return Answer(text, stopped, len(kept), len(set(kept)))


def _require_languages(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """A multilingual tokenizer puts the language before or after a text, and must know which."""
    if hasattr(tokenizer, "lang_code_to_id") or hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        missing = [name for name in ("src_lang", "tgt_lang") if not getattr(tokenizer, name, None)]
        if missing:
            raise _unfit(
                f"{source} knows many languages, and its tokenizer does not say which: {' and '.join(missing)} not set",
                "put src_lang and tgt_lang, as the model names its languages, into its tokenizer_config.json",
            )


def _unfit(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.MODEL_INVALID)
