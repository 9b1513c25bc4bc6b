"""Lines of the task TokenClassification: words with a tag each, or a text with the spans of its entities."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finetune_trainer.data.problems import Fault, json_type, plain_word
from finetune_trainer.evaluation.entities import OUTSIDE, entities
from finetune_trainer.tasks import token_classification_tags as schemes
from finetune_trainer.tasks.windows import Span

# A word is a run of letters and digits, or one sign. Scripts without spaces between words go letter by letter.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Marks (accents, vowel signs) belong to the letter before them, though Python does not count them as word characters.
MARKS = "".join(re.escape(chr(code)) for code in range(0x20000) if unicodedata.category(chr(code)).startswith("M"))
WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{MARKS}])*|[^\w\s]")
NEEDED = "it needs `tokens` (a list of words) and `tags` (a tag a word), or `text` and `spans`"
SPAN_KEYS = {"start", "end", "label"}


@dataclass(frozen=True, slots=True)
class Words:
    """A text and where its words stand in it, as characters [start, end)."""

    text: str
    spans: tuple[Span, ...]

    def of(self, first: int, last: int) -> Span:
        """The characters of the words `first` to `last`, both included."""
        return self.spans[first][0], self.spans[last][1]


def words_of_tokens(tokens: Sequence[str]) -> Words:
    """The words with a space between them."""
    spans, position = [], 0
    for token in tokens:
        spans.append((position, position + len(token)))
        position += len(token) + 1
    return Words(" ".join(tokens), tuple(spans))


def words_of_text(text: str) -> Words:
    return Words(text, tuple(match.span() for match in WORD.finditer(text)))


def check_line(row: Mapping[str, Any]) -> list[Fault]:
    """Everything wrong with the line. Without an error among it, `normalise_line` takes it."""
    if _has_tokens(row):
        return [*_check_tokens(row), *_unknown_keys(row, {"tokens", "tags"})]
    if "text" in row and "spans" in row:
        return [*_check_text(row), *_unknown_keys(row, {"text", "spans"})]
    return [Fault("missing_tokens", f"the line has no words with tags; {NEEDED}{_hint(row)}")]


def _has_tokens(row: Mapping[str, Any]) -> bool:
    return "tags" in row or ("tokens" in row and "spans" not in row)


def normalise_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"tokens", "tags"} with tags in BIO, or {"text", "spans"} with spans in order."""
    if _has_tokens(row):
        return {"tokens": list(row["tokens"]), "tags": schemes.to_bio(row["tags"])}
    spans = [{key: span[key] for key in ("start", "end", "label")} for span in row["spans"]]
    return {"text": row["text"], "spans": sorted(spans, key=lambda span: int(span["start"]))}


def words_and_tags(normal: Mapping[str, Any]) -> tuple[Words, list[str]]:
    """The words of a normalised line and their tags in BIO."""
    if "tokens" in normal:
        return words_of_tokens(normal["tokens"]), list(normal["tags"])
    words = words_of_text(normal["text"])
    return words, _tags_of_spans(words, normal["spans"])


