"""The gate: rules and evaluation in, verdict and sentences out."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.gate import judge
from finetune_api.measured import BenchmarkScore, Interval
from finetune_api.spec import GateRule, Metric
from finetune_api.status import CheckScore, EvaluationStatus, Scores


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


BASELINES = EvaluationStatus(
    examples=20, base=scores(4.0), few_shot=scores(3.0), retrieval=scores(2.0), previous=scores(1.5), previous_run=3,
    tuned=scores(1.8),
)  # fmt: skip


@pytest.mark.parametrize(
    ("against", "passed", "name"),
    [
        (None, True, "the base's 4"),
        ("Base", True, "the base's 4"),
        ("FewShot", True, "the few-shot prompt's 3"),
        ("Retrieval", True, "the retrieval prompt's 2"),
        ("Previous", False, "run 3's 1.5"),
    ],
)
def test_a_rule_compares_with_the_baseline_that_it_names(against: str | None, passed: bool, name: str) -> None:
    gate = judge([GateRule.model_validate({"metric": "loss", "minImprovement": "5%", "against": against})], BASELINES)
    assert (gate.verdict == "Passed") is passed
    assert name in gate.reasons[0]


def test_the_first_run_has_nothing_to_be_worse_than_and_one_that_cannot_be_measured_does_not_pass() -> None:
    wanted = [GateRule.model_validate({"metric": "loss", "minImprovement": "0%", "against": "Previous"})]
    first = judge(wanted, EvaluationStatus(examples=20, base=scores(2.0), tuned=scores(1.0)))
    assert (first.verdict, first.reasons) == ("Passed", ["loss: there is no earlier promoted run to compare with"])
    gone = judge(wanted, EvaluationStatus(examples=20, previous_run=3, base=scores(2.0), tuned=scores(1.0)))
    assert (gone.verdict, gone.reasons) == ("Failed", ["loss: run 3 was not measured"])


@pytest.mark.parametrize(("share", "passed"), [("90%", True), ("90.1%", False), ("0%", True)])
def test_a_share_of_the_answers_must_pass_a_check(share: str, passed: bool) -> None:
    measured = EvaluationStatus(tuned=scores(1.0), checks=[CheckScore(name="no-hotel", asked=20, base=0.1, tuned=0.9)])
    gate = judge([GateRule.model_validate({"check": "no-hotel", "minShare": share})], measured)
    assert (gate.verdict == "Passed") is passed
    assert "90.0 % of 20 answers pass" in gate.reasons[0]


def test_a_check_that_nothing_was_asked_for_does_not_pass() -> None:
    wanted = [GateRule.model_validate({"check": "no-hotel", "minShare": "0%"})]
    for found in ([], [CheckScore(name="no-hotel", asked=0, tuned=0.0)]):
        gate = judge(wanted, EvaluationStatus(tuned=scores(1.0), checks=found))
        assert gate.reasons == ["no-hotel: not checked, because nothing was asked"]
        assert gate.verdict == "Failed"


def benchmark(**more: Any) -> BenchmarkScore:
    return BenchmarkScore(
        **{"task": "hellaswag", "metric": "acc", "questions": 100, "base": 0.5, "tuned": 0.48, **more}
    )


@pytest.mark.parametrize(
    ("rule", "score", "passed", "words"),
    [
        ({"maxDrop": "4%"}, {}, True, "hellaswag acc 0.48 against the base's 0.5: -4.0 %, at most 4 % worse wanted"),
        ({"maxDrop": "3.9%"}, {}, False, "-4.0 %"),
        ({"maxDrop": "0%"}, {"tuned": 0.6}, True, "+20.0 %"),
        ({"maxDrop": "5%"}, {"base": 10, "tuned": 10.4, "lower_is_better": True}, True, "-4.0 %"),
        ({"maxDrop": "5%"}, {"base": 10, "tuned": 11, "lower_is_better": True}, False, "-10.0 %"),
        ({"maxDrop": "100%"}, {"base": 0, "tuned": 0}, True, "+0.0 %"),
        ({"maxDrop": "100%"}, {"base": 0, "tuned": 1, "lower_is_better": True}, False, "worse wanted"),
        ({"min": "0.48"}, {}, True, "hellaswag acc 0.48 is at least 0.48"),
        ({"max": "9"}, {"base": 10, "tuned": 11, "lower_is_better": True}, False, "hellaswag acc 11 is above 9"),
    ],
)
def test_a_benchmark_may_drop_so_much_and_no_more(
    rule: dict[str, str], score: dict[str, Any], passed: bool, words: str
) -> None:
    measured = EvaluationStatus(tuned=scores(1.0), benchmarks=[benchmark(**score)])
    gate = judge([GateRule.model_validate({"benchmark": "hellaswag", **rule})], measured)
    assert (gate.verdict == "Passed") is passed
    assert words in gate.reasons[0]


def test_a_benchmark_that_could_not_be_measured_does_not_pass() -> None:
    gate = judge(
        [GateRule.model_validate({"benchmark": "hellaswag", "maxDrop": "99%"})], EvaluationStatus(tuned=scores(1.0))
    )
    assert (gate.verdict, gate.reasons) == ("Failed", ["hellaswag: not measured"])


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "word"),
    [(-0.2, -0.1, False, "worse"), (-0.2, -0.1, True, "better"), (0.1, 0.2, False, "better"), (0.1, 0.2, True, "worse"),
     (-0.1, 0.0, False, "may be chance"), (0.0, 0.0, True, "none")],
)  # fmt: skip
def test_a_change_is_called_certain_only_where_its_interval_is(
    low: float, high: float, lower_is_better: bool, word: str
) -> None:
    assert benchmark(difference=Interval(low=low, high=high), lower_is_better=lower_is_better).change == word
    assert benchmark().change == ""


def test_whether_tuning_was_worth_it_is_said_against_the_best_prompt() -> None:
    def asked(loss: float, tokens: float) -> Scores:
        return scores(loss).model_copy(update={"request_tokens": tokens})

    found = EvaluationStatus(
        examples=20, base=asked(4, 30), few_shot=asked(3, 300), retrieval=asked(2, 310), tuned=asked(1, 30)
    )
    assert found.worth == (
        "Tuning was worth it: a prompt with the nearest examples reaches a loss of 2 with 310 tokens a request, "
        "the tuned model 1 with 30."
    )
    assert "not worth it" in str(found.model_copy(update={"tuned": asked(2.5, 30)}).worth)
    assert "a prompt with no examples reaches" in str(found.model_copy(update={"base": asked(1.5, 30)}).worth)
    assert str(found.model_copy(update={"examples": 9}).worth).startswith("Tuning looks worth it")
    assert found.model_copy(update={"few_shot": None, "retrieval": None}).worth is None
