"""Prepare: fetch model and data once, check every example, decide what `auto` means.

Input that cannot be trained on ends here, before a GPU is asked for. What is left behind is whole or not there:
the dataset folder is built under another name and renamed when its manifest is written.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_api.conditions import FailureReason, Stage
from finetune_api.dataset import DataFile, DatasetSpec
from finetune_api.reports import Summary
from finetune_api.status import DatasetStatus
from finetune_api.tasks import Task
from finetune_trainer import artifacts
from finetune_trainer.benchmarks.data import fetch_benchmarks
from finetune_trainer.benchmarks.harness import require_benchmarks
from finetune_trainer.context import StageContext
from finetune_trainer.data import dataset_report, report, tokens
from finetune_trainer.data.examples import special_tokens
from finetune_trainer.data.flow import Attached
from finetune_trainer.data.problems import FileName, Findings
from finetune_trainer.data.quality.inspection import Inspection
from finetune_trainer.data.reading import DatasetReading
from finetune_trainer.data.rows import RowReading
from finetune_trainer.data.split import Split, split
from finetune_trainer.data.spool import Part, Spool
from finetune_trainer.data.tokens import Stored
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape, measure_shape
from finetune_trainer.evaluation.checks import require_checks
from finetune_trainer.methods.continued import of_same_form
from finetune_trainer.resolve import DataSizes, resolve, resolve_max_length
from finetune_trainer.sources.continued import fetch_continued
from finetune_trainer.sources.datafile import describe, fetch_data
from finetune_trainer.sources.model import BaseModel, fetch_model
from finetune_trainer.sources.version import fingerprint_before_reading
from finetune_trainer.tasks.kind import ExampleFormat
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.device import cpu_limit
from finetune_trainer.training.inputs import FACTS, stop_tokens

log = logging.getLogger(__name__)


def run(context: StageContext) -> Summary:
    """Do the stage. Raises UserInputError on anything that the user has to change."""
    config = context.config
    require_checks(config.evaluation.checks)
    require_benchmarks(config.evaluation.benchmarks)
    _remove_leftovers(context)
    base, told = _model(context), config.base_model.told
    if context.before is not None:  # the adapter is as it is
        config = config.model_copy(update={"method": of_same_form(config.method, context.before)})
        context = replace(context, config=config)
    kind = KINDS[config.task]
    tokenizer = load_tokenizer(base.path, told, config.task)
    shape = measure_shape(base.path, kind, config.method, tokenizer, told)
    log.info(
        "base model: %s parameters, of which %s are trained; context %s tokens",
        f"{shape.parameters:,}",
        f"{shape.trainable:,}",
        f"{shape.context:,}",
    )
    form = kind.example_format(tokenizer, stop_tokens(base.path, tokenizer), special_tokens(tokenizer))
    scratch = context.run_dir / f".prepare-{secrets.token_hex(4)}"
    scratch.mkdir(parents=True)
    findings = Findings()
    inspection = Inspection(config.task, config.dataset, findings)
    fingerprint = fingerprint_before_reading(config.dataset, context.sources, config.policy)
    try:
        fetch_benchmarks(context, scratch / "benchmarks")
        with Spool(scratch / "spool.arrow", config.hyperparameters.seed) as spool:
            summary = _prepare(context, base, shape, tokenizer, form, findings, inspection, spool, scratch)
        return summary.model_copy(update={"dataset": _known_by(summary.dataset, fingerprint)})
    except UserInputError as error:
        refusal = dataset_report.refusal(error, context, findings, inspection)
        refusal.dataset = _known_by(refusal.dataset, fingerprint)
        raise refusal from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _known_by(status: DatasetStatus | None, fingerprint: str | None) -> DatasetStatus | None:
    return status and status.model_copy(update={"fingerprint": fingerprint})


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
    log.info("base model: %s", config.base_model.told)
    if config.continued_from is not None:
        base = fetch_continued(context, config.continued_from)
    else:
        base = fetch_model(
            config.base_model,
            models=context.models_dir,
            sources=context.sources,
            policy=config.policy,
            owner=f"{config.job}-r{config.run}",
        )
    log.info("base model: ready in %s", base.path.relative_to(context.artifacts))
    return base


def _prepare(
    context: StageContext,
    base: BaseModel,
    shape: ModelShape,
    tokenizer: Any,
    form: ExampleFormat,
    findings: Findings,
    inspection: Inspection,
    spool: Spool,
    scratch: Path,
) -> Summary:
    """Read, split, cut, resolve, write the dataset folder, and sum up."""
    config, attached = context.config, inspection.attached
    spec, wanted = config.dataset, config.hyperparameters
    reading = _reading(context, form, findings, attached, scratch / "sources")
    sides = _split(spec, *reading.read(spec, spool), spool, findings, inspection)
    lengths = tokens.length_stats(spool.lengths, sides.times)
    max_length = resolve_max_length(wanted.max_length, lengths, shape.context)
    folder = scratch / "dataset"
    train, validation = tokens.store(
        spool, sides, max_length, form, folder, findings, attached, drop_over_long=inspection.drops_over_long
    )
    inspection.finish(train.over_long + validation.over_long)
    tokens.refuse_great_loss(train, max_length, spec.max_lost_percent, shape.context, findings)
    for side in (train, validation):
        if not side.examples:
            raise _empty(side.side, f"what is left after the cut to {max_length} tokens")
    findings.add("train", 0, report.unlearned(form.facts, train))
    facts = replace(form.facts, counts=tuple(train.labels))
    resolution = resolve(config, _sizes(train, validation), shape, max_length, base.revision, cpu_limit(), facts)
    status = report.dataset_status(sides, train, validation, lengths, facts, findings, reading.sha256, inspection)
    artifacts.write_json(folder / FACTS, facts.to_json())
    artifacts.finish(folder)
    samples = inspection.samples.rendered(form, tokenizer)
    dataset_report.write(context, dataset_report.full(status, resolution, findings, inspection, samples))
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


def _reading(
    context: StageContext, form: ExampleFormat, findings: Findings, attached: Attached, scratch: Path
) -> DatasetReading:
    config = context.config
    rows = RowReading(config.task, config.dataset.columns, config.policy.max_bytes)

    def fetch(data: DataFile, folder: Path) -> Path:
        return fetch_data(data, sources=context.sources, scratch=folder, policy=config.policy)

    return DatasetReading(rows, form, findings, attached, fetch, scratch)


def _split(
    spec: DatasetSpec, train: list[Part], held: Part | None, spool: Spool, findings: Findings, inspection: Inspection
) -> Split:
    """Decide which example is on which side. Raises UserInputError on all that is wrong with the examples."""
    inspection.attached.end_of_reading(findings)
    report.refuse_errors(findings)
    gone = inspection.left_out(spool, train, held)
    for part, (file, data, _) in zip(train, spec.train.parts, strict=True):
        if part.first == part.after:
            raise _empty(file, describe(data))
    if held and held.first == held.after:
        raise _empty("validation", describe(spec.validation))
    sides = split(spool, train, held, spec.validation.fraction or 0, findings, gone)
    inspection.compare(spool, sides)
    log.info("data: %d training examples, %d held out", sides.train_examples, sides.validation_examples)
    return sides


def _sizes(train: Stored, validation: Stored) -> DataSizes:
    return DataSizes(
        train_rows=train.rows,
        train_tokens=train.tokens,
        validation_tokens=validation.tokens,
        longest=max(train.longest, validation.longest),
    )


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
    dataset_report.remove(context)


def _empty(file: FileName, where: str) -> UserInputError:
    return UserInputError(
        f"{file} data: there are no examples in {where}", advice="add examples, for example one JSON object a line"
    )


def _model_invalid(message: str, advice: str) -> UserInputError:
    return UserInputError(message, advice=advice, reason=FailureReason.MODEL_INVALID)
