"""The frame around every stage: reuse of what is done, reports, the termination message, exit codes, the log.

run_stage(stage, context) is run(context) of `stages/STAGE.py` with everything that all stages share around it.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import EvaluateReport, Summary
from finetune_api.run_config import RunConfig, ServedRun
from finetune_api.spec import EvaluationSpec
from finetune_api.status import Beginning, Checkpoint
from finetune_trainer import artifacts
from finetune_trainer.adoption import adopt_former_run
from finetune_trainer.context import ModelContext, StageContext
from finetune_trainer.distribution.environment import GANG, gang
from finetune_trainer.distribution.launcher import launch, own_command, words_of
from finetune_trainer.errors import (
    ArtifactInvalidError,
    InterruptedStageError,
    PackageError,
    TrainerError,
    UserInputError,
)
from finetune_trainer.explanation import explain as explain
from finetune_trainer.explanation import redact as redact
from finetune_trainer.training.fitted import fitted
from finetune_trainer.variables import read_part

log = logging.getLogger(__name__)

EVALUATION_VARIABLE, SERVED_VARIABLE = "FINETUNE_EVALUATION", "FINETUNE_SERVED"


def load_config(path: Path) -> RunConfig:
    """Read run.json, of whichever version. Raises UserInputError: ConfigMissing when the file is not there,
    ConfigUnreadable when this version cannot make sense of it. Both name the file and what is wrong."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserInputError(
            f"the run configuration {path} cannot be opened: {error.strerror or error}",
            advice="name the file by --config; in a cluster, check that the run's ConfigMap exists",
            reason=FailureReason.CONFIG_MISSING,
        ) from error
    try:
        return RunConfig.from_record(text)
    except ValueError as error:
        raise UserInputError(
            f"{path} cannot be read as a run configuration: {error}",
            advice="use the trainer of the version that wrote it, or compare it with the schema of run.json",
            reason=FailureReason.CONFIG_UNREADABLE,
        ) from error


def served_run(path: Path, environment: Mapping[str, str]) -> ServedRun:
    """What a server's pod is told of its run; elsewhere run.json has it. Raises UserInputError."""
    given = read_part(environment, SERVED_VARIABLE, ServedRun, "what is served", "what is served")
    return load_config(path) if given is None else given


