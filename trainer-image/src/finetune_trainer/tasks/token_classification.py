"""TokenClassification: names, places and the like are found in texts (named entity recognition)."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.tasks import Metric, Task
from finetune_trainer.data.problems import Fault, Findings
from finetune_trainer.evaluation.entities import OUTSIDE, by_label, entities, entity_f1, word_accuracy
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks import token_classification_tags as schemes
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
from finetune_trainer.tasks.token_classification_data import (
    Words,
    check_line,
    normalise_line,
    rendered,
    words_and_tags,
)

OUTPUTS = ("logits",)
AT_ONCE = 256  # examples whose scores are kept at a time
RARE = 100  # times less often than the most frequent label: hardly learned


@dataclass(frozen=True, slots=True)
class Tagged:
    """The raw scores of each word, [words, labels]. A word of which the tokenizer leaves nothing has none (`seen`)."""

    scores: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def tags(self, labels: Sequence[str]) -> list[str]:
        best = self.scores.argmax(axis=1)
        return [labels[index] if seen else OUTSIDE for index, seen in zip(best, self.seen, strict=True)]

    def probabilities(self) -> NDArray[np.float32]:
        """[words, labels], rows sum to 1."""
        exponents = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float32)


class TagFormat(OneByOne):
    """Its ExampleFormat. Labels are numbered in the order in which the training data first has their entities."""

    windowed: ClassVar[bool] = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str]) -> None:
        self.special = special
        self._tokenizer = tokenizer
        self._labels: dict[str, int] = {OUTSIDE: 0}
        self._counts: Counter[str] = Counter()
        self._entities: Counter[str] = Counter()
        self._fixed = False
        self._bilou: bool | None = None

    def check(self, row: Mapping[str, Any]) -> list[Fault]:
        faults = check_line(row)
        if any(fault.severity == "error" for fault in faults):
            return faults
        return [*faults, *self._check_scheme(row), *self._check_labels(row)]

    def _check_scheme(self, row: Mapping[str, Any]) -> Iterator[Fault]:
        """One scheme in all lines: the same letters mean different things in another."""
        tags = row.get("tags", [])
        bilou = True if schemes.is_bilou(tags) else False if schemes.has_open_end(tags) else None
        if self._bilou is None:
            self._bilou = bilou
        elif bilou not in (None, self._bilou):
            names = ("BILOU", "BIO") if self._bilou else ("BIO", "BILOU")
            text = f"the tags of earlier lines are {names[0]}, and these are {names[1]}; use one scheme in all lines"
            yield Fault("mixed_schemes", text, "tags")

    def _check_labels(self, row: Mapping[str, Any]) -> Iterator[Fault]:
        if not self._fixed:
            return
        for index, tag in enumerate(words_and_tags(normalise_line(row))[1]):
            if tag not in self._labels:
                place = f"tags[{index}]" if "tags" in row else "spans"
                text = (
                    "a label is not in the training data, so it cannot be learned; add training examples that have "
                    "it, or correct it"
                )
                yield Fault("unknown_label", text, place)
                return

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return normalise_line(row)

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        """`labels` is the number of a word's label at the word's first token, and -100 at all others."""
        words, tags = words_and_tags(normal)
        if not self._fixed:
            self._learn(tags)
        layout = windows.lay_out(self._tokenizer, words.text)
        labels = array("i", [IGNORED]) * len(layout.input_ids)
        for word, token in first_tokens(words, layout.offsets).items():
            place = layout.body[0] + token
            if labels[place] == IGNORED:  # a token that holds two words is labelled as the first of them
                labels[place] = self._labels[tags[word]]
        if self.learned({"labels": labels}) == 0:
            raise EncodingError("no_tokens", "the model's tokenizer leaves nothing of the text; remove the line")
        return {"input_ids": array("i", layout.input_ids), "labels": labels}

    def _learn(self, tags: Sequence[str]) -> None:
        self._counts.update(tags)
        self._entities.update(entity.label for entity in entities(tags))
        for tag in tags:
            if tag != OUTSIDE and schemes.label(tag) not in (schemes.label(known) for known in self._labels):
                for prefix in (schemes.BEGIN, schemes.INSIDE):
                    self._labels[prefix + schemes.label(tag)] = len(self._labels)

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """The first words, and what the model wants after a text. The words behind the cut are not learned."""
        length = len(tokens["input_ids"])
        if length <= max_length:
            return tokens
        first, after = windows.lay_out(self._tokenizer, "a").body
        behind = len(windows.lay_out(self._tokenizer, "a").input_ids) - after
        body, part = (first, length - behind), (0, max(0, max_length - first - behind))
        shorter = {name: array("i", windows.sliced(column, body, part)) for name, column in tokens.items()}
        return shorter if self.learned(shorter) else None

    def learned(self, tokens: Tokens) -> int:
        return len(tokens["labels"]) - tokens["labels"].count(IGNORED)

    def end_of_training_data(self, findings: Findings) -> None:
        self._fixed = True
        findings.add("train", 0, self._data_faults())

    def _data_faults(self) -> Iterator[Fault]:
        if not self._entities:
            text = "no word of the training data has a label other than O, so there is nothing to find; label entities"
            yield Fault("no_entity", text)
            return
        most = max(self._entities.values())
        single = sum(count == 1 for count in self._entities.values())
        if single:
            text = f"{single} label(s) have a single entity in the training data, too few to learn from; add examples"
            yield Fault("rare_label", text, severity="warning")
        if any(count * RARE <= most for count in self._entities.values()):
            text = f"a label has {RARE} times fewer entities than another and will hardly be found; add examples of it"
            yield Fault("imbalance", text, severity="warning")

    @property
    def facts(self) -> Facts:
        return Facts(tuple(self._labels), tuple(self._counts[label] for label in self._labels))


def first_tokens(words: Words, offsets: Sequence[windows.Span]) -> dict[int, int]:
    """{word: its first token}. A word of which the tokenizer leaves nothing is missing."""
    found: dict[int, int] = {}
    word = 0
    for token, (start, end) in enumerate(offsets):
        while word < len(words.spans) and words.spans[word][1] <= start:
            word += 1
        for touched in range(word, len(words.spans)):
            if words.spans[touched][0] >= end:
                break
            found.setdefault(touched, token)
    return found


def tag_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Words],
    between_batches: Callable[[], None] = no_interruption,
) -> list[Tagged]:
    """What the model finds each word to be, in texts of any length: of the windows that hold a word, the one that
    shows most of what stands around it decides. The server and the evaluation both ask this way."""
    limit = windows.context_limit(model.config, tokenizer)
    layouts = [windows.lay_out(tokenizer, words.text) for words in texts]
    cuts = [windows.windows(layout, limit) for layout in layouts]
    scores = iter(windows.run(model, [window for cut in cuts for window in cut], OUTPUTS, between_batches))
    return [
        gather(words, layout, cut, [next(scores) for _ in cut])
        for words, layout, cut in zip(texts, layouts, cuts, strict=True)
    ]


def gather(
    words: Words,
    layout: windows.Layout,
    cut: Sequence[windows.Window],
    scores: Sequence[NDArray[np.float32]],
) -> Tagged:
    """Of the scores of all tokens of a text's windows those of its words."""
    length = layout.body[1] - layout.body[0]
    tagged = Tagged(np.zeros((len(words.spans), scores[0].shape[1]), np.float32), np.zeros(len(words.spans), np.bool_))
    for word, token in first_tokens(words, layout.offsets).items():
        best = max(range(len(cut)), key=lambda index: windows.margin(cut[index].part, (token, token + 1), length))
        tagged.scores[word] = scores[best][cut[best].here][token - cut[best].part[0]]
        tagged.seen[word] = True
    return tagged


