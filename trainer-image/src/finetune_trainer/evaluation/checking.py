"""What base and tuned are asked, and which of their answers pass the behaviour checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune_api.checks import BehaviourCheck
from finetune_api.evaluation import EvaluationSpec
from finetune_api.measured import CheckScore
from finetune_api.reports import CheckFailure, CheckReport
from finetune_trainer.evaluation.checks import fault
from finetune_trainer.evaluation.questions import choose
from finetune_trainer.tasks.kind import Answer, HeldOut, Question, TaskKind

KEPT_FAILURES = 5  # of each check and model, in the report


@dataclass(frozen=True, slots=True)
class Asked:
    """`questions` are all, each once: the held-out ones first, of which `samples` are shown side by side and `judged`
    shown to the judge, then those of the spec. `checked` are the places of each check's questions among them."""

    questions: Sequence[Question]
    samples: int
    judged: int
    checked: Mapping[str, Sequence[int]]
    notes: Sequence[str]
    too_long: int


def ask(kind: TaskKind, held_out: HeldOut, settings: EvaluationSpec) -> Asked:
    """The questions for samples and checks. Each is answered once, whoever wants the answer."""
    from_data = settings.check_answers if any(not check.prompts for check in settings.checks) else 0
    judged = settings.judge.answers if settings.judge else 0
    most = max(settings.sample_answers, from_data, judged)
    chosen = choose(kind.ask(held_out), held_out.context, most, held_out.answer_tokens)
    posed, notes = _posed(kind, held_out, settings.checks)
    places = {prompt: len(chosen.asked) + at for at, prompt in enumerate(posed)}
    of_data = range(min(settings.check_answers, len(chosen.asked)))
    checked = {
        check.name: [places[prompt] for prompt in check.prompts if prompt in places] if check.prompts else of_data
        for check in settings.checks
    }
    return Asked(
        questions=[*chosen.asked, *posed.values()],
        samples=min(settings.sample_answers, len(chosen.asked)),
        judged=min(judged, len(chosen.asked)),
        checked=checked,
        notes=[*chosen.notes, *notes],
        too_long=chosen.too_long,
    )


def _posed(
    kind: TaskKind, held_out: HeldOut, checks: Sequence[BehaviourCheck]
) -> tuple[dict[str, Question], list[str]]:
    """The prompts of the spec as questions, each once, and a note on those that leave no room for an answer."""
    prompts = dict.fromkeys(prompt for check in checks for prompt in check.prompts)
    found = {prompt: question for prompt in prompts if (question := kind.pose(prompt, held_out))}
    posed = {prompt: question for prompt, question in found.items() if question.fits}
    left = len(prompts) - len(posed)
    note = f"{left} prompt(s) of evaluation.checks were not asked: they leave no room for an answer in the context"
    return posed, [note] if left else []


def check_answers(
    checks: Sequence[BehaviourCheck], asked: Asked, base: Sequence[Answer], tuned: Sequence[Answer]
) -> list[CheckReport]:
    """How each check went, with examples of what does not pass."""
    return [_checked(check, asked, base, tuned) for check in checks]


def _checked(check: BehaviourCheck, asked: Asked, base: Sequence[Answer], tuned: Sequence[Answer]) -> CheckReport:
    places = asked.checked[check.name]
    faults = {name: list(_faults(check, asked, places, answers)) for name, answers in _models(base, tuned)}
    shares = {name: 1 - len(found) / len(places) if places else 0.0 for name, found in faults.items()}
    return CheckReport(
        score=CheckScore(name=check.name, asked=len(places), base=shares["base"], tuned=shares["tuned"]),
        failures=faults["tuned"][:KEPT_FAILURES],
        base_failures=faults["base"][:KEPT_FAILURES],
    )


def _models(base: Sequence[Answer], tuned: Sequence[Answer]) -> tuple[tuple[str, Sequence[Answer]], ...]:
    return ("base", base), ("tuned", tuned)


def _faults(
    check: BehaviourCheck, asked: Asked, places: Sequence[int], answers: Sequence[Answer]
) -> Iterator[CheckFailure]:
    for place in places:
        if (why := fault(check, answers[place])) is not None:
            yield CheckFailure(prompt=asked.questions[place].prompt, answer=answers[place].text, why=why)
