"""Near-duplicates: what is found, what is not, and that memory is bounded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from finetune_trainer.data.quality import near_duplicates
from finetune_trainer.data.quality.near_duplicates import Comparison, Pair, compared_text, word_pairs

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("ra", "lo", "ti", "nu")]
INSTRUCTION = "Answer the question of the customer in a friendly voice and never name a price or a hotel"


def text(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def pairs(texts: list[str], similarity: float = 0.8) -> list[tuple[int, int]]:
    comparison = Comparison(similarity)
    for each in texts:
        comparison.add(each)
    return [(pair.index, pair.first) for pair in comparison.pairs()]


def test_a_changed_word_is_nearly_the_same_and_another_text_is_not() -> None:
    texts = [text(seed) for seed in range(30)]
    changed = texts[3].replace(texts[3].split()[20], "otherwise")
    assert pairs([*texts, changed, text(99)]) == [(30, 3)]


def test_case_and_what_stands_between_words_do_not_count() -> None:
    assert pairs(["The harbour is open, all year!", "the harbour IS open - all year"]) == [(1, 0)]


@pytest.mark.parametrize("template", [INSTRUCTION + ": {}", "{}\n" + INSTRUCTION])
def test_what_all_examples_share_does_not_make_them_alike(template: str) -> None:
    texts = [template.format(text(seed, 4)) for seed in range(60)]
    assert pairs(texts) == []
    assert pairs([*texts, texts[7].upper()]) == [(60, 7)]


def test_the_first_of_a_group_is_the_one_that_stays() -> None:
    base = text(1, 60)
    group = [f"{base} {ending}" for ending in ("one", "two", "three")]
    assert pairs([text(5), *group]) == [(2, 1), (3, 1)]


def test_many_texts_are_compared_in_the_form_in_which_the_first_ones_were() -> None:
    """The first SAMPLED wait until it is known what all share; a copy of one of them may come long after."""
    texts = [f"{INSTRUCTION} {text(seed, 12)}" for seed in range(near_duplicates.SAMPLED + 50)]
    assert pairs([*texts, texts[0].upper(), texts[-1].upper()]) == [(len(texts), 0), (len(texts) + 1, len(texts) - 1)]


def test_scripts_that_do_not_part_words_are_compared_by_characters() -> None:
    chinese = "港口全年开放欢迎所有船只进入停泊并补充淡水和食物"
    assert pairs([chinese, f"{chinese}。", "山上的寺庙只在春天和秋天对游客开放请提前预订"]) == [(1, 0)]


@pytest.mark.parametrize("texts", [["", ""], ["!!!", "???"], ["", "?", "\U0001f600"]])
def test_texts_without_words_are_like_nothing_but_themselves(texts: list[str]) -> None:
    assert pairs(texts) == [(index, 0) for index in range(1, len(texts)) if texts[index] == texts[0]]


def test_none_and_one_are_no_pair() -> None:
    assert pairs([]) == []
    assert pairs(["alone"]) == []


def test_a_word_of_100_kilobytes_is_one_word() -> None:
    assert len(word_pairs("x" * 100_000)) == 1


def test_the_similarity_is_about_that_of_the_word_pairs() -> None:
    comparison = Comparison(0.5)
    first = text(1, 400)
    second = " ".join([*first.split()[:300], *text(2, 100).split()])
    for each in (first, second):
        comparison.add(each)
    (pair,) = comparison.pairs()
    one, other = set(word_pairs(first).tolist()), set(word_pairs(second).tolist())
    assert pair.similarity == pytest.approx(len(one & other) / len(one | other), abs=0.15)


def test_a_lower_similarity_finds_more() -> None:
    first = text(1, 60)
    second = " ".join([*first.split()[:48], *text(2, 12).split()])
    assert pairs([first, second], 0.9) == []
    assert pairs([first, second], 0.5) == [(1, 0)]


def test_what_comes_too_late_is_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_COMPARED", 3)
    comparison = Comparison()
    assert [comparison.add("the same text") for _ in range(5)] == [True, True, True, False, False]
    assert (len(comparison), comparison.left_out) == (3, 2)
    assert comparison.pairs() == [Pair(1, 0, 1.0), Pair(2, 0, 1.0)]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"city": "Rome"}}}


@pytest.mark.parametrize(
    ("normal", "expected"),
    [
        ({"text": "a text", "label": "spam"}, "a text"),
        ({"question": "who?", "context": "a page", "answers": {"text": ["he"], "answer_start": [3]}}, "who?\nhe"),
        ({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]}, "hi"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}], "tools": [{"type": "function"}]}, "Rome"),
    ],
)
def test_what_is_compared_is_what_differs_between_examples(normal: dict[str, Any], expected: str) -> None:
    assert compared_text(normal) == expected
