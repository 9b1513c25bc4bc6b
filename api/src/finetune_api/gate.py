"""The gate: pure judgement of an evaluation by the rules of the spec."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_api.conditions import GateVerdict
from finetune_api.evaluation import Baseline, GateRule
from finetune_api.judge import JUDGE_CHECK
from finetune_api.measured import EvaluationStatus, GateStatus
from finetune_api.tasks import Metric

ROUNDING = 1e-9  # 0.5 to 0.6 is 19.999999999999996 % in binary
NAMES = {
    Baseline.BASE: "the base",
    Baseline.FEW_SHOT: "the few-shot prompt",
    Baseline.RETRIEVAL: "the retrieval prompt",
    Baseline.PREVIOUS: "run {}",
}


def judge(rules: Sequence[GateRule], evaluation: EvaluationStatus) -> GateStatus:
    """Passed when every rule holds. One sentence a rule, whether it held or not."""
    results = [_check(rule, evaluation) for rule in rules]
    verdict = GateVerdict.PASSED if all(ok for ok, _ in results) else GateVerdict.FAILED
    return GateStatus(verdict=verdict, reasons=[text for _, text in results])


def _check(rule: GateRule, evaluation: EvaluationStatus) -> tuple[bool, str]:
    if rule.check is not None:
        return _check_answers(rule.check, rule.min_share or "0%", evaluation)
    if rule.benchmark is not None:
        return _check_benchmark(rule, rule.benchmark, evaluation)
    assert rule.metric is not None, "a rule has a metric, a check or a benchmark"
    if evaluation.tuned is None:
        return False, f"{rule.metric}: the tuned model was not measured"
    tuned = evaluation.tuned.value(rule.metric)
    if tuned is None:
        return False, f"{rule.metric}: not measured, because no held-out example has what it needs"
    return _check_bound(rule, rule.metric, tuned) or _check_improvement(rule, rule.metric, tuned, evaluation)


def _check_bound(rule: GateRule, name: str, tuned: float) -> tuple[bool, str] | None:
    """By `max` or `min`; None when the rule has neither."""
    if rule.max is not None:
        ok = tuned <= float(rule.max)
        return ok, f"{name} {tuned:.4g} is {'at most' if ok else 'above'} {rule.max}"
    if rule.min is not None:
        ok = tuned >= float(rule.min)
        return ok, f"{name} {tuned:.4g} is {'at least' if ok else 'below'} {rule.min}"
    return None


def _check_improvement(rule: GateRule, metric: Metric, tuned: float, evaluation: EvaluationStatus) -> tuple[bool, str]:
    wanted = _percent(rule.min_improvement or "0%")
    against = rule.against or Baseline.BASE
    if against is Baseline.PREVIOUS and evaluation.previous_run is None:
        return True, f"{metric}: there is no earlier promoted run to compare with"
    name = NAMES[against].format(evaluation.previous_run)
    scores = evaluation.scores(against)
    found = scores.value(metric) if scores else None
    if found is None:
        return False, f"{metric}: {name} was not measured"
    percent = _percent_better(found, tuned, metric.lower_is_better)
    ok = percent >= wanted - ROUNDING
    measured = f"{metric} {tuned:.4g} against {name}'s {found:.4g}"
    return ok, f"{measured}: {percent:+.1f} % improvement, at least {wanted:g} % wanted"


def _check_benchmark(rule: GateRule, task: str, evaluation: EvaluationStatus) -> tuple[bool, str]:
    found = next((each for each in evaluation.benchmarks if each.task == task), None)
    if found is None:
        return False, f"{task}: not measured"
    name = f"{task} {found.metric or ''}".rstrip()
    bound = _check_bound(rule, name, found.tuned)
    if bound is not None:
        return bound
    allowed = _percent(rule.max_drop or "0%")
    percent = _percent_better(found.base, found.tuned, found.lower_is_better)
    ok = percent >= -allowed - ROUNDING
    measured = f"{name} {found.tuned:.4g} against the base's {found.base:.4g}"
    return ok, f"{measured}: {percent:+.1f} %, at most {allowed:g} % worse wanted"


def _percent_better(base: float, tuned: float, lower_is_better: bool) -> float:
    """By what share of the base's figure. One of 0 has no share: what is better or worse then is so without bound."""
    gain = base - tuned if lower_is_better else tuned - base
    return 100 * gain / abs(base) if base else (math.copysign(math.inf, gain) if gain else 0.0)


def _check_answers(name: str, share: str, evaluation: EvaluationStatus) -> tuple[bool, str]:
    if name == JUDGE_CHECK:
        return _check_judged(share, evaluation)
    found = next((check for check in evaluation.checks if check.name == name), None)
    if found is None or not found.asked:
        return False, f"{name}: not checked, because nothing was asked"
    wanted, percent = _percent(share), 100 * found.tuned
    ok = percent >= wanted - ROUNDING
    return ok, f"{name}: {percent:.1f} % of {found.asked} answers pass, at least {wanted:g} % wanted"


def _check_judged(share: str, evaluation: EvaluationStatus) -> tuple[bool, str]:
    judged = evaluation.judge
    if judged is None or judged.share is None:
        return False, f"{JUDGE_CHECK}: gave no verdict"
    wanted, percent = _percent(share), 100 * judged.share
    ok = percent >= wanted - ROUNDING
    share_of = f"{percent:.1f} % of {judged.asked} questions"
    return ok, f"{JUDGE_CHECK}: prefers the tuned model in {share_of}, at least {wanted:g} % wanted"


def _percent(text: str) -> float:
    return float(text.rstrip("%"))
