"""How much of the expected text a generated one has in common with it: BLEU, chrF and ROUGE-L over a set of outputs.

BLEU and chrF by sacrebleu, ROUGE-L by rouge-score, with their own defaults but for two: languages that write without
spaces are compared character by character, and ROUGE's words are those of any script (its default tokenizer drops
everything but a-z and 0-9, so that a Greek or Russian text would always score 0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from finetune_api.tasks import Metric

# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han, and their extensions: scripts without spaces between words.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORDS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
UNSPACED_CHARACTER = re.compile(rf"[{UNSPACED}]")
# sacrebleu's own tokenizers: that of WMT, and one character a token.
SPACED_TOKENIZER, UNSPACED_TOKENIZER = "13a", "char"


class AnyScriptWords:
    """rouge-score's tokenizer interface: lower-case words of letters and digits of any script."""

    def tokenize(self, text: str) -> list[str]:
        return WORDS.findall(text.lower())


def text_overlap(outputs: Sequence[str], references: Sequence[str]) -> Mapping[Metric, float]:
    """BLEU and chrF of the whole corpus, 0 to 100, and the mean ROUGE-L F1, 0 to 1. Equal lengths, at least one."""
    if not outputs or len(outputs) != len(references):
        raise ValueError(f"{len(outputs)} outputs for {len(references)} references")
    return {
        Metric.BLEU: bleu(outputs, references),
        Metric.CHRF: chrf(outputs, references),
        Metric.ROUGE_L: rouge_l(outputs, references),
    }


def chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF  # this and the other two take a second to import

    return float(CHRF().corpus_score(list(outputs), [list(references)]).score)


def bleu(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU with 4-grams, 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize=bleu_tokenizer(references))
    return float(metric.corpus_score(list(outputs), [list(references)]).score)


def bleu_tokenizer(references: Sequence[str]) -> str:
    """By what most letters of the references are: a sentence without spaces would be one word otherwise."""
    unspaced = sum(len(UNSPACED_CHARACTER.findall(text)) for text in references)
    letters = sum(character.isalnum() for text in references for character in text)
    return UNSPACED_TOKENIZER if 2 * unspaced > letters else SPACED_TOKENIZER


def rouge_l(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Mean F1 of the longest common subsequence of words, without stemming, 0 to 1."""
    from rouge_score import rouge_scorer  # type: ignore[import-untyped]

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=AnyScriptWords())
    scores = [
        scorer.score(reference, output)["rougeL"].fmeasure
        for output, reference in zip(outputs, references, strict=True)
    ]
    return float(sum(scores) / len(scores))
