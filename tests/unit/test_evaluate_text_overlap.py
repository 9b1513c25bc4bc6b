"""BLEU, chrF and ROUGE-L: the figures of the libraries, and in any script."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from sacrebleu import corpus_bleu, corpus_chrf

from finetune_api.tasks import Metric
from finetune_trainer.evaluation.text_overlap import bleu_tokenizer, text_overlap

TEXTS = [
    "The boats leave before the sun is up.",
    "Лодки уходят до восхода солнца в море.",
    "船在太阳升起之前离开港口。",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_text_has_everything_in_common_in_any_script(text: str) -> None:
    assert text_overlap([text], [text]) == pytest.approx({Metric.BLEU: 100, Metric.CHRF: 100, Metric.ROUGE_L: 1})


def test_overlap_is_that_of_the_libraries_on_plain_english() -> None:
    outputs = ["the cat sat on the mat today", "dogs run"]
    references = ["the cat is on the mat today", "dogs run fast"]
    stock = RougeScorer(["rougeL"])
    rouge = [stock.score(r, o)["rougeL"].fmeasure for o, r in zip(outputs, references, strict=True)]
    assert text_overlap(outputs, references) == pytest.approx(
        {
            Metric.BLEU: corpus_bleu(outputs, [references]).score,
            Metric.CHRF: corpus_chrf(outputs, [references]).score,
            Metric.ROUGE_L: sum(rouge) / 2,
        }
    )


@pytest.mark.parametrize(("text", "expected"), [(TEXTS[0], "13a"), (TEXTS[1], "13a"), (TEXTS[2], "char"), ("", "13a")])
def test_words_are_characters_where_a_script_has_no_spaces(text: str, expected: str) -> None:
    assert bleu_tokenizer([text]) == expected


def test_an_empty_answer_scores_zero_and_no_answers_are_an_error() -> None:
    assert text_overlap([""], ["a b c d"]) == {Metric.BLEU: 0, Metric.CHRF: 0, Metric.ROUGE_L: 0}
    with pytest.raises(ValueError, match="0 outputs"):
        text_overlap([], [])
