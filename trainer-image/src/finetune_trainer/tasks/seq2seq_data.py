"""Lines of the task Seq2Seq, {"source": text, "target": text}, and their tokens."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from finetune_trainer.data.problems import EncodingError, Fault, Findings, json_type, plain_word
from finetune_trainer.tasks.kind import Facts, OneByOne, Tokens

KEYS = ("source", "target")
EMPTY = {
    "source": "`source` is empty, so there is nothing to read; remove the line or fill it",
    "target": "`target` is empty, so there is nothing to learn; remove the line or fill it",
}
# From here on the targets are plainly in a script that the model does not have.
UNKNOWN_REFUSED = 0.5


def check_pair(row: Mapping[str, Any]) -> list[Fault]:
    """Everything wrong with a line. Without an error among it, `normalise` takes it."""
    missing = [key for key in KEYS if key not in row]
    if missing and (wrong := _other_data(row)):
        return [wrong]
    faults = [_missing(key) for key in missing]
    for key in KEYS:
        value = row.get(key)
        if key in missing:
            continue
        if not isinstance(value, str):
            faults.append(Fault(f"{key}_type", f"`{key}` must be a text, not {json_type(value)}", key))
        elif not value.strip():
            faults.append(Fault(f"empty_{key}", EMPTY[key], key))
    for key in row:
        if key not in KEYS:
            text = f"the key {plain_word(key)} beside source and target is not used; it is ignored"
            faults.append(Fault("unknown_key", text, severity="warning"))
    return faults


def _missing(key: str) -> Fault:
    return Fault(
        f"missing_{key}",
        f"the line has no `{key}`; it needs source (what the model reads) and target (what it shall write). Where the "
        f"data calls them otherwise, name them in dataset.columns",
    )


def _other_data(row: Mapping[str, Any]) -> Fault | None:
    """The fault of a line that is of another task or form, said more helpfully than what it lacks."""
    if "messages" in row:
        return Fault("wrong_task", "the line has messages: set spec.task to Chat, or give source and target")
    if "prompt" in row and "completion" in row:
        return Fault(
            "wrong_task",
            "the line has prompt and completion: set spec.task to Completion, or, to train an encoder-decoder on it, "
            "set dataset.columns to {source: prompt, target: completion}",
        )
    if isinstance(row.get("translation"), Mapping):
        return Fault(
            "nested_pair",
            "the line holds its texts inside `translation`, by language; write them as "
            '{"source": ..., "target": ...}, one direction a line',
        )
    return None


def affixes(ids: list[int], special: list[int]) -> tuple[int, int]:
    """How many tokens the tokenizer puts before and after a text. `special`: 1 where it put one, shape of ids.

    Of a text that has no token of its own, all of them are counted on both sides.
    """
    head = next((at for at, flag in enumerate(special) if not flag), len(ids))
    tail = next((at for at, flag in enumerate(reversed(special)) if not flag), len(ids))
    return head, tail


def source_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text as the encoder reads it, with the tokens that the tokenizer puts around it."""
    # verbose=False: that an example is longer than the context is reported by us, with its line
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def target_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text as the decoder writes it: in the tokenizer's target language where it has one, and with the
    end-of-sequence token, also where the tokenizer itself puts none."""
    tokens = tokenizer(text_target=text, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = tokens["input_ids"]
    _, tail = affixes(ids, tokens["special_tokens_mask"])
    end = tokenizer.eos_token_id
    return ids if tail and end in ids[len(ids) - tail :] else [*ids, end]


def target_head(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens before every target: none for T5, a beginning for BART, the language for mBART-50 and M2M100."""
    tokens = tokenizer(text_target="a", return_special_tokens_mask=True)
    head, _ = affixes(tokens["input_ids"], tokens["special_tokens_mask"])
    return list(tokens["input_ids"][:head])


def _affix_sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, int]]:
    source = tokenizer("a", return_special_tokens_mask=True)
    target = tokenizer(text_target="a", return_special_tokens_mask=True)
    head, tail = affixes(target["input_ids"], target["special_tokens_mask"])
    added = len(target_ids(tokenizer, "a")) - len(target["input_ids"])  # an end that we put there
    return {
        "input_ids": affixes(source["input_ids"], source["special_tokens_mask"]),
        "labels": (head, tail + added),
    }


class Seq2SeqFormat(OneByOne):
    """The ExampleFormat: `input_ids` for the encoder, `labels` of their own length for the decoder."""

    windowed: ClassVar[bool] = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str]) -> None:
        self.special = special
        self._tokenizer = tokenizer
        self._affixes = _affix_sizes(tokenizer)
        self._targets = self._unknown = 0

    def check(self, row: Mapping[str, Any]) -> list[Fault]:
        return check_pair(row)

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: row[key] for key in KEYS}

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        """Both sides, uncut. Raises EncodingError when the tokenizer finds nothing in one of them."""
        columns = {
            "input_ids": source_ids(self._tokenizer, normal["source"]),
            "labels": target_ids(self._tokenizer, normal["target"]),
        }
        for (name, ids), key in zip(columns.items(), KEYS, strict=True):
            if len(ids) <= sum(self._affixes[name]):
                raise EncodingError(
                    f"no_{key}_tokens",
                    f"the model's tokenizer makes nothing of `{key}`: it holds only characters that it drops; remove "
                    "the line or write it differently",
                    key,
                )
        self._targets += 1
        self._unknown += self._tokenizer.unk_token_id in columns["labels"]
        return {name: array("i", ids) for name, ids in columns.items()}

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """Each side to at most `max_length` tokens: the end of its text is left out, what the tokenizer puts after
        it (the end-of-sequence token) is kept, as the model knows no side without it."""
        if all(len(column) <= max_length for column in tokens.values()):
            return tokens
        if any(max_length <= sum(self._affixes[name]) for name in tokens):
            return None
        return {name: _shortened(column, max_length, self._affixes[name][1]) for name, column in tokens.items()}

    def learned(self, tokens: Tokens) -> int:
        return len(tokens["labels"])

    def end_of_training_data(self, findings: Findings) -> None:
        """Say how many targets the model's vocabulary cannot write."""
        if not self._unknown:
            return
        refused = self._unknown >= UNKNOWN_REFUSED * self._targets
        text = (
            f"{self._unknown} of {self._targets} targets hold characters that are not in the model's vocabulary: it "
            f"would learn to write {self._tokenizer.unk_token} for them; use a model that was made for their language"
        )
        findings.add("train", 0, [Fault("unknown_characters", text, severity="error" if refused else "warning")])

    @property
    def facts(self) -> Facts:
        return Facts()


def _shortened(column: array[int], max_length: int, tail: int) -> array[int]:
    if len(column) <= max_length:
        return column
    return column[: max_length - tail] + column[len(column) - tail :]
