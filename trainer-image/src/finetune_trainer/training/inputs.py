"""What Train and Evaluate read: the report of Prepare, its dataset, the base model, the tokenizer."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import Summary
from finetune_api.status import ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.training.device import Device

AGAIN = "run Prepare again"
transformers.logging.set_verbosity_warning()
transformers.logging.disable_progress_bar()  # logs of pods are no terminals


@dataclass(frozen=True, slots=True)
class Prepared:
    """What Prepare left, as absolute paths. `base_path` is relative to the artifact root, as reports have it."""

    resolved: ResolvedValues
    base_path: str
    base_dir: Path
    dataset_dir: Path

    def rows(self, part: str) -> Dataset:
        """`train` or `validation`: columns input_ids and labels (-100: not trained on), ragged lists of int."""
        rows = load_from_disk(str(self.dataset_dir / part))
        if not {"input_ids", "labels"} <= set(rows.column_names):
            raise ArtifactInvalidError(f"{self.dataset_dir / part} lacks input_ids or labels", advice=AGAIN)
        return rows.select_columns(["input_ids", "labels"])

    def held_out(self, most: int) -> list[int]:
        """Positions of at most `most` held-out examples, ordered by the hashes of their contents.

        A file may be sorted, by topic or by length: its first examples would speak for themselves only.
        """
        with (self.dataset_dir / "validation.jsonl").open("rb") as lines:
            hashed = ((hashlib.sha256(line).digest(), position) for position, line in enumerate(lines))
            return [position for _, position in heapq.nsmallest(most, hashed)]

    def held_out_examples(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The held-out examples at these positions, as text, in this order."""
        wanted = set(positions)
        found = {position: each for position, each in enumerate(self.examples("validation")) if position in wanted}
        return [found[position] for position in positions]

    def examples(self, part: str) -> Iterator[dict[str, Any]]:
        """The same examples as text, in the same order."""
        with (self.dataset_dir / f"{part}.jsonl").open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines)


def load_prepared(context: StageContext) -> Prepared:
    """Read and verify what Prepare left. Raises ArtifactInvalidError that names what is missing or changed."""
    path = context.report_path(Stage.PREPARE)
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactInvalidError(f"{path} cannot be read: {error}", advice=AGAIN) from error
    if summary.resolved is None or summary.base_path is None:
        raise ArtifactInvalidError(f"{path} has no resolved values or no base model", advice=AGAIN)
    artifacts.verify(context.dataset_dir)
    base_dir = context.artifacts / summary.base_path
    # Gigabytes that Prepare has read and hashed: here only that all of it is there.
    artifacts.verify(base_dir, sizes_only=True)
    return Prepared(summary.resolved, summary.base_path, base_dir, context.dataset_dir)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template, from disk only."""
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def load_model(
    directory: Path, device: Device, *, dtype: torch.dtype | None = None, attention: str | None = None
) -> PreTrainedModel:
    """A causal language model on the device, from safetensors only. Raises UserInputError (ModelInvalid)."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype or device.dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserInputError(
            f"{directory} cannot be loaded as a causal language model: {error}",
            advice="give a model in Hugging Face format with safetensors weights and an architecture that the "
            "trainer image's transformers knows",
            reason=FailureReason.MODEL_INVALID,
        ) from error
    return model.to(device.kind)
