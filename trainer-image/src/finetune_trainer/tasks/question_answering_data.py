"""Lines of the task QuestionAnswering: a question, a context, and where the answers stand in it, as in SQuAD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.problems import Fault, json_type, plain_word

FORM = '`answers` must be {"text": [...], "answer_start": [...]}, a list of texts, or one text; empty: no answer'
OTHER_TASK = "this task only points at words of the context; correct the answer, or use the task Seq2Seq"
SQUAD_KEYS = {"id", "title", "is_impossible", "plausible_answers"}  # of SQuAD's files, and not needed


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """`start`: its first character in the context, None where the data does not say."""

    text: Any
    start: Any = None


def check_line(row: Mapping[str, Any]) -> list[Fault]:
    """Everything wrong with the line. Without an error among it, `normalise_line` takes it."""
    faults = [*_check_texts(row), *_unknown_keys(row)]
    given = read_answers(row.get("answers"))
    if "answers" not in row and not row.get("is_impossible"):
        missing = "the line has no `answers`; write an empty list where the context has no answer"
        return [*faults, Fault("missing_answers", missing)]
    if given is None:
        return [*faults, Fault("answers_form", f"{FORM}; it is {json_type(row['answers'])} of another form", "answers")]
    if row.get("is_impossible") and given:
        text = "`is_impossible` is true and there are answers; remove one of the two"
        return [*faults, Fault("impossible_answer", text, "answers")]
    if isinstance(row.get("context"), str):
        for index, answer in enumerate(given):
            faults.extend(_check_answer(answer, row["context"], f"answers[{index}]"))
    return faults


def read_answers(value: Any) -> list[GivenAnswer] | None:
    """The answers of whatever form; None when it has none of the forms."""
    if value is None:
        return []
    if isinstance(value, str):
        return [GivenAnswer(value)]
    if isinstance(value, list):
        if all(isinstance(one, dict) and "text" in one for one in value):
            return [GivenAnswer(one["text"], one.get("answer_start")) for one in value]
        return None if any(isinstance(one, dict | list) for one in value) else [GivenAnswer(one) for one in value]
    if not isinstance(value, dict) or not isinstance(value.get("text"), list):
        return None
    texts = value["text"]
    starts = value.get("answer_start", [None] * len(texts))
    if not isinstance(starts, list) or len(starts) != len(texts):
        return None
    return [GivenAnswer(text, start) for text, start in zip(texts, starts, strict=True)]


def normalise_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"question", "context", "answers": {"text": [...], "answer_start": [...]}}, without space around answers."""
    context = row["context"]
    texts, starts = [], []
    for answer in read_answers(row.get("answers")) or []:
        start = context.find(answer.text) if answer.start is None else answer.start
        text = answer.text.strip()
        texts.append(text)
        starts.append(start + answer.text.index(text))
    return {"question": row["question"], "context": context, "answers": {"text": texts, "answer_start": starts}}


def _check_texts(row: Mapping[str, Any]) -> Iterator[Fault]:
    for key in ("question", "context"):
        value = row.get(key)
        if key not in row:
            text = f"the line has no `{key}`; it needs question, context and answers{_hint(row)}"
            yield Fault(f"missing_{key}", text)
        elif not isinstance(value, str):
            yield Fault(f"{key}_type", f"`{key}` must be a text, not {json_type(value)}", key)
        elif not value.strip():
            yield Fault(f"empty_{key}", f"`{key}` is empty, so there is nothing to learn; remove the line", key)


def _hint(row: Mapping[str, Any]) -> str:
    if "paragraphs" in row or "data" in row:
        return "; this is SQuAD's nested form: give it as one JSON document, or write one line a question"
    return ""


def _check_answer(answer: GivenAnswer, context: str, where: str) -> Iterator[Fault]:
    text, start = answer.text, answer.start
    if not isinstance(text, str):
        yield Fault("answer_type", f"an answer must be a text, not {json_type(text)}; {FORM}", where)
    elif not text.strip():
        note = "an answer is empty; write an empty list `answers` where the context has no answer"
        yield Fault("empty_answer", note, where)
    elif start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        yield Fault("answer_start", "`answer_start` must be a number of characters, 0 or more", where)
    elif text not in context:
        yield _not_there(text, context, where)
    elif start is None:
        if context.count(text) > 1:
            note = "an answer stands at several places of its context, and the first is learned; give `answer_start`"
            yield Fault("answer_places", note, where, severity="warning")
    elif not context.startswith(text, start):
        yield _elsewhere(text, start, context, where)


def _not_there(text: str, context: str, where: str) -> Fault:
    if text.casefold() in context.casefold():
        note = "the answer is in its context only with other capitals; write it as the context does"
        return Fault("answer_not_in_context", note, where)
    if "".join(text.split()) in "".join(context.split()):
        note = "the answer is in its context only with other spaces or line breaks; write it as the context does"
        return Fault("answer_not_in_context", note, where)
    return Fault("answer_not_in_context", f"the answer is not in its context, and {OTHER_TASK}", where)


def _elsewhere(text: str, start: int, context: str, where: str) -> Fault:
    there = context.find(text)
    if len(context[:there].encode()) == start:
        note = f"`answer_start` {start} counts bytes; count characters: {there}"
    else:
        count = context.count(text)
        places = f"the first of {count} places is {there}" if count > 1 else f"it stands at {there}"
        note = f"the answer does not stand at `answer_start` {start}; {places}: correct it, or leave `answer_start` out"
    return Fault("answer_start", note, where)


def _unknown_keys(row: Mapping[str, Any]) -> Iterator[Fault]:
    for key in row:
        if key not in {"question", "context", "answers", *SQUAD_KEYS}:
            text = f"the key {plain_word(key)} beside question, context and answers is not used; it is ignored"
            yield Fault("unknown_key", text, severity="warning")


def expected_answers(normal: Mapping[str, Any]) -> Sequence[str]:
    """All answers of a normalised line; empty: the context has none."""
    texts: list[str] = normal["answers"]["text"]
    return texts
