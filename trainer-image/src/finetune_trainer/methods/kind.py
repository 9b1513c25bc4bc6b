"""What differs between methods, and nothing else of a method is known outside its module.

A base goes `load_options` -> (loaded by the task) -> `wrap` -> trained -> `finish` -> `verify`. After that only the
form of what `finish` left, an adapter or a whole model, decides how it is measured and served.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.training.device import Device

Form = Literal["Adapter", "Model"]
Precision = Literal["float32", "bfloat16"]
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}

FLOAT32 = 4
MOMENTS = 2 * FLOAT32  # the two of Adam


class LoadedModel(Protocol):
    """A model, and the names of those of its modules that its folder has no weights for: a new task's head."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def fresh(self) -> tuple[str, ...]: ...


Load = Callable[[Path, torch.dtype], LoadedModel]
"""Loads a model of the run's task from a folder, onto the CPU. A fresh head is the same every time."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of the model, of those that are trained beside or within it, and of the layers that `QLoRA` would
    keep in 4 bits (0 for the other methods)."""

    parameters: int
    trainable: int
    quantised: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes while training: of the weights that are not trained and of those that are, of gradients and optimizer."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int

    @classmethod
    def of(cls, *, frozen: int, trainable: int) -> Footprint:
        """Trained weights and their gradients in float32, whatever is computed with."""
        return cls(frozen, trainable * FLOAT32, trainable * FLOAT32, trainable * MOMENTS)

    @property
    def weights(self) -> int:
        return self.frozen + self.trained

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, slots=True)
class Trained:
    """What a method finishes: the best checkpoint, its base, the type that the base was trained in, and how to load
    either. `rank` is that of the adapter, where there is one."""

    checkpoint: Path
    base_dir: Path
    dtype: torch.dtype
    rank: int
    load: Load


class MethodKind(Protocol):
    """One method. Implementations are plain classes without state."""

    type: MethodType
    learning_rate: float  # peak, before the job's multiplier
    operations: int  # floating point operations a parameter and token, forward and backward
    kept_outputs: int  # times that each linear layer's output is kept for the backward pass because of the method

    def load_options(self, spec: MethodSpec, device: Device, skeleton: Callable[[], PreTrainedModel]) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` for the base that is trained. `skeleton` makes the model without
        weights (meta device). With `quantization_config` among them the model comes on its device and must not be
        moved or cast."""

    def wrap(
        self,
        model: PreTrainedModel,
        spec: MethodSpec,
        resolved: ResolvedValues,
        *,
        peft_type: str,
        fresh: Collection[str] = (),
    ) -> Any:
        """The model as it is trained, with everything that must not change frozen. `fresh` are the modules without
        weights of their own: they are trained whole and kept with an adapter.

        Raises ValueError when the target modules match nothing.
        """

    def quantised(self, skeleton: PreTrainedModel) -> int:
        """Parameters that are kept in 4 bits."""

    def footprint(self, sizes: Sizes, spec: MethodSpec, precision: Precision) -> Footprint:
        """Bytes of weights and optimizer while training, activations not counted."""

    def finish(self, trained: Trained, directory: Path) -> Form:
        """Write what is served into `directory`. Raises ArtifactInvalidError when the checkpoint is no sound one."""

    def verify(self, trained: Trained, directory: Path, form: Form) -> None:
        """Raise ArtifactInvalidError unless `directory` holds what training must have made."""
