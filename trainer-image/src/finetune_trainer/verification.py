"""Before a training is called done: is there really a model in the folder, and does it work on its base?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.tasks.kind import Answer, Facts, Question, TaskKind
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import load_model

ADVICE = "training is tried from its checkpoints by a new run; report the log when it happens again"
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


def verify_adapter(directory: Path, rank: int) -> None:
    """Check the adapter's file. Raises ArtifactInvalidError: nothing in it, a wrong shape, not finite, B all zero."""
    path = directory / "adapter_model.safetensors"
    tensors = _read(path)
    pairs = {name: tensor for name, tensor in tensors.items() if ".lora_A." in name or ".lora_B." in name}
    if not pairs:
        raise _invalid(f"{path} holds no LoRA matrices")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise _invalid(f"{path}: {name} is not finite")
    for name, a in pairs.items():
        if ".lora_A." in name:
            _check_pair(path, name, a, pairs.get(name.replace(".lora_A.", ".lora_B.")), rank)
    if not any(tensor.norm() > 0 for name, tensor in pairs.items() if ".lora_B." in name):
        raise _invalid(f"{path}: every B matrix is zero, so that the adapter changes nothing")


def verify_weights(directory: Path, base_dir: Path) -> None:
    """Check a whole model's files, one tensor at a time: two models need not fit into memory.

    Raises ArtifactInvalidError: no weights, other names or shapes than the base's, not finite, or nothing changed.
    """
    changed = False
    with _Weights(directory) as tuned, _Weights(base_dir) as base:
        # A tied output layer is saved by some libraries and left out by others.
        missing = sorted(name for name in base.names - tuned.names if "lm_head" not in name)
        if missing:
            raise _invalid(f"{directory} lacks {missing[0]} and {len(missing) - 1} more of the base's weights")
        for name in sorted(tuned.names):
            tensor = tuned.read(name)
            if not torch.isfinite(tensor).all():
                raise _invalid(f"{directory}: {name} is not finite")
            if name in base.names:
                before = base.read(name)
                if before.shape != tensor.shape:
                    raise _invalid(f"{directory}: {name} is {tuple(tensor.shape)}, the base's {tuple(before.shape)}")
                changed = changed or not torch.equal(tensor.float(), before.float())
    if not changed:
        raise _invalid(f"{directory} equals the base model: training changed nothing")


def load_tuned(
    directory: Path, base_dir: Path, device: Device, kind: TaskKind, facts: Facts, *, adapter: bool
) -> PreTrainedModel:
    """The tuned model from disk, in evaluation mode. Raises ArtifactInvalidError when it does not load."""
    if not adapter:
        return load_model(directory, device, kind, facts).model.eval()
    base = load_model(base_dir, device, kind, facts).model
    try:
        return PeftModel.from_pretrained(base, str(directory), local_files_only=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _invalid(f"{directory} does not load on its base: {error}") from error


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
        raise _invalid(
            f"none of {len(asked)} answers {problem}, while {base:.0%} of the base model's do",
            advice="train longer or with a higher learning rate; if that does not help, look at the rendered "
            "examples of the dataset report: the end-of-turn token must be trained on"
            if short
            else "train with a lower learningRateMultiplier or fewer epochs: the model has forgotten how to write",
        )
    return Verified(stopped, [f"none of {len(asked)} sample answers {problem}; more epochs or data may help"])


def _check_pair(path: Path, name: str, a: torch.Tensor, b: torch.Tensor | None, rank: int) -> None:
    if b is None:
        raise _invalid(f"{path}: {name} has no B matrix")
    if 0 in a.shape or 0 in b.shape or a.shape[0] != rank or b.shape[1] != rank:
        raise _invalid(f"{path}: {name} has shapes {tuple(a.shape)} and {tuple(b.shape)}, not of rank {rank}")


class _Weights(ExitStack):
    """The tensors of a model folder, by name, read when asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._files: dict[str, Any] = {}

    def __enter__(self) -> _Weights:
        for path in sorted(self._directory.glob("*.safetensors")):
            try:
                file = self.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise _invalid(f"{path} cannot be read: {error}") from error
            self._files.update(dict.fromkeys(file.keys(), file))
        if not self._files:
            raise _invalid(f"{self._directory} holds no safetensors weights")
        return self

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _invalid(f"{path} cannot be read: {error}") from error
    return tensors


def _stopped(answer: Answer) -> bool:
    return bool(answer.stopped)


def _says_something(answer: Answer) -> bool:
    return bool(answer.text) and (bool(answer.stopped) or answer.distinct > REPETITION)


def _share(answers: Sequence[Answer], sound: Callable[[Answer], bool]) -> float:
    return sum(map(sound, answers)) / len(answers)


def _invalid(message: str, advice: str = ADVICE) -> ArtifactInvalidError:
    return ArtifactInvalidError(message, advice=advice, reason=FailureReason.ARTIFACT_INVALID)
