"""The gate: pure judgement of an evaluation by the rules of the spec."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.conditions import GateVerdict
from finetune_api.spec import GateRule
from finetune_api.status import EvaluationStatus, GateStatus


def judge(rules: Sequence[GateRule], evaluation: EvaluationStatus) -> GateStatus:
    """Passed when every rule holds. One sentence a rule, whether it held or not."""
    results = [_check(rule, evaluation) for rule in rules]
    verdict = GateVerdict.PASSED if all(ok for ok, _ in results) else GateVerdict.FAILED
    return GateStatus(verdict=verdict, reasons=[text for _, text in results])


def _check(rule: GateRule, evaluation: EvaluationStatus) -> tuple[bool, str]:
    if evaluation.tuned is None:
        return False, f"{rule.metric}: the tuned model was not measured"
    tuned = evaluation.tuned.value(rule.metric)
    if tuned is None:
        return False, f"{rule.metric}: not measured, because no held-out example has what it needs"
    if rule.max is not None:
        ok = tuned <= float(rule.max)
        return ok, f"{rule.metric} {tuned:.4g} is {'at most' if ok else 'above'} {rule.max}"
    if rule.min is not None:
        ok = tuned >= float(rule.min)
        return ok, f"{rule.metric} {tuned:.4g} is {'at least' if ok else 'below'} {rule.min}"
    return _check_improvement(rule, tuned, evaluation)


def _check_improvement(rule: GateRule, tuned: float, evaluation: EvaluationStatus) -> tuple[bool, str]:
    wanted = float((rule.min_improvement or "0%").rstrip("%"))
    if evaluation.base is None:
        return False, f"{rule.metric}: the base model was not measured"
    base = evaluation.base.value(rule.metric)
    if base is None:
        return False, f"{rule.metric}: the base model was not measured"
    gain = base - tuned if rule.metric.lower_is_better else tuned - base
    # A base of 0 cannot be improved by a share of itself; any gain then counts as enough.
    percent = 100 * gain / abs(base) if base else (float("inf") if gain > 0 else 0.0)
    ok = percent >= wanted - 1e-9  # 0.5 to 0.6 is 19.999999999999996 % in binary
    measured = f"{rule.metric} {tuned:.4g} against the base's {base:.4g}"
    return ok, f"{measured}: {percent:+.1f} % improvement, at least {wanted:g} % wanted"
