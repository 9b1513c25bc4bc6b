"""Safetensors: a whole model that every program of the Hugging Face world loads, without an adapter beside it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from finetune_api.exports import ExportPrecision, ExportSpec
from finetune_trainer.methods import proof
from finetune_trainer.packaging.tuned import Batch, Tuned
from finetune_trainer.training.inputs import FACTS, load_model
from finetune_trainer.training.output import CPU

log = logging.getLogger(__name__)

DTYPES = {ExportPrecision.FLOAT32: torch.float32, ExportPrecision.BFLOAT16: torch.bfloat16}
SHARD = "2GB"  # of a file of weights: small enough to be sent again when a connection breaks
# Of the largest output, by which outputs may differ. float32 sums in another order; bfloat16 keeps 8 bits of a weight,
# and the merged weight is rounded once more than the adapter beside it.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def export(tuned: Tuned, spec: ExportSpec, folder: Path) -> None:
    """Merge, write, load again, and compare with the adapter beside its base."""
    dtype = DTYPES.get(spec.precision, tuned.stored_dtype)
    tuned.load(dtype).save_pretrained(folder, max_shard_size=SHARD)
    copy_beside(tuned, folder)
    compare(tuned, folder, dtype)


def copy_beside(tuned: Tuned, folder: Path) -> None:
    """The tokenizer with its chat template, what the task learned of the data, licences and the model card."""
    tuned.tokenizer.save_pretrained(folder)
    shutil.copyfile(tuned.directory / FACTS, folder / FACTS)
    for source in (tuned.prepared.base_dir, tuned.directory):
        for path in source.iterdir():
            if (
                path.is_file() and path.name.startswith(("LICENSE", "NOTICE"))
            ) or path == tuned.directory / "README.md":
                shutil.copyfile(path, folder / path.name)


def compare(tuned: Tuned, folder: Path, dtype: torch.dtype) -> None:
    """Raise ArtifactInvalidError unless what was written answers as what was trained."""
    batch = tuned.samples()
    wanted = outputs(tuned.load_unmerged(dtype), batch)
    kind, facts = tuned.prepared.kind, tuned.prepared.facts
    found = outputs(proof.sound(lambda path, of: load_model(path, CPU, kind, facts, dtype=of), folder, dtype), batch)
    difference = largest_difference(wanted, found)
    allowed = TOLERANCE.get(dtype, 0.1)
    log.info("merged: outputs differ by %.1e of the largest, %.1e are allowed", difference, allowed)
    if not difference <= allowed:
        raise proof.invalid(
            f"the merged model's outputs differ by {difference:.1e} of the largest one from the tuned model's, and "
            f"{allowed:g} is allowed",
            advice="set precision to Float32 in the export" if dtype is not torch.float32 else proof.ADVICE,
        )


@torch.no_grad()
def outputs(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Logits of the tokens that are no padding, float32: one tensor an output of the task."""
    more = {}
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id or 0
        more["decoder_input_ids"] = torch.full((len(batch["input_ids"]), 1), start)
    found = model.eval()(**batch, **more)
    names = [name for name in ("logits", "start_logits", "end_logits") if getattr(found, name, None) is not None]
    return [_without_padding(getattr(found, name), batch).float() for name in names]


def _without_padding(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    mask = batch["attention_mask"].bool()
    return logits[mask] if logits.shape[:2] == mask.shape else logits


def largest_difference(wanted: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Relative to the largest output."""
    largest = max(float(each.abs().max()) for each in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True)) / max(largest, 1e-12)
