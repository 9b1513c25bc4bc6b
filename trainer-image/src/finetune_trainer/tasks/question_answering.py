"""QuestionAnswering: the passage of a text that answers a question (extractive, as in SQuAD)."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModelForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.tasks import Metric, Task
from finetune_trainer.data.problems import Fault, Findings
from finetune_trainer.evaluation.squad import answer_f1, exact_match
from finetune_trainer.tasks import windows
from finetune_trainer.tasks.kind import (
    Answer,
    EncodingError,
    ExampleFormat,
    Facts,
    HeldOut,
    Measured,
    OneByOne,
    Question,
    Tokens,
    TrainerParts,
    no_interruption,
)
from finetune_trainer.tasks.question_answering_data import check_line, expected_answers, normalise_line
from finetune_trainer.tasks.question_answering_spans import (
    Passage,
    Read,
    answer_tokens,
    best_passage,
    keep_segments,
    no_answer_position,
    read,
    window_of,
)

NO_ANSWER = "(no answer)"
LABELS = ("start_positions", "end_positions")  # of a batch, as transformers calls them


class AnswerFormat(OneByOne):
    """Its ExampleFormat.

    Columns beside `input_ids` (and `token_type_ids` where the model has them): `answer`, the first and the last token
    of the answer, both the start of the sequence where there is none; `context`, the tokens [first, after) of the
    context, so that a long one can be cut to the window that holds the answer.
    """

    windowed: ClassVar[bool] = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str]) -> None:
        self.special = special
        self._tokenizer = tokenizer
        self._fixed = False
        self._answered = self._unanswered = self._widened = 0

    def check(self, row: Mapping[str, Any]) -> list[Fault]:
        return check_line(row)

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return normalise_line(row)

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        """Of several answers the first is learned. An answer that begins or ends within a token is widened to it."""
        layout = windows.lay_out(self._tokenizer, normal["context"], normal["question"])
        place = answer_place(layout, normal)
        if place is None and expected_answers(normal):
            text = "the model's tokenizer leaves nothing of the answer; remove the line, or use another model"
            raise EncodingError("no_tokens", text, "answers")
        if not self._fixed:
            self._count(layout, normal, place)
        none = no_answer_position(layout.input_ids, self._tokenizer)
        first = layout.body[0]
        columns = {
            "input_ids": array("i", layout.input_ids),
            "answer": array("i", (none, none) if place is None else (first + place[0], first + place[1] - 1)),
            "context": array("i", layout.body),
        }
        return columns | ({"token_type_ids": array("i", layout.type_ids)} if layout.type_ids else {})

    def _count(self, layout: windows.Layout, normal: Mapping[str, Any], place: windows.Span | None) -> None:
        if place is None:
            self._unanswered += 1
            return
        self._answered += 1
        learned = normal["context"][layout.offsets[place[0]][0] : layout.offsets[place[1] - 1][1]]
        self._widened += learned != expected_answers(normal)[0]

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """The question and the window of the context that holds the answer; of one without answer the first window.
        None when the question or the answer is too long for that."""
        if len(tokens["input_ids"]) <= max_length:
            return tokens
        answer, length, room = _sizes(tokens, max_length)
        if room < windows.LEAST_ROOM or (answer and answer[1] - answer[0] > room):
            return None
        return self._window(tokens, _part(answer, length, room), answer)

    def beside(self, tokens: Tokens, max_length: int) -> list[Tokens]:
        """The other windows, with all of which the model will be asked. One that holds the whole answer has it, and one
        that holds nothing of it has none; one with a part of it would teach neither."""
        if self.cut(tokens, max_length) in (None, tokens):
            return []
        answer, length, room = _sizes(tokens, max_length)
        taken, found = _part(answer, length, room), windows.parts(length, room)
        held = [answer if answer and _holds(part, answer) else None for part in found]
        return [
            self._window(tokens, part, inside)
            for part, inside in zip(found, held, strict=True)
            if part != taken and (inside or not answer or not _touch(part, answer))
        ]

    def _window(self, tokens: Tokens, part: windows.Span, answer: windows.Span | None) -> Tokens:
        """A part of the context, with the answer in it (both as places in the context) or with none."""
        begin, after = tokens["context"]
        none = no_answer_position(tokens["input_ids"], self._tokenizer)
        place = (none, none) if answer is None else (begin + answer[0] - part[0], begin + answer[1] - 1 - part[0])
        shorter = {
            name: array("i", windows.sliced(tokens[name], (begin, after), part))
            for name in ("input_ids", "token_type_ids")
            if name in tokens
        }
        return {**shorter, "answer": array("i", place), "context": array("i", (begin, begin + part[1] - part[0]))}

    def learned(self, tokens: Tokens) -> int:
        """The answer is one thing that is learned."""
        return 1

    def end_of_training_data(self, findings: Findings) -> None:
        self._fixed = True
        findings.add("train", 0, self._data_faults())

    def _data_faults(self) -> Iterator[Fault]:
        if self._unanswered and not self._answered:
            text = "no question of the training data has an answer, so there is nothing to find; add answers"
            yield Fault("no_answer", text)
        if self._widened:
            text = (
                f"{self._widened} answer(s) begin or end within a token of the model; the whole token is learned and "
                "answered"
            )
            yield Fault("answer_boundary", text, severity="warning")

    @property
    def facts(self) -> Facts:
        return Facts()


def _sizes(tokens: Tokens, max_length: int) -> tuple[windows.Span | None, int, int]:
    """Tokens of the context that are the answer, of the whole context, and of it that fit beside the question."""
    begin, after = tokens["context"]
    first, last = tokens["answer"]
    answer = (first - begin, last - begin + 1) if first >= begin else None
    return answer, after - begin, max_length - (len(tokens["input_ids"]) - (after - begin))


def _holds(part: windows.Span, answer: windows.Span) -> bool:
    return part[0] <= answer[0] and answer[1] <= part[1]


def _touch(part: windows.Span, answer: windows.Span) -> bool:
    return part[0] < answer[1] and answer[0] < part[1]


def _part(answer: windows.Span | None, length: int, room: int) -> windows.Span:
    """The window that the model will also be asked with; where none of them holds the whole answer, one around it."""
    found = windows.parts(length, room)
    if answer is None:
        return found[0]
    best = window_of(answer, found, length)
    if best is not None:
        return found[best]
    start = min(max(0, (answer[0] + answer[1] - room) // 2), length - room)
    return start, start + room


def answer_place(layout: windows.Layout, normal: Mapping[str, Any]) -> windows.Span | None:
    """Tokens [first, after) of the context that are the first expected answer; None when there is none."""
    if not expected_answers(normal):
        return None
    start = int(normal["answers"]["answer_start"][0])
    return answer_tokens(layout.offsets, start, start + len(expected_answers(normal)[0]))


class QuestionAnswering:
    """Its TaskKind."""

    task = Task.QUESTION_ANSWERING
    auto_model = AutoModelForQuestionAnswering
    peft_type = "QUESTION_ANS"
    needs_reference = False

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        windows.require_encoder(config, MODEL_FOR_QUESTION_ANSWERING_MAPPING, source, "find answers in a text")

    def model_options(self, facts: Facts) -> dict[str, Any]:
        return {"num_labels": 2}  # a score as the first and as the last token, whatever the base was made for

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> ExampleFormat:
        return AnswerFormat(tokenizer, special)

    def trainer(self, parts: TrainerParts) -> Any:
        from finetune_trainer.tasks.encoder_trainer import encoder_trainer  # a server trains nothing

        keep_segments(parts.model)
        return encoder_trainer(parts, collate, LABELS, mean_loss)

    def measure(
        self,
        model: PreTrainedModel,
        held_out: HeldOut,
        *,
        reference: Measured | None = None,
        between_batches: Callable[[], None] = no_interruption,
    ) -> Measured:
        """Loss of the window that holds the answer; exact match and F1 of the best passage of all windows. `details`
        have them apart for questions with and without an answer."""
        examples = held_out.examples
        asked = [(example["question"], example["context"]) for example in examples]
        found = read(model, held_out.tokenizer, asked, between_batches)
        losses = [_loss(one, example) for one, example in zip(found, examples, strict=True)]
        answers = [_passage(one, context).text or "" for one, (_, context) in zip(found, asked, strict=True)]
        pairs = list(zip(answers, map(expected_answers, examples), strict=True))
        apart = {
            "answerable": [pair for pair in pairs if pair[1]],
            "unanswerable": [pair for pair in pairs if not pair[1]],
        }
        return Measured(
            np.array([loss or 0.0 for loss in losses]),
            np.array([loss is not None for loss in losses], np.int64),
            _figures(pairs),
            details={
                name: {"examples": len(part), **{metric.value: value for metric, value in _figures(part).items()}}
                for name, part in apart.items()
                if part
            },
        )

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        return {}

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        for row, example in zip(held_out.rows, held_out.examples, strict=True):
            question, context = example["question"], example["context"]
            expected = expected_answers(example)
            parts = {"question": (0, len(question)), "text": (len(question) + 2, len(question) + 2 + len(context))}
            yield Question(f"{question}\n\n{context}", expected[0] if expected else NO_ANSWER, {**row, **parts})

    def pose(self, prompt: str, held_out: HeldOut) -> Question | None:
        """It writes no text."""
        return None

    def answer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        *,
        facts: Facts,
        between_batches: Callable[[], None] = no_interruption,
    ) -> list[Answer]:
        asked = [(q.prompt[slice(*q.row["question"])], q.prompt[slice(*q.row["text"])]) for q in questions]
        found = read(model, tokenizer, asked, between_batches)
        return [
            Answer(_passage(one, context).text or NO_ANSWER) for one, (_, context) in zip(found, asked, strict=True)
        ]


def _figures(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[Metric, float]:
    """Of (answer, expected answers)."""
    return {
        Metric.EXACT_MATCH: float(np.mean([exact_match(*pair) for pair in pairs])),
        Metric.ANSWER_F1: float(np.mean([answer_f1(*pair) for pair in pairs])),
    }


def _passage(found: Read, context: str) -> Passage:
    return best_passage(context, found.layout.offsets, found.scored)


def _loss(found: Read, example: Mapping[str, Any]) -> float | None:
    """Nats; None when no window holds the whole answer."""
    place = answer_place(found.layout, example)
    if place is None:
        return found.scored[0].loss(None)
    index = window_of(place, [scored.part for scored in found.scored], len(found.layout.offsets))
    return None if index is None else found.scored[index].loss(place)


def collate(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """A batch for training: [rows, longest], and [rows] for the answers."""
    batch = {
        "input_ids": windows.padded([row["input_ids"] for row in rows]),
        "attention_mask": windows.padded([[1] * len(row["input_ids"]) for row in rows]),
        "start_positions": torch.tensor([row["answer"][0] for row in rows]),
        "end_positions": torch.tensor([row["answer"][1] for row in rows]),
    }
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = windows.padded([row["token_type_ids"] for row in rows])
    return batch


def mean_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """(mean loss of the batch in nats, the model's output).

    Not the model's own loss: that takes the padding behind shorter rows for possible answers, so that a row's loss
    depends on the rows beside it.
    """
    output = model(**{name: value for name, value in batch.items() if name not in LABELS})
    padding = batch["attention_mask"] == 0
    losses = [
        cross_entropy(scores.float().masked_fill(padding, -torch.inf), batch[label])
        for scores, label in zip((output.start_logits, output.end_logits), LABELS, strict=True)
    ]
    return torch.stack(losses).mean(), output
