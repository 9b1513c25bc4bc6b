"""Before a training is called done: does the model load from its folder, and does it answer?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import Form
from finetune_trainer.tasks.kind import Answer, Facts, Question, TaskKind
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import load_model

# A tuned model that never ends where its base mostly did was broken by the training (wrong end-of-turn token).
BASE_STOPS = 0.5
PROMPTS = 8  # held-out prompts that a new model must answer
SHORT_ANSWER = 64  # tokens: a model that learned such answers ends well within the 128 that it is given
ENOUGH_SHORT = 4  # questions; fewer say nothing about a model that learned long answers
# An endless repetition has so few different tokens, also when it repeats a sentence's half.
REPETITION = 4


@dataclass(frozen=True, slots=True)
class Verified:
    """`stopped`: share of the prompts whose answer ended by itself. `notes` are for the user."""

    stopped: float | None
    notes: list[str]


def load_tuned(
    directory: Path, base_dir: Path, device: Device, kind: TaskKind, facts: Facts, form: Form
) -> PreTrainedModel:
    """The tuned model from disk, in evaluation mode. Raises ArtifactInvalidError when it does not load."""
    if form == "Model":
        return load_model(directory, device, kind, facts).model.eval()
    return proof.on_base(directory, load_model(base_dir, device, kind, facts).model).eval()


def smoke_questions(questions: Sequence[Question]) -> tuple[list[Question], bool]:
    """(questions to ask, whether their answers should end by themselves within the limit).

    Where the data has short answers, those are asked for. Where it has long ones, a good model is cut off at the
    limit, and its answers are judged by their text alone.
    """
    short = [question for question in questions if question.expected_tokens <= SHORT_ANSWER]
    if len(short) >= min(ENOUGH_SHORT, len(questions)):
        return short[:PROMPTS], True
    return list(questions[:PROMPTS]), False


def verify_answers(
    ask: Callable[[Sequence[Question]], list[Answer]],
    ask_base: Callable[[Sequence[Question]], list[Answer]] | None,
    questions: Sequence[Question],
) -> Verified:
    """Let the tuned model answer some of the questions. Raises ArtifactInvalidError when all of its answers fail where
    its base's did not: none ends by itself, or, where the data's answers are long, none is more than a repetition.

    A base that fails too (a bare language model, little training) makes it a note, not a failure.
    """
    if not questions:
        return Verified(None, ["no held-out example has a question, so that no answer could be checked"])
    asked, short = smoke_questions(questions)
    sound, problem = (_stopped, "ends by itself") if short else (_says_something, "is more than a repetition")
    answers = ask(asked)
    if all(each.stopped is None for each in answers):
        return Verified(None, [])  # nothing is generated, so nothing can fail to end
    stopped = _share(answers, _stopped)
    if _share(answers, sound) > 0:
        return Verified(stopped, [])
    base = _share(ask_base(asked), sound) if ask_base else 0.0
    if base >= BASE_STOPS:
        raise proof.invalid(
            f"none of {len(asked)} answers {problem}, while {base:.0%} of the base model's do",
            advice="train longer or with a higher learning rate; if that does not help, look at the rendered "
            "examples of the dataset report: the end-of-turn token must be trained on"
            if short
            else "train with a lower learningRateMultiplier or fewer epochs: the model has forgotten how to write",
        )
    return Verified(stopped, [f"none of {len(asked)} sample answers {problem}; more epochs or data may help"])


def _stopped(answer: Answer) -> bool:
    return bool(answer.stopped)


def _says_something(answer: Answer) -> bool:
    return bool(answer.text) and (bool(answer.stopped) or answer.distinct > REPETITION)


def _share(answers: Sequence[Answer], sound: Callable[[Answer], bool]) -> float:
    return sum(map(sound, answers)) / len(answers)
