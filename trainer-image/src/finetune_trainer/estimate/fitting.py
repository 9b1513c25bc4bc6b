"""Does the training fit, and if not, what would: each remedy is estimated as the training itself was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate.needs import Needs

# Of what others published the estimate is at most so far off (docs/estimates.md). A training that would need more than
# the memory even if it were that much too high is refused.
ERROR = 0.2
COMFORTABLE = 0.8  # of the memory: what a remedy may need, since the allocator wants room
GIB = 2**30
NOTE = 512  # characters that a note in the status may have


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of the job, in the words of its fields, and what a device would need then."""

    change: str
    needed: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Training:
    """Bytes `needed` with one example in a forward pass, and `memory` that there is. `holder` is what has the memory,
    `field` where it is said; `needs` tells what for."""

    needed: int
    memory: int
    holder: str
    field: str
    needs: Needs


def judge(training: Training, remedies: Iterable[Remedy], *, refuses: bool) -> list[str]:
    """Notes for the user. With `refuses` raises UserInputError (SpecInvalid) when it is certain enough that the
    training does not fit."""
    if training.needed <= training.memory:
        return []
    said = (
        f"training is expected to need {_size(training.needed)} with one example in a forward pass "
        f"({_parts(training.needs)}), and {training.holder} has {_size(training.memory)}"
    )
    advice = _advice(training, remedies)
    if refuses and training.needed * (1 - ERROR) > training.memory:
        raise UserInputError(f"{training.field}: {said}", advice=advice, reason=FailureReason.SPEC_INVALID)
    return [f"{said}: it may run out of memory. {advice}"[:NOTE]]


def _advice(training: Training, remedies: Iterable[Remedy]) -> str:
    found = []
    for remedy in remedies:
        needed = remedy.needed()
        if needed <= COMFORTABLE * training.memory:
            found.append(f"{remedy.change} ({_size(needed)})")
    enough = -(-training.needed // round(COMFORTABLE * GIB))
    found.append(f"{training.field} of {enough} GiB")
    return f"by the same estimate these would fit: {'; '.join(found)}"


def _parts(needs: Needs) -> str:
    parts = {
        "weights": needs.frozen + needs.trained,
        "gradients and optimizer": needs.gradients + needs.optimizer,
        "activations": needs.activations + needs.output,
    }
    return ", ".join(f"{name} {_size(count)}" for name, count in parts.items())


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
