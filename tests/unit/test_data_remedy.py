"""Data that is refused is answered with the file, its columns, what to write, and where all problems stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_api.dataset import Columns
from finetune_api.tasks import Task
from finetune_trainer.data import report
from finetune_trainer.data.chat import check_chat
from finetune_trainer.data.problems import Fault, Findings
from finetune_trainer.data.rows import RowReading
from finetune_trainer.errors import UserInputError
from finetune_trainer.messages import TemplateAbilities


def advice(keys: tuple[str, ...], *checks: str, name: str = "faqs.csv") -> str:
    findings = Findings()
    findings.note_name("train", name)
    findings.note_keys("train", keys)
    findings.add("train", 2, [Fault(check, "the line is wrong") for check in checks])
    with pytest.raises(UserInputError) as caught:
        report.refuse_errors(findings)
    return caught.value.advice


@pytest.mark.parametrize(
    ("keys", "checks", "words"),
    [
        (("text", "stars"), ["missing_label"], "for example dataset.columns: {label: stars}"),
        (("Review", "stars"), ["missing_label", "missing_text"], "dataset.columns: {text: Review, label: stars}"),
        (("q", "a"), ["missing_prompt", "missing_completion"], "dataset.columns: {prompt: q, completion: a}"),
        (("question", "answer"), ["missing_messages"], "Completion with dataset.columns: {prompt: question, compl"),
        (("question", "answer"), ["missing_prompt", "missing_completion"], "{prompt: question, completion: answer}"),
        (("asked", "said"), ["missing_messages"], "Completion with dataset.columns: {prompt: asked, completion: said}"),
        (("asked", "said"), ["missing_messages"], "for Chat call them `instruction` and `output`"),
        (
            ("text", "a secret name"),
            ["missing_label"],
            "correct these lines of faqs.csv (the train data has 'text' and",
        ),
        (("messages",), ["missing_messages"], "correct these lines of faqs.csv (the train data has 'messages')"),
        ((), ["not_json"], "correct these lines of faqs.csv"),
    ],
)
def test_the_advice_says_what_to_write(keys: tuple[str, ...], checks: list[str], words: str) -> None:
    assert words in advice(keys, *checks)
    assert "secret" not in advice(keys, *checks)


def test_there_is_no_other_thing_to_do_where_nothing_is_said_before() -> None:
    assert advice(("messages",), "missing_messages").startswith("correct these lines of faqs.csv")


def test_of_two_files_each_is_named() -> None:
    findings = Findings()
    for file in ("train", "validation"):
        findings.note_name(file, f"{file}.jsonl")
        findings.add(file, 1, [Fault("not_json", "the line is not JSON")])
    with pytest.raises(UserInputError) as caught:
        report.refuse_errors(findings)
    assert caught.value.advice == "correct these lines of train.jsonl (train) and validation.jsonl (validation)"


def test_the_form_of_a_chat_is_shown() -> None:
    [fault] = check_chat({"question": "a"}, TemplateAbilities())
    shown = fault.message.partition("such as ")[2].partition(", and in CSV")[0]
    assert "every line must be a conversation" in fault.message
    assert check_chat(json.loads(shown), TemplateAbilities()) == []


def test_what_is_offered_for_a_csv_works(tmp_path: Path) -> None:
    (tmp_path / "faqs.csv").write_text("instruction,output\nWhere?,Here\n")
    findings = Findings()
    rows = RowReading(Task.CHAT, None, 10_000).rows(tmp_path / "faqs.csv", "faqs.csv", "train", findings)
    assert [row["messages"][1]["content"] for _, row in rows] == ["Here"]
    assert findings.name("train") == "faqs.csv"


def test_a_column_that_is_nearly_right_is_written_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,category\na,b\n")
    rows = RowReading(Task.CLASSIFICATION, Columns(label="categry"), 10_000)
    with pytest.raises(UserInputError) as caught:
        list(rows.rows(tmp_path / "a.csv", "a.csv", "train", Findings()))
    assert "correct dataset.columns.label (columns: {label: category})" in caught.value.advice
