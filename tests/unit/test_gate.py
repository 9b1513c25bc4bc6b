"""The gate: rules and evaluation in, verdict and sentences out."""

from __future__ import annotations

import pytest

from finetune_api.gate import judge
from finetune_api.spec import GateRule, Metric
from finetune_api.status import EvaluationStatus, Scores


def scores(loss: float, accuracy: float = 0.5) -> Scores:
    return Scores(loss=loss, perplexity=2.0**loss, token_accuracy=accuracy)


def rule(metric: Metric = Metric.LOSS, **bound: str) -> GateRule:
    return GateRule(metric=metric, **bound)


BETTER = EvaluationStatus(examples=20, base=scores(2.0, 0.5), tuned=scores(1.9, 0.6))
WORSE = EvaluationStatus(examples=20, base=scores(2.0, 0.5), tuned=scores(2.1, 0.4))
EQUAL = EvaluationStatus(examples=20, base=scores(2.0), tuned=scores(2.0))
ACCURACY = Metric.TOKEN_ACCURACY

TABLE = [
    (rule(min_improvement="0%"), BETTER, True),
    (rule(min_improvement="0%"), EQUAL, True),
    (rule(min_improvement="0%"), WORSE, False),
    (rule(min_improvement="5%"), BETTER, True),
    (rule(min_improvement="5.1%"), BETTER, False),
    (rule(max="1.9"), BETTER, True),
    (rule(max="1.8"), BETTER, False),
    (rule(min="1.9"), BETTER, True),
    (rule(Metric.PERPLEXITY, max="4"), BETTER, True),
    (rule(Metric.PERPLEXITY, max="3"), BETTER, False),
    (rule(ACCURACY, min="0.6"), BETTER, True),
    (rule(ACCURACY, min="0.7"), BETTER, False),
    (rule(ACCURACY, min_improvement="20%"), BETTER, True),
    (rule(ACCURACY, min_improvement="21%"), BETTER, False),
    (rule(ACCURACY, min_improvement="0%"), WORSE, False),
]


@pytest.mark.parametrize(("wanted", "evaluation", "passed"), TABLE)
def test_a_rule(wanted: GateRule, evaluation: EvaluationStatus, passed: bool) -> None:
    gate = judge([wanted], evaluation)
    assert (gate.verdict == "Passed") is passed
    assert len(gate.reasons) == 1
    assert gate.reasons[0].startswith(wanted.metric.value)


def test_no_rule_passes_everything() -> None:
    assert judge([], WORSE).verdict == "Passed"


def test_all_rules_must_hold_and_each_says_how_it_went() -> None:
    gate = judge([rule(max="1.95"), rule(ACCURACY, min="0.9")], BETTER)
    assert gate.verdict == "Failed"
    assert "at most 1.95" in gate.reasons[0]
    assert "below 0.9" in gate.reasons[1]


def test_what_was_not_measured_does_not_pass() -> None:
    assert judge([rule(max="9")], EvaluationStatus()).verdict == "Failed"
    assert judge([rule(min_improvement="0%")], EvaluationStatus(tuned=scores(1.0))).verdict == "Failed"
    assert judge([rule(max="9")], EvaluationStatus(tuned=scores(1.0))).verdict == "Passed"


def test_a_base_of_zero_cannot_be_improved_in_percent() -> None:
    zero = EvaluationStatus(base=scores(0.0, 0.0), tuned=scores(0.0, 0.3))
    assert judge([rule(ACCURACY, min_improvement="50%")], zero).verdict == "Passed"
    assert judge([rule(min_improvement="0%")], zero).verdict == "Passed"
    assert judge([rule(min_improvement="1%")], zero).verdict == "Failed"
