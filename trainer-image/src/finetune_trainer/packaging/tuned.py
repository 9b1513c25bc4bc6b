"""The run's model as the exports read it: verified once, loaded as often as each format needs it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.tasks import Task
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.methods import proof
from finetune_trainer.methods.dora import merge
from finetune_trainer.methods.kind import Form
from finetune_trainer.tasks.classification_text import padding_id, tell_padding
from finetune_trainer.training.device import limit_threads
from finetune_trainer.training.inputs import Prepared, load_model, load_prepared, load_tokenizer
from finetune_trainer.training.output import CPU

SAMPLES = 3  # held-out examples that an export is compared on
SAMPLE_TOKENS = 64  # of each; a wrong weight shows in the first ones

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Tuned:
    """`sha256` is the digest of the model's manifest, which stands for its weights."""

    prepared: Prepared
    directory: Path
    form: Form
    sha256: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def stored_dtype(self) -> torch.dtype:
        """As the base came."""
        return proof.stored_dtype(self.prepared.base_dir)

    def load(self, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """The whole model on the CPU, in evaluation mode, its adapter merged into the base as it came, never into
        a quantised one. Raises ArtifactInvalidError when a merged weight is not finite."""
        prepared = self.prepared
        if self.form == "Model":
            return self._loaded(self.directory, dtype, attention)
        base = self._loaded(prepared.base_dir, dtype, attention)
        return merge(proof.on_base(self.directory, base), self.directory).eval()

    def load_unmerged(self, dtype: torch.dtype) -> PreTrainedModel:
        """As Evaluate measured it and the server answers: an adapter beside its base."""
        prepared = self.prepared
        if self.form == "Model":
            return self.load(dtype)
        model: PreTrainedModel = proof.on_base(self.directory, self._loaded(prepared.base_dir, dtype)).eval()
        return model

    def _loaded(self, folder: Path, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        kind, facts = self.prepared.kind, self.prepared.facts
        model = load_model(folder, CPU, kind, facts, dtype=dtype, attention=attention).model.eval()
        if kind.task is Task.CLASSIFICATION:
            tell_padding(model, self.tokenizer)
        return model

    def samples(self) -> Batch:
        """Some held-out examples as one batch, padded on the right, so that the mask is tried, too."""
        rows = list(itertools.islice(self.prepared.rows("validation"), SAMPLES))
        batch = {
            "input_ids": _padded([row["input_ids"] for row in rows], padding_id(self.tokenizer)),
            "attention_mask": _padded([[1] * len(row["input_ids"]) for row in rows], 0),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = _padded([row["token_type_ids"] for row in rows], 0)
        return batch


def _padded(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    cut = [list(row)[:SAMPLE_TOKENS] for row in rows]
    longest = max(map(len, cut))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in cut])


def open_tuned(context: StageContext) -> Tuned:
    """Raises ArtifactInvalidError when model, dataset or base are damaged or gone."""
    prepared = load_prepared(context)
    limit_threads(prepared.resolved.model_parameters)
    sha256 = artifacts.verify(context.model_dir)
    return Tuned(
        prepared, context.model_dir, proof.form_of(context.model_dir), sha256, load_tokenizer(context.model_dir)
    )