def with_present_evaluation(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """The configuration with the settings of the Evaluate Job: a run's snapshot may be older than `evaluation`, which
    is no part of a run. Raises UserInputError (SpecInvalid) that names the variable."""
    given = read_part(environment, EVALUATION_VARIABLE, EvaluationSpec, "evaluation settings", "spec.evaluation")
    return config if given is None else config.model_copy(update={"evaluation": given})


def run_stage(stage: Stage, context: StageContext, termination_log: Path | None) -> int:
    """Do the stage, or find that it was done. Returns the exit code; errors.py says what it means."""
    try:
        adopt_former_run(context, stage)
        summary = reusable_summary(stage, context)
        if summary:
            log.info("was done before: the report and what it describes are intact, nothing to do")
        else:
            started = time.monotonic()
            log.info("starts")
            summary = _stamped(_call(stage, context), context)
            if writes_reports(context):
                artifacts.write_json(
                    context.report_path(stage), summary.model_dump_json(by_alias=True, exclude_none=True)
                )
            log.info("done in %.0f seconds", time.monotonic() - started)
    except BaseException as error:
        return report_failure(stage, error, termination_log, context.config)
    write_message(termination_log, summary)
    return 0


def run_process(stage: Stage, context: StageContext, folder: Path, rank: int) -> int:
    """One of the processes that do a stage together. Leaves its summary in `folder` for the launcher, which alone looks
    for what was done before, and writes the reports. Returns the exit code."""
    words = words_of(folder, rank)
    try:
        artifacts.write_json(words, _call(stage, context).model_dump_json(by_alias=True, exclude_none=True))
    except BaseException as error:
        return report_failure(stage, error, words, context.config)
    return 0


def run_server(context: ModelContext, host: str, port: int, termination_log: Path | None) -> int:
    """Serve until asked to stop. Returns the exit code."""
    try:
        importlib.import_module("finetune_trainer.stages.serve").run(context, host, port)
    except BaseException as error:
        return report_failure(Stage.SERVE, error, termination_log, context.config)
    return 0


def reusable_summary(stage: Stage, context: StageContext) -> Summary | None:
    """The report of this very run when the stage is done and what it left is intact; otherwise None. What is to be
    packaged may change, and lies elsewhere: each export has a record of its own."""
    if stage is Stage.PACKAGE:
        return None
    try:
        summary = Summary.model_validate_json(context.report_path(stage).read_bytes())
    except (OSError, ValueError):
        return None
    if not summary.ok or (summary.stage, summary.run, summary.hash) != (stage, context.config.run, context.config.hash):
        return None
    if summary.evaluation and (summary.evaluation.settings_hash or context.first_evaluation_hash) != (
        context.evaluation_hash
    ):
        log.info("was done before by other evaluation settings, and is done again by the present ones")
        return None
    try:
        _verify_output(stage, context, summary)
    except (TrainerError, OSError, ValueError) as error:
        log.warning("was reported done, but has to be done again: %s", error)
        return None
    return summary.model_copy(update={"reused": True})


def report_failure(
    stage: Stage, error: BaseException, termination_log: Path | None, config: ServedRun | None = None
) -> int:
    """Say why the stage ended, in the log and in the termination message; return the exit code."""
    failure, exit_code = explain(error)
    known = {"run": config.run if config else None, "hash": config.hash if isinstance(config, RunConfig) else None}
    dataset = error.dataset if isinstance(error, UserInputError) else None
    package = error.done if isinstance(error, PackageError) else None
    kept = _kept(error)
    summary = Summary(stage=stage, ok=False, failure=failure, dataset=dataset, package=package, **known, **kept)
    write_message(termination_log, summary)
    # A stack trace helps only when the fault is ours; users need the sentence.
    trace = error if exit_code == 1 else None
    log.error(
        "reason=%s %s%s", failure.reason, failure.message, f" ({failure.advice})" * bool(failure.advice), exc_info=trace
    )
    return exit_code


def _kept(error: BaseException) -> dict[str, Any]:
    """What an interrupted training has saved, for its summary."""
    progress = error.progress if isinstance(error, InterruptedStageError) else None
    if progress is None or progress.checkpoint_step is None:
        return {}
    return {"checkpoint": Checkpoint(step=progress.checkpoint_step), "stop_costs": progress.stop_costs}


def write_message(termination_log: Path | None, summary: Summary) -> None:
    """Leave the summary where the kubelet looks for it. Not atomic: the file is a mount and cannot be replaced."""
    if termination_log:
        termination_log.write_text(summary.to_message(), encoding="utf-8")


class _LogFormat(logging.Formatter):
    """`TIME LEVEL job=ns/name run=1 stage=Prepare text`, one line a record but for stack traces."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {prefix} %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _stamp(record.created)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def set_up_log(stage: str, config: ServedRun | None = None, rank: int = 0) -> None:
    """Send our own progress lines and the libraries' warnings to standard error, each with job, run and stage. Of
    several processes the first one tells the progress; the others, by their rank, what is worth a warning."""
    for library in ("HF_HUB", "HF_DATASETS"):  # their progress bars would make one endless line of the pod's log
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # and those of others, as lm-eval's
    warnings.simplefilter("ignore", FutureWarning)  # notices among libraries, nothing that a user can act on
    where = f"job={config.namespace}/{config.job} run={config.run} " if config else ""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormat(f"{where}stage={stage}" + (f" rank={rank}" if rank else "")))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("finetune_trainer").setLevel(logging.WARNING if rank else logging.INFO)
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)  # warns of a kernel that is not for training
    logging.captureWarnings(True)


def stop_on_sigterm() -> None:
    """End the stage with exit code 75 on SIGTERM. As process 1 of a container we would otherwise not hear it.

    A stage that saves something first (Train) or drains (Serve) puts its own handler in place of this one.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise InterruptedStageError("asked to stop (SIGTERM)", advice="nothing to do: the stage is run again")

    signal.signal(signal.SIGTERM, stop)


def writes_reports(context: StageContext) -> bool:
    """Whether this is the pod that tells: the only one, or the first of a training on several."""
    return gang(context.gpus, context.config.processes).node == 0


def _call(stage: Stage, context: StageContext) -> Summary:
    """Do the stage, in this process or in several."""
    if stage is Stage.TRAIN and GANG not in os.environ:
        together = gang(context.gpus, context.config.processes)
        if together.size > 1 and fitted(context.run_dir) is None:
            return launch(context, together, own_command(sys.argv[1:]))
    summary = importlib.import_module(f"finetune_trainer.stages.{stage.value.lower()}").run(context)
    assert isinstance(summary, Summary)
    return summary


def _stamped(summary: Summary, context: StageContext) -> Summary:
    measured = summary.evaluation
    if measured:
        measured = measured.model_copy(update={"settings_hash": context.evaluation_hash})
    config = context.config
    begun = None
    if summary.stage is Stage.PREPARE:
        begun = Beginning(trigger=config.trigger, occasion=config.occasion, time=_stamp(time.time()))
    update = {"run": config.run, "hash": config.hash, "reused": False, "evaluation": measured, "begun_by": begun}
    return summary.model_copy(update=update)


def _stamp(moment: float) -> str:
    """Unix time as the status has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _verify_output(stage: Stage, context: StageContext, summary: Summary) -> None:
    """Raise when what the report describes is not there any more or was changed."""
    if stage is Stage.PREPARE:
        artifacts.verify(context.dataset_dir)
        artifacts.verify(context.artifacts / (summary.base_path or "missing"), sizes_only=True)
        if context.before is not None:
            artifacts.verify(context.before)
        for benchmark in context.config.evaluation.benchmarks:
            artifacts.verify(context.benchmarks_dir / benchmark.task)
    elif stage is Stage.TRAIN:
        digest = artifacts.verify(context.model_dir)
        if summary.model is None or summary.model.sha256 != digest:
            raise ArtifactInvalidError(f"{context.model_dir} is not the model that the report describes")
    elif stage in (Stage.EVALUATE, Stage.JUDGE):
        EvaluateReport.model_validate_json((context.evaluation_dir / "report.json").read_bytes())
