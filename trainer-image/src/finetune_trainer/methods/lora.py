"""LoRA: small matrices beside the frozen weights (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.methods.kind import BYTES, Footprint, Form, Precision, Sizes, Trained
from finetune_trainer.methods.low_rank import add_adapter, copy_adapter, verify_adapter
from finetune_trainer.training.device import Device


class Lora:
    type = MethodType.LORA
    learning_rate = 2e-4
    operations = 4  # no gradient of the frozen weights
    kept_outputs = 0

    def load_options(self, spec: MethodSpec, device: Device, skeleton: Callable[[], PreTrainedModel]) -> dict[str, Any]:
        return {"dtype": device.dtype}

    def wrap(
        self,
        model: PreTrainedModel,
        spec: MethodSpec,
        resolved: ResolvedValues,
        *,
        peft_type: str,
        fresh: Collection[str] = (),
    ) -> Any:
        return add_adapter(model, spec, resolved, peft_type=peft_type, fresh=fresh)

    def quantised(self, skeleton: PreTrainedModel) -> int:
        return 0

    def footprint(self, sizes: Sizes, spec: MethodSpec, precision: Precision) -> Footprint:
        return Footprint.of(frozen=sizes.parameters * BYTES[precision], trainable=sizes.trainable)

    def finish(self, trained: Trained, directory: Path) -> Form:
        copy_adapter(trained.checkpoint, directory)
        return "Adapter"

    def verify(self, trained: Trained, directory: Path, form: Form) -> None:
        verify_adapter(trained, directory)
