"""Lines of the task Classification: {"text": ..., "label": ...}, with `text_pair` for two texts, and with a list of
labels where several hold at once."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from finetune_trainer.data.problems import EncodingError, Fault, Findings, json_type, plain_word
from finetune_trainer.tasks.classification_text import Layout, tokenize
from finetune_trainer.tasks.kind import Facts, OneByOne, Tokens

KEYS = ("text", "text_pair", "label")
LONGEST_LABEL = 128  # characters; beyond that it is a text
MOSTLY = 0.9  # share of one label from which accuracy says little
MOST_TEXTS = 1_000_000  # different ones that are remembered, to find contradictions: about 170 MB
MANY_LABELS = 20  # from which "nearly every example has a label of its own" is worth saying


class ClassificationFormat(OneByOne):
    """The ExampleFormat. The first good line says whether examples have one label or a list, and one text or two."""

    windowed: ClassVar[bool] = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str]) -> None:
        self.special = special
        self._tokenizer = tokenizer
        self._layout = Layout.of(tokenizer)
        self._multi_label: bool | None = None
        self._pairs: bool | None = None
        self._said: dict[int, int] = {}
        self._counts: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._final: dict[int, int] = {}  # a label's number as it was met first -> its number in order
        self._examples = 0
        self._fixed = False

    @property
    def facts(self) -> Facts:
        labels = tuple(sorted(self._numbers, key=label_order))
        return Facts(labels, tuple(self._counts[label] for label in labels), bool(self._multi_label))

    def check(self, row: Mapping[str, Any]) -> list[Fault]:
        if "messages" in row:
            return [Fault("wrong_task", "the line has messages; set spec.task to Chat")]
        faults = [*_text_faults(row), *_label_faults(row)]
        if all(fault.severity != "error" for fault in faults):
            faults += self._form_faults(row) or self._contradiction(row)
        for key in row:
            if key not in KEYS:
                text = f"the key {plain_word(key)} beside text, text_pair and label is not used; it is ignored"
                faults.append(Fault("unknown_key", text, severity="warning"))
        return faults

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        pair = {"text_pair": row["text_pair"]} if row.get("text_pair") is not None else {}
        label = row["label"]
        written = list(dict.fromkeys(map(as_label, label))) if isinstance(label, list) else as_label(label)
        return {"text": row["text"], **pair, "label": written}

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        """`labels` holds the numbers of the labels, one or as many as apply: until `settled` in the lines' order."""
        labels = labels_of(normal)
        unknown = [label for label in labels if label not in self._numbers] if self._fixed else []
        if unknown:
            raise EncodingError(
                "unknown_label",
                f"the label {plain_word(unknown[0])} does not occur in the training data, so that it cannot be "
                f"learned; known: {', '.join(map(plain_word, self.facts.labels[:10]))}. Correct it, or add training "
                "examples of it",
                "label",
            )
        columns = tokenize(self._tokenizer, self._layout, normal["text"], normal.get("text_pair"))
        if not self._fixed:
            self._examples += 1
            self._counts.update(labels)
            for label in labels:
                self._numbers.setdefault(label, len(self._numbers))
        return {**columns, "labels": array("i", (self._numbers[label] for label in labels))}

    def settled(self, tokens: Tokens) -> Tokens:
        return {**tokens, "labels": array("i", sorted(self._final[number] for number in tokens["labels"]))}

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """The beginning of the text, or of both; the special tokens around them stay."""
        if len(tokens["input_ids"]) <= max_length:
            return tokens
        kept = self._layout.kept(tokens["input_ids"], max_length, pair=bool(self._pairs))
        if kept is None:
            return None
        read = {name: array("i", (column[at] for at in kept)) for name, column in tokens.items() if name != "labels"}
        return {**read, "labels": tokens["labels"]}

    def learned(self, tokens: Tokens) -> int:
        """One decision an example; that no label of a list applies is one too."""
        return 1

    def end_of_training_data(self, findings: Findings) -> None:
        """Number the labels in order, whatever the order of the lines, and say what is odd about them."""
        self._final = {self._numbers[label]: index for index, label in enumerate(self.facts.labels)}
        self._fixed = True
        findings.add("train", 0, balance_faults(self.facts, self._examples))

    def _form_faults(self, row: Mapping[str, Any]) -> list[Fault]:
        """One form in all lines: what the first one has."""
        faults = []
        several, pair = isinstance(row["label"], list), row.get("text_pair") is not None
        self._multi_label = several if self._multi_label is None else self._multi_label
        self._pairs = pair if self._pairs is None else self._pairs
        if several != self._multi_label:
            now, before = ("a list", "one label") if several else ("one label", "a list")
            text = f"`label` is {now} here and {before} in the lines before: write all as lists, or none"
            faults.append(Fault("mixed_labels", text, "label"))
        if pair != self._pairs:
            has = "a" if pair else "no"
            text = f"the line has {has} text_pair, other than the lines before: give it in all lines or in none"
            faults.append(Fault("mixed_pairs", text, "text_pair"))
        return faults

    def _contradiction(self, row: Mapping[str, Any]) -> list[Fault]:
        """Whether the same text came before with another label. Hashes are kept, not texts, and of
        MOST_TEXTS of them: data may be large."""
        normal = self.normalise(row)
        said, key = hash(tuple(sorted(labels_of(normal)))), hash((normal["text"], normal.get("text_pair")))
        if self._said.get(key, said) == said:
            if len(self._said) < MOST_TEXTS:
                self._said[key] = said
            return []
        text = "the same text has another label in a line before, and both cannot be learned: keep the right one"
        return [Fault("contradiction", text, "label", severity="warning")]


