"""SQuAD's nested articles as flat rows: {"question", "context", "answers": {"text", "answer_start"}}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_trainer.data.problems import Fault, json_type

Row = tuple[dict[str, Any], Fault | None]


def is_article(item: Any) -> bool:
    return isinstance(item, dict) and "paragraphs" in item


def questions_of(article: Any, where: str) -> Iterator[Row]:
    """(row, None) of every question, ({}, fault) where the article is of another form. Whether the answers are in
    their context is the task's to check."""
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield {}, _fault("an article must be an object with a list `paragraphs`", where)
        return
    for index, paragraph in enumerate(paragraphs):
        yield from _paragraph(paragraph, f"{where}.paragraphs[{index}]")


def _paragraph(paragraph: Any, where: str) -> Iterator[Row]:
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list) or "context" not in paragraph:
        yield {}, _fault("a paragraph must be an object with `context` and a list `qas`", where)
        return
    for index, entry in enumerate(questions):
        yield _question(entry, paragraph["context"], f"{where}.qas[{index}]")


def _question(entry: Any, context: Any, where: str) -> Row:
    if not isinstance(entry, dict) or "question" not in entry:
        return {}, _fault(f"a question must be an object with `question`, not {json_type(entry)}", where)
    answers = entry.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(one, dict) and "text" in one for one in answers):
        return {}, _fault("`answers` must be a list of objects with `text` and `answer_start`", where)
    texts = [one["text"] for one in answers]
    starts = [one.get("answer_start") for one in answers]
    row = {"question": entry["question"], "context": context, "answers": {"text": texts, "answer_start": starts}}
    return ({**row, "is_impossible": True} if entry.get("is_impossible") else row), None


def _fault(text: str, where: str) -> Fault:
    return Fault("squad_form", f"the file is in SQuAD's nested form, and {text}", where)
