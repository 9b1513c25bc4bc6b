"""Full: every weight is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import Footprint, Form, Precision, Sizes, Trained
from finetune_trainer.training.device import Device


class Full:
    type = MethodType.FULL
    learning_rate = 2e-5
    operations = 6
    kept_outputs = 0

    def load_options(self, spec: MethodSpec, device: Device, skeleton: Callable[[], PreTrainedModel]) -> dict[str, Any]:
        """float32: bfloat16 would lose the small updates. The arithmetic is bfloat16 all the same."""
        return {"dtype": torch.float32}

    def wrap(
        self,
        model: PreTrainedModel,
        spec: MethodSpec,
        resolved: ResolvedValues,
        *,
        peft_type: str,
        fresh: Collection[str] = (),
    ) -> Any:
        return model

    def quantised(self, skeleton: PreTrainedModel) -> int:
        return 0

    def footprint(self, sizes: Sizes, spec: MethodSpec, precision: Precision) -> Footprint:
        return Footprint.of(frozen=0, trainable=sizes.parameters)

    def finish(self, trained: Trained, directory: Path) -> Form:
        """Trained in float32, served as the base came: a server of twice the size would be a surprise."""
        dtype = proof.stored_dtype(trained.base_dir)
        proof.sound(trained.load, trained.checkpoint, dtype).save_pretrained(directory)
        return "Model"

    def verify(self, trained: Trained, directory: Path, form: Form) -> None:
        proof.whole_model(directory, trained.base_dir, trained.load)
