"""What the conditions say: one judgement a condition, from the run, the gate and the endpoint."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.conditions import ConditionType as Type
from finetune_api.conditions import GateVerdict, RunResult, Stage
from finetune_api.status import Failure, ModelStatus, Rollback, RunStatus
from finetune_operator.conditions import Judgement, sentence
from finetune_operator.runs import ended_with_failure, is_done
from finetune_operator.stages.approval import how_to_approve
from finetune_operator.stages.job_stage import JobStage
from finetune_operator.stages.pipeline import JUDGE, PACKAGE, PIPELINE, STAGES
from finetune_operator.stages.serve import Serving
from finetune_operator.stages.suspension import Pause, pause_words, suspended

GATE_FAILED, AWAITING_APPROVAL = RunResult.GATE_FAILED.value, RunResult.AWAITING_APPROVAL.value


@dataclass(frozen=True, slots=True)
class Outcome:
    """A pass's result, as far as the conditions depend on it."""

    run: RunStatus
    stage: Stage
    wanted: ModelStatus | None
    promoted: bool
    rollback: Rollback | None
    serving: Serving
    replicas: int
    claim: str = ""  # that the spec names
    exports: bool = False  # whether any, or a tracker, is asked for
    judge: bool = False  # whether one is asked
    suspend: bool = False
    pause: Pause | None = None
    budget: Judgement | None = None  # None: there is none
    asides: tuple[str, ...] = ()  # trouble that concerns no run
    earlier: str = ""  # that an earlier run waits for approval


def judgements(outcome: Outcome) -> list[Judgement]:
    """All conditions, in the order in which they are printed."""
    run = outcome.run
    return [
        *_summary(outcome),
        *(_stage(run, stage) for stage in PIPELINE),
        *([_stage(run, JUDGE)] if outcome.judge else ()),
        _promoted(outcome),
        _serving(outcome),
        *_packaged(outcome),
        *([outcome.budget] if outcome.budget else ()),
        *([suspended(run, outcome.stage, outcome.pause)] if outcome.suspend else ()),
    ]


def _summary(outcome: Outcome) -> list[Judgement]:
    """Ready, Reconciling, Stalled. Ready is about the present spec; whether something answers says Serving."""
    which, reason, text = _verdict(outcome)
    parts = (text, outcome.earlier, *outcome.asides, _claim_words(outcome))
    return _three(which, reason, " ".join(part for part in parts if part))


def _verdict(outcome: Outcome) -> tuple[str, str, str]:
    """The one of the three that is true (another word: none), its reason, and its sentence."""
    failure = outcome.run.failure
    if failure is not None and not failure.waiting:
        return "Stalled", failure.reason, _failed_words(outcome, failure)
    settling = outcome.pause is Pause.SETTLING
    if outcome.pause is not None and not settling and not outcome.suspend and failure is not None:
        which = "Reconciling" if outcome.pause is Pause.ENDING else "Stalled"
        return which, failure.reason, _failed_words(outcome, failure)
    if outcome.pause is not None:
        reason, text = pause_words(outcome.run, outcome.stage, outcome.pause)
        # Nothing is under way and nothing is wrong: none of the three is true.
        which = reason if outcome.pause is Pause.HELD else "Reconciling"
        return which, reason, f"{text} {_still(outcome)}".strip()
    if outcome.stage is not Stage.SERVE or not outcome.serving.settled:
        waits = failure is not None and not _is_elsewhere(outcome, failure)
        reason = failure.reason if failure is not None and waits else _doing(outcome.stage)[0]
        return "Reconciling", reason, _going_words(outcome, failure)
    if outcome.wanted is None:
        reason, text = _unpromoted(outcome.run)
        # Whoever waits for a word is not stalled: none of the three is true.
        if not outcome.earlier:
            text = f"{text} No earlier run can serve."
        return "Stalled" if reason == GATE_FAILED else reason, reason, text
    if outcome.replicas == 0:
        text = f"Run {outcome.wanted.run} is trained and kept; serving.replicas is 0. {_beside(outcome)}"
        return "Ready", "Trained", text.strip()
    text = f"Run {outcome.wanted.run} answers as {outcome.wanted.name!r}. {_beside(outcome)}"
    return "Ready", "Serving", text.strip()


def _doing(stage: Stage) -> tuple[str, str]:
    """What goes on, in a word and in a sentence."""
    if stage is Stage.SERVE:
        return "RollingOut", "is being rolled out"
    return STAGES[stage].words.doing, STAGES[stage].words.sentence


def _claim_words(outcome: Outcome) -> str:
    """That the run stays where it is, where the spec names another claim by now."""
    own = outcome.run.claim_name
    if own is None or outcome.claim in ("", own):
        return ""
    number = outcome.run.number
    return f"output.claimName {outcome.claim!r} is used from the next run on; run {number} stays on {own!r}."


def _three(which: str, reason: str, text: str) -> list[Judgement]:
    def truth(kind: Type) -> Judgement:
        if kind.value == which:
            return kind, "True", reason, text
        return (kind, "False", reason, text) if kind is Type.READY else (kind, "False", f"Not{kind.value}", "")

    return [truth(Type.READY), truth(Type.RECONCILING), truth(Type.STALLED)]


