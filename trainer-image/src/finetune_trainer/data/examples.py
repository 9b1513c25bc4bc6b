"""The examples of one file that passed all checks, tokenised for one model."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_trainer.data.problems import EncodingError, Fault, FileName, Findings
from finetune_trainer.tasks.kind import ExampleFormat, Tokens

log = logging.getLogger(__name__)

SAY_EVERY = 10_000  # examples between two progress lines


@dataclass(frozen=True, slots=True)
class Example:
    """One good example. `text` is its normalised JSON, `digest` its identity: equal examples have equal texts.

    `tokens` are the columns that Train reads, in arrays of 4 bytes a number; `learned` is how many of them are
    trained on.
    """

    line: int
    text: str
    digest: str
    tokens: Tokens
    learned: int

    @property
    def input_ids(self) -> array[int]:
        return self.tokens["input_ids"]

    @property
    def length(self) -> int:
        """Tokens of what is read, or of what is to be written apart from it where that is longer (Seq2Seq)."""
        return max(len(self.input_ids), self.learned)

    def with_tokens(self, tokens: Tokens, learned: int) -> Example:
        return replace(self, tokens=tokens, learned=learned)


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches any of the tokenizer's special tokens, the longest first."""
    words = {str(token) for token in tokenizer.all_special_tokens}
    words |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ordered = sorted((word for word in words if word.strip()), key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def load_examples(
    rows: Iterable[tuple[int, Mapping[str, Any]]], file: FileName, form: ExampleFormat, findings: Findings
) -> list[Example]:
    """Check and tokenise the rows of a file. What is wrong goes into `findings`; only good examples are returned."""
    examples = []
    for line, value in rows:
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
        tokens = form.encode(normal)
    except EncodingError as error:
        findings.add(file, line, [Fault(error.check, error.message, error.where)])
        return None
    learned = form.learned(tokens)
    if not learned:
        findings.add(file, line, [Fault("nothing_trainable", "no token of the example would be trained on")])
        return None
    text = json.dumps(normal, ensure_ascii=False, sort_keys=False)
    return Example(line, text, hashlib.sha256(text.encode()).hexdigest(), tokens, learned)


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
