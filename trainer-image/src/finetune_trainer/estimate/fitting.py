"""Does the training fit, and if not, what would: each remedy is estimated as the training itself was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError

# Of published and measured trainings the estimate was at most so far off (docs/estimates.md). What needs more than the
# memory even when the estimate is that much too high is refused.
ERROR = 0.2
COMFORTABLE = 0.8  # of the memory: what a remedy must leave free to be named
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of the job, in the words of its fields, and what a device would need then."""

    change: str
    needed: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Training:
    """`needed` bytes of a device with the smallest possible micro batch, which `parts` explains; `memory` bytes that
    it has, None when nobody said. `holder` is what has them, and `field` where that can be changed."""

    needed: int
    parts: str
    memory: int | None
    holder: str
    field: str


def judge(training: Training, remedies: Iterator[Remedy]) -> list[str]:
    """Notes for the user. Raises UserInputError (SpecInvalid) when it is certain enough that it does not fit."""
    if training.memory is None:
        return [
            f"training is expected to need {_size(training.needed)} on {training.holder}, whose memory is not known: "
            f"set {training.field}, and a training that does not fit is refused before it waits for one"
        ]
    if training.needed <= training.memory:
        return []
    said = (
        f"training is expected to need {_size(training.needed)} on {training.holder} of {_size(training.memory)}, with "
        f"as few examples in a forward pass as possible ({training.parts})"
    )
    if training.needed * (1 - ERROR) <= training.memory:
        return [f"{said}: it may run out of memory. {_advice(training, remedies)}"[:NOTE]]
    raise UserInputError(
        f"{training.field}: {said}",
        advice=_advice(training, remedies),
        reason=FailureReason.SPEC_INVALID,
    )


NOTE = 512  # characters that a note in the status may have


def _advice(training: Training, remedies: Iterator[Remedy]) -> str:
    found = [f"{remedy.change} ({_size(needed)})" for remedy in remedies if _fits(needed := remedy.needed(), training)]
    found.append(f"{training.holder} of {_size(round(training.needed / COMFORTABLE), up=True)}")
    return f"By the same estimate would fit: {'; '.join(found)}"


def _fits(needed: int, training: Training) -> bool:
    return training.memory is not None and needed <= COMFORTABLE * training.memory


def _size(count: int, *, up: bool = False) -> str:
    return f"{-(-count // GIB)} GiB" if up else f"{count / GIB:.1f} GiB"
