"""The examples of one file that passed all checks, tokenised for one model."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.spec import Task
from finetune_trainer.data.chat import check_chat, normalise_chat
from finetune_trainer.data.completion import check_completion, normalise_completion
from finetune_trainer.data.problems import Fault, FileName, Findings
from finetune_trainer.data.reader import read_objects
from finetune_trainer.masking import IGNORED, ChatMasker, MaskedTokens, MaskingError, mask_completion
from finetune_trainer.messages import template_abilities

log = logging.getLogger(__name__)

SAY_EVERY = 10_000  # examples between two progress lines


@dataclass(frozen=True, slots=True)
class Example:
    """One good example. `text` is its normalised JSON; the tokens are in arrays, 4 bytes each."""

    line: int
    text: str
    input_ids: array[int]
    labels: array[int]

    @property
    def digest(self) -> str:
        """Identity: equal examples have equal normalised JSON."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def loss_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class ExampleFormat:
    """How lines become examples: the task's checks and the model's tokenizer."""

    check: Callable[[Mapping[str, Any]], list[Fault]]
    normalise: Callable[[Mapping[str, Any]], dict[str, Any]]
    mask: Callable[[Mapping[str, Any]], MaskedTokens]
    special: re.Pattern[str]


def example_format(task: Task, tokenizer: Any, stop_ids: frozenset[int]) -> ExampleFormat:
    """The format for a task and a loaded tokenizer. `stop_ids` are the tokens that end a generation."""
    special = special_tokens(tokenizer)
    if task is Task.COMPLETION:
        return ExampleFormat(
            check_completion,
            normalise_completion,
            lambda example: mask_completion(tokenizer, example["prompt"], example["completion"]),
            special,
        )
    abilities = template_abilities(tokenizer)
    return ExampleFormat(
        lambda example: check_chat(example, abilities),
        lambda example: normalise_chat(example, abilities),
        ChatMasker(tokenizer, stop_ids).mask,
        special,
    )


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches any of the tokenizer's special tokens, the longest first."""
    words = {str(token) for token in tokenizer.all_special_tokens}
    words |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ordered = sorted((word for word in words if word.strip()), key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def load_examples(
    path: Path, file: FileName, form: ExampleFormat, findings: Findings, *, max_bytes: int
) -> list[Example]:
    """Read, check and tokenise a file. What is wrong goes into `findings`; only good examples are returned.

    Raises UserInputError when the file as a whole cannot be read.
    """
    examples = []
    for line, value in read_objects(path, file, findings, max_bytes=max_bytes):
        example = _example(line, value, file, form, findings)
        if example:
            examples.append(example)
            if len(examples) % SAY_EVERY == 0:
                log.info("%s data: %d examples checked and tokenised", file, len(examples))
    return examples


def _example(
    line: int, value: Mapping[str, Any], file: FileName, form: ExampleFormat, findings: Findings
) -> Example | None:
    if findings.add(file, line, form.check(value)):
        return None
    normal = form.normalise(value)
    if findings.add(file, line, _text_faults(normal, form.special)):
        return None
    try:
        tokens = form.mask(normal)
    except MaskingError as error:
        findings.add(file, line, [Fault(error.check, error.message, error.where)])
        return None
    if not tokens.loss_tokens:
        findings.add(file, line, [Fault("nothing_trainable", "no token of the example would be trained on")])
        return None
    text = json.dumps(normal, ensure_ascii=False, sort_keys=False)
    return Example(line, text, array("i", tokens.input_ids), array("i", tokens.labels))


def _text_faults(normal: Mapping[str, Any], special: re.Pattern[str]) -> Iterator[Fault]:
    for where, text in _texts(normal, ""):
        if any("\ud800" <= character <= "\udfff" for character in text):
            yield Fault("invalid_text", "a text has half of a surrogate pair, which is no character; remove it", where)
        match = special.search(text)
        if match:
            message = (
                f"a text holds the model's special token {match[0]}, which would forge the structure of the "
                "conversation; remove it or write it differently"
            )
            yield Fault("special_token", message, where)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every text in the value, keys of objects included."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, key
            yield from _texts(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{index}]")


def write_jsonl(path: Path, examples: Iterable[Example]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{example.text}\n" for example in examples)