def _tags_of_spans(words: Words, spans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every word that a span touches is part of its entity, unless the span before has it already."""
    tags = [OUTSIDE] * len(words.spans)
    for span in spans:
        prefix = schemes.BEGIN
        for index in _touched(words, span):
            if tags[index] == OUTSIDE:
                tags[index] = prefix + span["label"]
                prefix = schemes.INSIDE
    return tags


def _touched(words: Words, span: Mapping[str, Any]) -> list[int]:
    return [index for index, (start, end) in enumerate(words.spans) if start < span["end"] and end > span["start"]]


def rendered(words: Words, tags: Sequence[str]) -> str:
    """`Ada Lovelace = PER; London = LOC`: the entities for people."""
    found = [f"{words.text[slice(*words.of(e.first, e.last))]} = {e.label}" for e in entities(tags)]
    return "; ".join(found) or "(no entity)"


def _check_tokens(row: Mapping[str, Any]) -> Iterator[Fault]:
    tokens, tags = row.get("tokens"), row.get("tags")
    for name, value in (("tokens", tokens), ("tags", tags)):
        if name not in row:
            yield Fault(f"missing_{name}", f"the line has no `{name}`; {NEEDED}{_hint(row)}")
        elif not isinstance(value, list):
            yield Fault(f"{name}_type", f"`{name}` must be a list of texts, not {json_type(value)}", name)
        elif not value:
            yield Fault(f"empty_{name}", f"`{name}` is empty, so there is nothing to learn; remove the line", name)
    if isinstance(tokens, list):
        yield from _check_words(tokens)
    if isinstance(tags, list):
        yield from schemes.check_tags(tags)
        if isinstance(tokens, list) and len(tags) != len(tokens):
            text = (
                f"there are {len(tokens)} tokens and {len(tags)} tags; give every token one tag (O outside of entities)"
            )
            yield Fault("tag_count", text, "tags")


def _check_words(tokens: Sequence[object]) -> Iterator[Fault]:
    for index, token in enumerate(tokens):
        if not isinstance(token, str):
            yield Fault("token_type", f"a token must be a text, not {json_type(token)}", f"tokens[{index}]")
            return
        if not token.strip():
            text = "a token is empty or only space, which no model sees; remove it together with its tag"
            yield Fault("empty_token", text, f"tokens[{index}]")
            return


def _check_text(row: Mapping[str, Any]) -> Iterator[Fault]:
    text, spans = row["text"], row["spans"]
    if not isinstance(text, str):
        yield Fault("text_type", f"`text` must be a text, not {json_type(text)}", "text")
    elif not words_of_text(text).spans:
        yield Fault("empty_text", "`text` has no word, so there is nothing to learn; remove the line", "text")
    if not isinstance(spans, list):
        yield Fault("spans_type", f"`spans` must be a list (empty: no entity), not {json_type(spans)}", "spans")
    elif isinstance(text, str):
        faults = [fault for index, span in enumerate(spans) for fault in _check_span(span, text, f"spans[{index}]")]
        yield from faults or _check_together(spans, words_of_text(text))


def _check_span(span: Any, text: str, where: str) -> Iterator[Fault]:
    if not isinstance(span, dict) or not span.keys() >= SPAN_KEYS:
        example = '{"start": 0, "end": 6, "label": "LOC"}'
        yield Fault("span_form", f"a span must be an object such as {example}, in characters of `text`", where)
        return
    start, end, label = span["start"], span["end"], span["label"]
    if not isinstance(label, str) or not label.strip() or label != label.strip():
        yield Fault("span_label", "the `label` of a span must be a text without space around it", f"{where}.label")
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end)):
        yield Fault("span_place", "`start` and `end` of a span must be whole numbers of characters", where)
    elif not 0 <= start < end <= len(text):
        place = f"characters {start} to {end}, and the text has {len(text)}"
        yield Fault("span_place", f"a span is not in its text: {place}; count characters from 0, `end` excluded", where)
    elif not text[start:end].strip():
        yield Fault("span_place", "a span covers only space; remove it or correct its place", where)


def _check_together(spans: Sequence[Mapping[str, Any]], words: Words) -> Iterator[Fault]:
    ordered = sorted(enumerate(spans), key=lambda item: (item[1]["start"], item[1]["end"]))
    for (_, before), (index, after) in pairwise(ordered):
        if after["start"] < before["end"]:
            text = "two spans overlap, and a word can have one label only; keep one of them"
            yield Fault("span_overlap", text, f"spans[{index}]")
            return
        if set(_touched(words, before)) & set(_touched(words, after)):
            text = "two spans share a word, and a word can have one label only; correct where they begin and end"
            yield Fault("span_overlap", text, f"spans[{index}]")
            return
    for index, span in ordered:
        touched = _touched(words, span)
        start, end = words.of(touched[0], touched[-1])
        if words.text[start:end].strip() != words.text[span["start"] : span["end"]].strip():
            text = "a span begins or ends within a word; the whole word is taken"
            yield Fault("span_boundary", text, f"spans[{index}]", severity="warning")


def _unknown_keys(row: Mapping[str, Any], known: set[str]) -> Iterator[Fault]:
    for key in row:
        if key not in known and key != "id":
            text = f"the key {plain_word(key)} beside {' and '.join(sorted(known))} is not used; it is ignored"
            yield Fault("unknown_key", text, severity="warning")


def _hint(row: Mapping[str, Any]) -> str:
    for name, ours in (("ner_tags", "tags"), ("labels", "tags"), ("words", "tokens"), ("entities", "spans")):
        if name in row:
            return f" (is `{name}` what is meant? set dataset.columns.{ours}: {name})"
    return ""
