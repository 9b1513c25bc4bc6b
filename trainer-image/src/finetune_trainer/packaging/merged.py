"""Safetensors: a whole model that every program of the Hugging Face world loads, without an adapter beside it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from finetune_api.exports import ExportPrecision, ExportSpec
from finetune_trainer.methods import proof
from finetune_trainer.packaging.comparison import Difference, difference, outputs
from finetune_trainer.packaging.tuned import Tuned
from finetune_trainer.training.inputs import FACTS, load_model
from finetune_trainer.training.output import CPU

log = logging.getLogger(__name__)

DTYPES = {ExportPrecision.FLOAT32: torch.float32, ExportPrecision.BFLOAT16: torch.bfloat16}
SHARD = "2GB"  # of a file of weights: small enough to be sent again when a connection breaks
# Of the largest output, by which outputs may differ. float32 sums in another order; bfloat16 keeps 8 bits of a weight,
# and the merged weight is rounded once more than the adapter beside it.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def export(tuned: Tuned, spec: ExportSpec, folder: Path) -> Difference:
    """Merge, write, load again, and compare with the adapter beside its base."""
    dtype = DTYPES.get(spec.precision, tuned.stored_dtype)
    tuned.load(dtype).save_pretrained(folder, max_shard_size=SHARD)
    copy_beside(tuned, folder)
    return compare(tuned, folder, dtype)


def copy_beside(tuned: Tuned, folder: Path) -> None:
    """The tokenizer with its chat template, what the task learned of the data, licences."""
    tuned.tokenizer.save_pretrained(folder)
    shutil.copyfile(tuned.directory / FACTS, folder / FACTS)
    for path in tuned.prepared.base_dir.iterdir():
        if path.is_file() and path.name.startswith(("LICENSE", "NOTICE")):
            shutil.copyfile(path, folder / path.name)


def compare(tuned: Tuned, folder: Path, dtype: torch.dtype) -> Difference:
    """Raise ArtifactInvalidError unless what was written answers as what was trained."""
    batch = tuned.samples()
    wanted = outputs(tuned.load_unmerged(dtype), batch)
    kind, facts = tuned.prepared.kind, tuned.prepared.facts
    found = outputs(proof.sound(lambda path, of: load_model(path, CPU, kind, facts, dtype=of), folder, dtype), batch)
    measured = difference(wanted, found)
    allowed = TOLERANCE.get(dtype, 0.1)
    log.info("merged: outputs differ by %.1e of the largest, %.1e is allowed", measured.largest, allowed)
    if not measured.largest <= allowed:
        raise proof.invalid(
            f"the outputs of the merged model differ by {measured.largest:.1e} of the largest from the tuned one, and "
            f"{allowed:g} is allowed",
            advice="set precision to Float32 in the export" if dtype is not torch.float32 else proof.ADVICE,
        )
    return measured
