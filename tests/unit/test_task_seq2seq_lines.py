"""What a line of Seq2Seq data may look like, and what is said of one that may not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.tiny_seq2seq import make_tokenizer

from finetune_trainer.tasks.seq2seq_data import Seq2SeqFormat, check_pair

# (line, check, where, part of the message)
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({"target": "b"}, "missing_source", "", "no `source`"),
    ({"source": "a"}, "missing_target", "", "dataset.columns"),
    ({"source": "a", "target": None}, "target_type", "target", "not null"),
    ({"source": ["a"], "target": "b"}, "source_type", "source", "not a list"),
    ({"source": 3, "target": "b"}, "source_type", "source", "not a number"),
    ({"source": "", "target": "b"}, "empty_source", "source", "nothing to read"),
    ({"source": "a", "target": " \n"}, "empty_target", "target", "nothing to learn"),
    ({"messages": []}, "wrong_task", "", "spec.task to Chat"),
    ({"prompt": "a", "completion": "b"}, "wrong_task", "", "spec.task to Completion"),
    ({"translation": {"en": "a", "fr": "b"}}, "nested_pair", "", "one direction a line"),
]


@pytest.mark.parametrize(("row", "check", "where", "words"), BAD)
def test_a_bad_line_is_refused_with_place_and_remedy(row: dict[str, Any], check: str, where: str, words: str) -> None:
    faults = check_pair(row)
    assert [(fault.check, fault.where, fault.severity) for fault in faults] == [(check, where, "error")]
    assert words in faults[0].message


def test_both_sides_are_complained_about_at_once() -> None:
    assert [fault.check for fault in check_pair({})] == ["missing_source", "missing_target"]


def test_a_key_beside_the_pair_is_a_warning_and_does_not_reach_the_example() -> None:
    row = {"source": "a", "target": "b", "id": 7}
    assert [(fault.check, fault.severity) for fault in check_pair(row)] == [("unknown_key", "warning")]
    assert Seq2SeqFormat(make_tokenizer("t5"), re.compile(r"(?!)")).normalise(row) == {"source": "a", "target": "b"}


def test_what_came_before_in_completion_data_is_named_in_the_columns() -> None:
    """The remedy that the message names is a valid one."""
    words = check_pair({"prompt": "a", "completion": "b"})[0].message
    assert "dataset.columns to {source: prompt, target: completion}" in words
