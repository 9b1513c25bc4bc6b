"""From rows to examples: checked, cleaned and tokenised, a batch at a time."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.flow import Attached, Example
from finetune_trainer.data.problems import EncodingError, Fault, FileName, Findings
from finetune_trainer.data.texts import texts
from finetune_trainer.tasks.kind import ExampleFormat, Tokens

log = logging.getLogger(__name__)

SURROGATE = re.compile("[\ud800-\udfff]")
SAY_EVERY = 10_000  # examples between two progress lines
BATCH_EXAMPLES, BATCH_CHARACTERS = 256, 2**20  # tokenised at once, at most: of both the one that is reached first


@dataclass(frozen=True, slots=True)
class Checked:
    """An example that only has to be tokenised."""

    line: int
    normal: Mapping[str, Any]
    text: str


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches any of the tokenizer's special tokens, the longest first."""
    words = {str(token) for token in tokenizer.all_special_tokens}
    words |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ordered = sorted((word for word in words if word.strip()), key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def read_examples(
    rows: Iterable[tuple[int, dict[str, Any]]],
    file: FileName,
    form: ExampleFormat,
    findings: Findings,
    attached: Attached,
) -> Iterator[Example]:
    """Yield the good examples of a file's rows, in order. What is wrong with the others goes into `findings`."""
    number = 0
    for batch, tokens in _encoded(_batches(_checked(rows, file, form, findings, attached)), form):
        for example in _examples(batch, tokens, file, form, findings, attached):
            attached.read(example)
            yield example
            number += 1
            if number % SAY_EVERY == 0:
                log.info("%s data: %d examples checked and tokenised", file, number)


def _checked(
    rows: Iterable[tuple[int, dict[str, Any]]],
    file: FileName,
    form: ExampleFormat,
    findings: Findings,
    attached: Attached,
) -> Iterator[Checked]:
    def is_refused(line: int, row: Mapping[str, Any], faults: Sequence[Fault]) -> bool:
        if not findings.add(file, line, faults):
            return False
        attached.refused(file, line, row, faults)
        return True

    for line, row in rows:
        cleaned = attached.clean_row(file, line, row)
        if cleaned is None or is_refused(line, cleaned, form.check(cleaned)):
            continue
        normal = attached.clean_example(file, line, form.normalise(cleaned))
        if normal is None or is_refused(line, normal, list(_text_faults(normal, form.special))):
            continue
        yield Checked(line, normal, json.dumps(normal, ensure_ascii=False, sort_keys=False))


def _batches(examples: Iterable[Checked]) -> Iterator[list[Checked]]:
    batch: list[Checked] = []
    size = 0
    for example in examples:
        batch.append(example)
        size += len(example.text)
        if len(batch) >= BATCH_EXAMPLES or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterable[list[Checked]], form: ExampleFormat
) -> Iterator[tuple[list[Checked], Sequence[Tokens | EncodingError]]]:
    """The tokens of each batch, made in a thread while the next batch is read: most of that time is the tokenizer's,
    which holds no lock and spreads over the cores."""
    with ThreadPoolExecutor(1) as thread:
        waiting: tuple[list[Checked], Future[Sequence[Tokens | EncodingError]]] | None = None
        for batch in batches:
            begun = thread.submit(form.encode_all, [each.normal for each in batch])
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = (batch, begun)
        if waiting:
            yield waiting[0], waiting[1].result()


def _examples(
    batch: Sequence[Checked],
    encoded: Sequence[Tokens | EncodingError],
    file: FileName,
    form: ExampleFormat,
    findings: Findings,
    attached: Attached,
) -> Iterator[Example]:
    for checked, tokens in zip(batch, encoded, strict=True):
        if isinstance(tokens, EncodingError):
            fault = Fault(tokens.check, tokens.message, tokens.where)
        elif learned := form.learned(tokens):
            yield Example(file, checked.line, checked.text, tokens, learned, checked.normal)
            continue
        else:
            fault = Fault("nothing_trainable", "no token of the example would be trained on")
        findings.add(file, checked.line, [fault])
        attached.refused(file, checked.line, checked.normal, [fault])


def _text_faults(normal: Mapping[str, Any], special: re.Pattern[str]) -> Iterator[Fault]:
    for where, text in texts(normal):
        if not text.isascii() and SURROGATE.search(text):
            yield Fault("invalid_text", "a text has half of a surrogate pair, which is no character; remove it", where)
        match = special.search(text)
        if match:
            message = (
                f"a text holds the model's special token {match[0]}, which would forge the structure of the "
                "conversation; remove it or write it differently"
            )
            yield Fault("special_token", message, where)