class TokenClassification:
    """Its TaskKind."""

    task = Task.TOKEN_CLASSIFICATION
    auto_model = AutoModelForTokenClassification
    peft_type = "TOKEN_CLS"
    needs_reference = False

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        windows.require_encoder(config, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, source, "label words")

    def model_options(self, facts: Facts) -> dict[str, Any]:
        names = dict(enumerate(facts.labels))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "ignore_mismatched_sizes": True,  # a base that was a tagger of other labels begins with a fresh head
        }

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> ExampleFormat:
        return TagFormat(tokenizer, special)

    def trainer(self, parts: TrainerParts) -> Any:
        from finetune_trainer.tasks.encoder_trainer import encoder_trainer  # a server trains nothing

        return encoder_trainer(parts, collate, ("labels",))

    def measure(
        self,
        model: PreTrainedModel,
        held_out: HeldOut,
        *,
        reference: Measured | None = None,
        between_batches: Callable[[], None] = no_interruption,
    ) -> Measured:
        """All words count, also those behind the cut: they are read in further windows, as the server does. `details`
        have figures of each label."""
        labels = list(held_out.facts.labels)
        gold: list[list[str]] = []
        predicted: list[list[str]] = []
        losses: list[NDArray[np.float64]] = []
        for start in range(0, len(held_out.examples), AT_ONCE):
            read = [words_and_tags(example) for example in held_out.examples[start : start + AT_ONCE]]
            tagged = tag_words(model, held_out.tokenizer, [words for words, _ in read], between_batches)
            for found, (_, tags) in zip(tagged, read, strict=True):
                gold.append(tags)
                predicted.append(found.tags(labels))
                losses.append(_losses(found, [labels.index(tag) for tag in tags]))
        return Measured(
            np.array([loss.sum() for loss in losses]),
            np.array([len(loss) for loss in losses], np.int64),
            {Metric.TOKEN_ACCURACY: word_accuracy(gold, predicted), Metric.ENTITY_F1: entity_f1(gold, predicted)},
            details={"labels": by_label(gold, predicted)},
        )

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        return {}

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        for row, example in zip(held_out.rows, held_out.examples, strict=True):
            words, tags = words_and_tags(example)
            starts, ends = zip(*words.spans, strict=True)
            yield Question(words.text, rendered(words, tags), {**row, "starts": starts, "ends": ends})

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
        texts = [Words(q.prompt, tuple(zip(q.row["starts"], q.row["ends"], strict=True))) for q in questions]
        tagged = tag_words(model, tokenizer, texts, between_batches)
        return [Answer(rendered(words, found.tags(facts.labels))) for words, found in zip(texts, tagged, strict=True)]


def _losses(found: Tagged, targets: Sequence[int]) -> NDArray[np.float64]:
    """Nats of every word that the model saw."""
    scores = found.scores.astype(np.float64)
    greatest = scores.max(axis=1)
    normaliser = greatest + np.log(np.exp(scores - greatest[:, None]).sum(axis=1))
    return np.asarray((normaliser - scores[np.arange(len(targets)), list(targets)])[found.seen])


def collate(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """A batch for training, each [rows, longest]."""
    return {
        "input_ids": windows.padded([row["input_ids"] for row in rows]),
        "attention_mask": windows.padded([[1] * len(row["input_ids"]) for row in rows]),
        "labels": windows.padded([row["labels"] for row in rows], fill=IGNORED),
    }
