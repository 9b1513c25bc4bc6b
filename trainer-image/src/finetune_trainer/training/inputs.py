"""What Train and Evaluate read: the report of Prepare, its dataset, the base model, the tokenizer."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, load_from_disk
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import Summary
from finetune_api.status import ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.errors import ArtifactInvalidError, UserInputError
from finetune_trainer.evaluation.questions import context_length
from finetune_trainer.tasks.kind import Facts, HeldOut, TaskKind
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.device import Device

AGAIN = "set a new spec.rerunToken, so that it is made anew"
FACTS = "facts.json"
HEAD_SEED = 0
transformers.logging.set_verbosity_warning()
transformers.logging.disable_progress_bar()  # logs of pods are no terminals


@dataclass(frozen=True, slots=True)
class Prepared:
    """What Prepare left, as absolute paths. `base_path` is relative to the artifact root, as reports have it."""

    resolved: ResolvedValues
    base_path: str
    base_dir: Path
    dataset_dir: Path
    kind: TaskKind
    facts: Facts

    def measured_on(self, most: int, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
        """At most `most` held-out examples, the same ones every time."""
        positions = self.held_out(most)
        config = AutoConfig.from_pretrained(self.base_dir, local_files_only=True, trust_remote_code=False)
        return HeldOut(
            rows=self.rows("validation").select(positions).to_list(),
            examples=self.held_out_examples(positions),
            tokenizer=tokenizer,
            facts=self.facts,
            max_length=self.resolved.max_length,
            context=context_length(config, tokenizer),
            resolved=self.resolved,
        )

    def rows(self, part: str) -> Dataset:
        """`train` or `validation`: the task's columns, ragged lists of int."""
        rows = load_from_disk(str(self.dataset_dir / part))
        if "input_ids" not in rows.column_names:
            raise ArtifactInvalidError(f"{self.dataset_dir / part} lacks input_ids", advice=AGAIN)
        return rows

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
        with (self.dataset_dir / "validation.jsonl").open("rb") as lines:
            found = {position: json.loads(line) for position, line in enumerate(lines) if position in wanted}
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
    facts = context.dataset_dir / FACTS
    return Prepared(
        summary.resolved,
        summary.base_path,
        base_dir,
        context.dataset_dir,
        KINDS[context.config.task],
        Facts.from_json(facts.read_text(encoding="utf-8")) if facts.exists() else Facts(),
    )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template, from disk only."""
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a generation: the tokenizer's, and those of the model's generation settings."""
    configs: list[Any] = [AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)]
    if (folder / "generation_config.json").exists():
        configs = [GenerationConfig.from_pretrained(folder, local_files_only=True)]
    ids = {tokenizer.eos_token_id}
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        ids.update(value if isinstance(value, list) else [value])
    return frozenset(token for token in ids if isinstance(token, int))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device. `fresh` are the modules that its folder has no weights for: a new task's head."""

    model: PreTrainedModel
    fresh: tuple[str, ...]


def load_model(
    directory: Path,
    device: Device,
    kind: TaskKind,
    facts: Facts,
    *,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    options: Mapping[str, Any] | None = None,
    stays: bool = False,
) -> Loaded:
    """The task's kind of model, from safetensors only. A fresh head is the same every time: base and tuned model,
    training and server have to agree on it. `options` are the method's. `stays`: it is not moved to the device, since
    whoever divides it does that. Raises UserInputError (ModelInvalid)."""
    chosen = {"dtype": dtype or device.dtype, **(options or {})}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(HEAD_SEED)
            model, info = kind.auto_model.from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                **chosen,
                **kind.model_options(facts),
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserInputError(
            f"{directory} cannot be loaded for the task {kind.task}: {error}",
            advice="give a model in Hugging Face format with safetensors weights and an architecture that the "
            "trainer image's transformers knows",
            reason=FailureReason.MODEL_INVALID,
        ) from error
    reshaped = sorted(name for name, *_ in info["mismatched_keys"])  # by other labels, where the task allows it
    _refuse_damaged_body(model, reshaped, directory)
    fresh = {name.rpartition(".")[0] for name in [*info["missing_keys"], *reshaped]}
    # What is quantised is where it belongs, and must not be moved.
    placed = model if stays or "quantization_config" in chosen else model.to(device.place)
    return Loaded(placed, tuple(sorted(fresh)))


def _refuse_damaged_body(model: PreTrainedModel, reshaped: Sequence[str], directory: Path) -> None:
    """A head of other labels begins anew; anything else of another shape means that weights and config disagree."""
    body = [name for name in reshaped if name.startswith(f"{model.base_model_prefix}.")]
    if body:
        raise UserInputError(
            f"{directory}: {body[0]} has another shape in the weights than in config.json",
            advice="fetch the model anew: its config.json belongs to other weights",
            reason=FailureReason.MODEL_INVALID,
        )


def skeleton(directory: Path, kind: TaskKind, facts: Facts) -> PreTrainedModel:
    """The task's kind of model without weights, on the meta device."""
    config = AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **kind.model_options(facts)
    )
    with torch.device("meta"):
        model: PreTrainedModel = kind.auto_model.from_config(config, trust_remote_code=False)
    return model