def _failed_words(outcome: Outcome, failure: Failure) -> str:
    where = f"{failure.stage} of run {outcome.run.number}" if failure.stage else f"Run {outcome.run.number}"
    if failure.stage is Stage.SERVE:
        where = "Serving"
    parts = (sentence(f"{where}: {failure.message}"), sentence(failure.advice, capital=True), _still(outcome))
    return " ".join(part for part in parts if part)


def _going_words(outcome: Outcome, failure: Failure | None) -> str:
    run = outcome.run.number if outcome.stage is not Stage.SERVE or outcome.wanted is None else outcome.wanted.run
    text = f"Run {run} {_doing(outcome.stage)[1]}."
    if failure is not None:
        words = f"{failure.reason}: {sentence(failure.message)} {sentence(failure.advice, capital=True)}".rstrip()
        text += f" {'Serving has trouble' if _is_elsewhere(outcome, failure) else 'It waits'}: {words}"
    return " ".join(part for part in (text, _still(outcome)) if part)


def _is_elsewhere(outcome: Outcome, failure: Failure) -> bool:
    """Whether it is trouble of the old run's server, which is told, but is not what a new run waits for."""
    return failure.stage is Stage.SERVE and outcome.stage is not Stage.SERVE


def _still(outcome: Outcome) -> str:
    model = outcome.serving.model
    if model is None or not outcome.serving.available:
        return ""
    return f"Run {model.run} keeps serving."


def _beside(outcome: Outcome) -> str:
    """Why the newest run is not the one that answers, where it is not."""
    run, wanted = outcome.run, outcome.wanted
    if wanted is None or wanted.run == run.number:
        return ""
    if not outcome.promoted:
        return _unpromoted(run)[1]
    return f"serving.run holds it there; the newest run is {run.number}."


def _unpromoted(run: RunStatus) -> tuple[str, str]:
    """Reason and sentence of a run that was judged and shall not answer."""
    if run.gate is not None and run.gate.verdict is GateVerdict.PASSED:
        text = f"Run {run.number} passed its gate and {how_to_approve(run.number, run.model)}"
        return AWAITING_APPROVAL, text
    reasons = "; ".join(run.gate.reasons) if run.gate else ""
    return GATE_FAILED, f"Run {run.number} did not pass its gate: {reasons}."


def _stage(run: RunStatus, stage: JobStage) -> Judgement:
    words, failure = stage.words, run.failure
    if is_done(run, stage.stage):
        return words.condition, "True", words.reached, words.result(run)
    if ended_with_failure(run, stage.stage) and failure is not None and failure.stage is stage.stage:
        return words.condition, "False", failure.reason, failure.message
    pending = ("Pending", f"{stage.stage} of run {run.number} has not ended.")
    return words.condition, "Unknown", *(words.again(run) or pending)


def _packaged(outcome: Outcome) -> list[Judgement]:
    """Nothing where no export is asked for."""
    run = outcome.run
    if not outcome.exports:
        return []
    if run.package is None and run.gate is not None and not outcome.promoted:
        return [(Type.PACKAGED, "False", "NotPromoted", f"{_unpromoted(run)[1]} Only promoted runs are exported.")]
    return [_stage(run.model_copy(update={"failure": run.package and run.package.failure}), PACKAGE)]


def _promoted(outcome: Outcome) -> Judgement:
    run, rollback = outcome.run, outcome.rollback
    if rollback is not None:
        text = f"Run {run.number} did not take over. {rollback.reason}: {sentence(rollback.message)}"
        return Type.PROMOTED, "False", RunResult.ROLLED_BACK.value, text
    if run.gate is None and not outcome.promoted:
        return Type.PROMOTED, "Unknown", "Pending", f"Run {run.number} has not reached its gate."
    reasons = "; ".join(run.gate.reasons) if run.gate else ""
    passed = run.gate is None or run.gate.verdict is GateVerdict.PASSED
    if passed and outcome.promoted:
        return Type.PROMOTED, "True", "GatePassed", reasons or f"Run {run.number} passed its gate."
    if outcome.promoted:
        text = f"Run {run.number} passed the gate of its time; by the present one it would fail: {reasons}."
        return Type.PROMOTED, "True", "PromotedBefore", text
    return Type.PROMOTED, "False", *_unpromoted(run)


def _serving(outcome: Outcome) -> Judgement:
    serving = outcome.serving
    if serving.available and serving.model is not None:
        return Type.SERVING, "True", "Available", f"Run {serving.model.run} answers as {serving.model.name!r}."
    if outcome.wanted is None:
        return Type.SERVING, "False", "NoModel", "There is no promoted model yet."
    if outcome.replicas == 0:
        return Type.SERVING, "False", "NoReplicas", "serving.replicas is 0."
    reason = serving.finding.reason if serving.finding else "NotAvailable"
    text = serving.finding.message if serving.finding else f"No server of run {outcome.wanted.run} is available yet."
    return Type.SERVING, "False", reason, text