def labels_of(normal: Mapping[str, Any]) -> list[str]:
    """The labels of a normalised example."""
    return list(normal["label"]) if isinstance(normal["label"], list) else [normal["label"]]


def as_label(value: Any) -> str:
    """A label as text: true and 1.0 as JSON writes true and 1."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) else str(value).strip()


def label_order(label: str) -> tuple[bool, int, str]:
    """Numbers by size and before words, words by the alphabet."""
    number = re.fullmatch(r"-?\d{1,18}", label, re.ASCII) is not None
    return not number, int(label) if number else 0, label


def balance_faults(facts: Facts, examples: int) -> list[Fault]:
    """What the counts of the labels say about the whole training data."""
    if not examples:
        return []  # nothing was readable: that is said elsewhere
    least = 1 if facts.multi_label else 2
    if len(facts.labels) < least:
        only = f"the only label is {plain_word(facts.labels[0])}" if facts.labels else "no example has any label"
        return [Fault("one_label", f"{only}: there is nothing to tell apart; add examples of another label")]
    return [*_rare(facts), *_alike(facts), *_unbalanced(facts, examples)]


def _rare(facts: Facts) -> Iterator[Fault]:
    rare = [label for label, count in zip(facts.labels, facts.counts, strict=True) if count == 1]
    if rare:
        text = f"{len(rare)} label(s) have one example only ({_named(rare)}): add more, or merge them into others"
        yield Fault("rare_label", f"{text}; one is too few to learn from and to be held out", severity="warning")
    if len(facts.labels) > MANY_LABELS and sum(facts.counts) < 2 * len(facts.labels):
        text = f"{len(facts.labels)} different labels in {sum(facts.counts)}: a label should name a group of examples"
        yield Fault("many_labels", f"{text}; is `label` the right column?", severity="warning")


def _alike(facts: Facts) -> Iterator[Fault]:
    folded = Counter(map(_folded, facts.labels))
    twice = [label for label in facts.labels if folded[_folded(label)] > 1]
    if twice:
        text = (
            "labels that differ only in capitals, or in how a letter is encoded, count as different "
            f"({_named(twice)}): write them the same"
        )
        yield Fault("labels_alike", text, severity="warning")


def _folded(label: str) -> str:
    return unicodedata.normalize("NFKC", label).casefold()


def _unbalanced(facts: Facts, examples: int) -> Iterator[Fault]:
    most = max(facts.counts)
    if most >= MOSTLY * examples:
        label = plain_word(facts.labels[facts.counts.index(most)])
        text = (
            f"{most} of {examples} examples have the label {label}: a model that always says so would be right in "
            f"{100 * most / examples:.0f} %, so judge by macroF1, and add examples of the others"
        )
        yield Fault("imbalance", text, severity="warning")


def _named(labels: Iterable[str]) -> str:
    named = list(map(plain_word, labels))
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def _text_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    for key in ("text", "text_pair"):
        value = row.get(key)
        if key == "text_pair" and value is None:
            continue
        if key not in row:
            yield Fault("missing_text", _missing("text"))
        elif not isinstance(value, str):
            yield Fault(f"{key}_type", f"`{key}` must be a text, not {json_type(value)}", key)
        elif not value.strip():
            yield Fault(f"empty_{key}", f"`{key}` is empty: give it words, or remove the line", key)


def _label_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    if row.get("label") is None:
        why = "`label` is null: give the label, or remove the line" if "label" in row else _missing("label")
        yield Fault("missing_label", why)
        return
    several = isinstance(row["label"], list)
    labels = row["label"] if several else [row["label"]]
    for index, label in enumerate(labels):
        where = f"label[{index}]" if several else "label"
        if not isinstance(label, str | int | float):
            allowed = "a text, a whole number, true or false" + ("" if several else ", or a list of them")
            yield Fault("label_type", f"a label must be {allowed}, not {json_type(label)}", where)
        elif isinstance(label, float) and not label.is_integer():
            text = "a label is a fraction: predicting numbers is not offered; use a few groups, such as low and high"
            yield Fault("label_fraction", text, where)
        elif not str(label).strip():
            yield Fault("empty_label", "a label is empty: give it a name, or remove the line", where)
        elif len(str(label)) > LONGEST_LABEL:
            text = f"a label has more than {LONGEST_LABEL} characters: is another column meant?"
            yield Fault("long_label", text, where)
    if several and len(set(map(str, labels))) < len(labels):
        yield Fault("label_twice", "a label is given twice; it counts once", "label", severity="warning")


def _missing(key: str) -> str:
    return f"the line has no `{key}`; if yours is called otherwise, say so in spec.dataset.columns: {{{key}: NAME}}"
