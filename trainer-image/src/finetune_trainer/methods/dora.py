"""DoRA: direction and size of the weights apart (Liu et al., arXiv 2402.09353)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import MethodType
from finetune_trainer.methods import proof
from finetune_trainer.methods.kind import BYTES, Footprint, Form, Precision, Sizes, Trained
from finetune_trainer.methods.low_rank import add_adapter, copy_adapter, verify_adapter
from finetune_trainer.training.device import Device


class Dora:
    type = MethodType.DORA
    learning_rate = 2e-4
    operations = 4
    kept_outputs = 3  # of base and adapter, scaled; measured 2.7

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
        """Merged into the base, since vLLM takes no DoRA adapter. With a head of its own it stays an adapter, which
        our server merges: vLLM does not serve that either."""
        proof.adapter_files(trained.checkpoint, trained.rank)
        if proof.keeps_heads(trained.checkpoint):
            copy_adapter(trained.checkpoint, directory)
            return "Adapter"
        base = trained.load(trained.base_dir, proof.stored_dtype(trained.base_dir))
        tuned = proof.on_base(trained.checkpoint, base.model)
        proof.adapter_moved(tuned, trained.checkpoint, trained.dtype)
        merge(tuned, trained.checkpoint).save_pretrained(directory)
        return "Model"

    def verify(self, trained: Trained, directory: Path, form: Form) -> None:
        if form == "Model":
            proof.whole_model(directory, trained.base_dir, trained.load)
        else:
            verify_adapter(trained, directory)


def merge(tuned: PeftModel, checkpoint: Path) -> PreTrainedModel:
    """The base with the adapter in its weights, in the base's own type. `tuned` is used up.

    One layer at a time is computed in float32: the whole model in it would need twice the memory, and in bfloat16
    the norms of DoRA would lose what was trained. Raises ArtifactInvalidError when a weight is not finite.
    """
    for part in tuned.modules():
        if isinstance(part, LoraLayer):
            layer = part.get_base_layer()
            stored = layer.weight.dtype
            layer.to(torch.float32)
            try:
                part.merge(safe_merge=True)
            except ValueError as error:
                raise proof.invalid(f"{checkpoint} cannot be merged into its base: {error}") from error
            layer.to(stored)
    plain: PreTrainedModel = tuned.base_model.unload()  # the layers as they are now
    return plain
