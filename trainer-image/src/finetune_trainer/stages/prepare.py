"""Prepare: fetch model and data once, check every example, decide what `auto` means.

Input that cannot be trained on ends here, before a GPU is asked for. What is left behind is whole or not there:
the dataset folder is built under another name and renamed when its manifest is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import Summary
from finetune_api.tasks import Task
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.data import report, split, tokens
from finetune_trainer.data.examples import read_examples, special_tokens
from finetune_trainer.data.flow import Attached, Example, Side
from finetune_trainer.data.problems import Findings
from finetune_trainer.data.rows import RowReading
from finetune_trainer.data.tokens import Cut
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape, measure_shape
from finetune_trainer.evaluation.checks import require_checks
from finetune_trainer.resolve import DataSizes, resolve, resolve_max_length
from finetune_trainer.sources.datafile import describe, fetch_data, name_of
from finetune_trainer.sources.model import BaseModel, fetch_model
from finetune_trainer.tasks.kind import ExampleFormat
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.device import cpu_limit
from finetune_trainer.training.inputs import FACTS, stop_tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Data:
    """The examples of both files after all checks, and the digest of the files as read."""

    train: list[Example]
    validation: list[Example]
    duplicates: int
    overlap: int
    sha256: str


def run(context: StageContext) -> Summary:
    """Do the stage. Raises UserInputError on anything that the user has to change."""
    config = context.config
    require_checks(config.evaluation.checks)
    _remove_leftovers(context)
    base = _model(context)
    kind = KINDS[config.task]
    tokenizer = load_tokenizer(base.path, config.base_model.source, config.task)
    shape = measure_shape(base.path, kind, config.method, tokenizer, config.base_model.source)
    log.info(
        "base model: %s parameters, of which %s are trained; context %s tokens",
        f"{shape.parameters:,}",
        f"{shape.trainable:,}",
        f"{shape.context:,}",
    )
    form = kind.example_format(tokenizer, stop_tokens(base.path, tokenizer), special_tokens(tokenizer))
    scratch = context.run_dir / f".prepare-{secrets.token_hex(4)}"
    scratch.mkdir(parents=True)
    try:
        findings, attached = Findings(), Attached()
        try:
            data = _read(context, scratch, form, findings, attached)
            return _finish(context, base, shape, tokenizer, form, data, findings, scratch, attached)
        except UserInputError as error:
            raise report.refusal(error, findings, context.run_dir) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_tokenizer(folder: Path, source: str, task: Task) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises UserInputError (ModelInvalid)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken tokenizer file raises whatever its parser raises
        raise _model_invalid(f"{source}: the tokenizer cannot be loaded: {error}", "upload the model again") from error
    # Where a token lies in its text only fast tokenizers know. Seq2Seq needs it not, and Marian has no fast one.
    if not tokenizer.is_fast and task is not Task.SEQ2SEQ:
        raise _model_invalid(f"{source} has no tokenizer.json", "add one: save the tokenizer with transformers 5")
    return tokenizer


def _model(context: StageContext) -> BaseModel:
    config = context.config
    log.info("base model: %s", config.base_model.source)
    base = fetch_model(
        config.base_model,
        models=context.models_dir,
        sources=context.sources,
        policy=config.policy,
        owner=f"{config.job}-r{config.run}",
    )
    log.info("base model: ready in %s", base.path.relative_to(context.artifacts))
    return base


def _read(context: StageContext, scratch: Path, form: ExampleFormat, findings: Findings, attached: Attached) -> Data:
    """Read both files, check them, and decide which example is on which side."""
    spec, policy = context.config.dataset, context.config.policy
    path = fetch_data(spec.train, sources=context.sources, scratch=_folder(scratch / "train"), policy=policy)
    digests = [artifacts.sha256_of(path)]
    reading = RowReading(context.config.task, spec.columns, policy.max_bytes)
    rows = reading.rows(path, name_of(spec.train), "train", findings)
    train = list(read_examples(rows, "train", form, findings, attached))
    form.end_of_training_data(findings)
    validation: list[Example] = []
    if spec.validation.fraction is None:
        held = fetch_data(spec.validation, sources=context.sources, scratch=_folder(scratch / "held"), policy=policy)
        digests.append(artifacts.sha256_of(held))
        rows = reading.rows(held, name_of(spec.validation), "validation", findings)
        validation = list(read_examples(rows, "validation", form, findings, attached))
    attached.end_of_reading(findings)
    report.refuse_errors(findings)
    _refuse_empty(train, "train", describe(spec.train))
    duplicates = split.find_duplicates(train)
    split.note_duplicates(duplicates, findings)
    overlap: list[int] = []
    if spec.validation.fraction is None:
        _refuse_empty(validation, "validation", describe(spec.validation))
        validation, overlap = split.without_overlap(train, validation)
        split.note_overlap(overlap, findings)
        if not validation:
            raise UserInputError(
                "validation data: every held-out example is also a training example, so nothing could be measured",
                advice="hold out examples that are not trained on, or set dataset.validation.fraction",
            )
    else:
        train, validation = split.hold_out(train, spec.validation.fraction, context.config.hyperparameters.seed)
    split.note_few(train, findings)
    log.info("data: %d training examples, %d held out", len(train), len(validation))
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256(":".join(digests).encode()).hexdigest()
    return Data(train, validation, len(duplicates), len(overlap), sha256)


def _finish(
    context: StageContext,
    base: BaseModel,
    shape: ModelShape,
    tokenizer: Any,
    form: ExampleFormat,
    data: Data,
    findings: Findings,
    scratch: Path,
    attached: Attached,
) -> Summary:
    """Cut, resolve, write the dataset folder, and sum up."""
    config = context.config
    lengths = tokens.length_stats(data.train)
    max_length = resolve_max_length(config.hyperparameters.max_length, lengths, shape.context)
    train, validation = tokens.cut(data.train, max_length, form), tokens.cut(data.validation, max_length, form)
    tokens.note_cut(train, "train", max_length, findings)
    tokens.note_cut(validation, "validation", max_length, findings)
    lost = config.dataset.max_lost_percent
    tokens.refuse_great_loss(train, max_length, lost, shape.context, findings.unit("train"))
    _refuse_empty(validation.kept, "validation", f"what is left after the cut to {max_length} tokens")
    resolution = resolve(config, _sizes(train, validation), shape, max_length, base.revision, cpu_limit())
    status = report.dataset_status(data, train, validation, lengths, form.facts, findings)
    folder = scratch / "dataset"
    _write(folder, train, validation, attached)
    text = report.full_report(status, resolution, findings, report.shown(train.kept, tokenizer))
    artifacts.write_json(folder / "report.json", json.dumps(text, ensure_ascii=False, indent=1))
    artifacts.write_json(folder / FACTS, form.facts.to_json())
    artifacts.finish(folder)
    _put_in_place(folder, context.dataset_dir)
    report.log_result(status, resolution, findings)
    return Summary(
        stage=Stage.PREPARE,
        ok=True,
        dataset=status,
        resolved=resolution.values,
        estimate=resolution.estimate,
        base_path=base.path.relative_to(context.artifacts).as_posix(),
        notes=resolution.notes,
    )


def _sizes(train: Cut, validation: Cut) -> DataSizes:
    return DataSizes(
        train_examples=len(train.kept),
        train_tokens=sum(len(example.tokens["input_ids"]) for example in train.kept),
        validation_tokens=sum(len(example.tokens["input_ids"]) for example in validation.kept),
        longest=max(example.length for example in [*train.kept, *validation.kept]),
    )


def _write(folder: Path, train: Cut, validation: Cut, attached: Attached) -> None:
    folder.mkdir()
    sides: tuple[tuple[Side, Cut], ...] = (("train", train), ("validation", validation))
    for side, part in sides:
        tokens.save_tokens(part.kept, folder / side)
        with (folder / f"{side}.jsonl").open("w", encoding="utf-8") as file:
            for example in part.kept:
                file.write(f"{example.text}\n")
                attached.kept(side, example)


def _put_in_place(folder: Path, target: Path) -> None:
    """Swap the finished folder in. Killed in between, there is no dataset, and the next attempt makes it again."""
    (target / artifacts.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _remove_leftovers(context: StageContext) -> None:
    """What a killed attempt of this run left half done."""
    for leftover in context.run_dir.glob(".prepare-*"):
        log.info("removes what an interrupted attempt left")
        shutil.rmtree(leftover, ignore_errors=True)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _refuse_empty(examples: list[Example], file: str, where: str) -> None:
    if not examples:
        raise UserInputError(
            f"{file} data: there are no examples in {where}", advice="add examples, for example one JSON object a line"
        )


def _model_invalid(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.MODEL_INVALID)
