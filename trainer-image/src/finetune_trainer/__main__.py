"""`finetune-trainer STAGE --config run.json --artifacts DIR --sources DIR`: the one entry point of the image."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.conditions import Stage
from finetune_trainer import frame, removal
from finetune_trainer.context import ModelContext, StageContext
from finetune_trainer.distribution.environment import GANG, end_with_launcher, place
from finetune_trainer.errors import TrainerError
from finetune_trainer.left_out import unused, without

KUBELET_LOG, ARTIFACTS = Path("/dev/termination-log"), Path("/artifacts")
REPORT, REMOVE, POLL = "report", "remove", "poll"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. Returns the exit code; the tree in errors.py says what it means."""
    options = _parser().parse_args(arguments)
    if options.stage == REPORT:
        return _print_report(options)
    if options.stage == REMOVE:
        frame.set_up_log(REMOVE)
        return removal.run(os.environ, options.artifacts, options.termination_log or _kubelet_log())
    if options.stage == POLL:
        frame.stop_on_sigterm()
        log = options.termination_log or _kubelet_log()
        # Imported here: it brings the clients of hub and buckets, which take a second, and tqdm, which reads whether it
        # shall draw when it is imported.
        polling = importlib.import_module("finetune_trainer.polling")
        return int(polling.run(options.config, os.environ, options.sources.resolve(), log))
    stage = Stage(options.stage.capitalize())
    termination_log = options.termination_log or _kubelet_log()
    frame.set_up_log(stage)
    if stage is Stage.SERVE:
        return _serve(options, termination_log)
    try:
        snapshot = frame.load_config(options.config)
        config = frame.with_present_evaluation(snapshot, os.environ)
    except TrainerError as error:
        return frame.report_failure(stage, error, termination_log)
    rank = place().rank
    frame.set_up_log(stage, config, rank)
    artifacts, sources = options.artifacts.resolve(), options.sources.resolve()
    context = StageContext(config, artifacts, sources, first_evaluation=snapshot.evaluation)
    with without(unused(stage, config)):
        frame.stop_on_sigterm()
        if folder := os.environ.get(GANG):
            end_with_launcher()
            return frame.run_process(stage, context, Path(folder), rank)
        return frame.run_stage(stage, context, termination_log)


def _serve(options: argparse.Namespace, termination_log: Path | None) -> int:
    try:
        served = frame.served_run(options.config, os.environ)
    except TrainerError as error:
        return frame.report_failure(Stage.SERVE, error, termination_log)
    frame.set_up_log(Stage.SERVE, served)
    with without(unused(Stage.SERVE, served)):
        context = ModelContext(served, options.artifacts.resolve())
        return frame.run_server(context, options.host, options.port, termination_log)


def _kubelet_log() -> Path | None:
    return KUBELET_LOG if KUBELET_LOG.exists() else None


def _print_report(options: argparse.Namespace) -> int:
    """The run's page, or its card, on standard output. 1 when there is none: the run was not measured yet."""
    context = ModelContext(frame.served_run(options.config, os.environ), options.artifacts.resolve())
    path = context.card_path if options.card else context.page_path
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        print(f"{path}: {error.strerror}; Evaluate leaves it when it is through", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-trainer", description="Run one stage of a FineTuneJob.")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    texts = {
        Stage.PREPARE: "fetch model and data, check every example, decide what auto means",
        Stage.TRAIN: "train on the prepared data, or go on from the newest checkpoint",
        Stage.EVALUATE: "compare the tuned model with its base on held-out examples",
        Stage.JUDGE: "ask a judge which of base and tuned model answers better",
        Stage.PACKAGE: "export the tuned model, and bring it to registries and buckets",
        Stage.SERVE: "answer OpenAI-compatible requests with base and tuned model",
    }
    for stage, text in texts.items():
        part = stages.add_parser(stage.value.lower(), help=text, description=text)
        _add_places(part)
        part.add_argument("--sources", type=Path, default=Path("/sources"), help="folder with pvc/ and configmap/")
        part.add_argument("--termination-log", type=Path, help=f"where the summary goes (default {KUBELET_LOG})")
        if stage is Stage.SERVE:
            part.add_argument("--host", default="0.0.0.0", help="address to listen on")
            part.add_argument("--port", type=int, default=8000, help="port to listen on")
    report = stages.add_parser(REPORT, help="print the run's report", description="Print the run's report (HTML).")
    report.add_argument("--card", action="store_true", help="the model card (Markdown) in its place")
    _add_places(report)
    remove = stages.add_parser(
        REMOVE, help="remove what FINETUNE_REMOVE names of finished runs", description="Remove files of finished runs."
    )
    remove.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="root of the artifact volume")
    remove.add_argument("--termination-log", type=Path, help=f"where the result goes (default {KUBELET_LOG})")
    poll = stages.add_parser(
        POLL, help="look whether the data is still what the run has read", description="Look at the data's sources."
    )
    poll.add_argument("--config", type=Path, default=Path("/etc/finetune/run.json"), help="run.json of the run")
    poll.add_argument("--sources", type=Path, default=Path("/sources"), help="folder with pvc/ and configmap/")
    poll.add_argument("--termination-log", type=Path, help=f"where the result goes (default {KUBELET_LOG})")
    return parser


def _add_places(part: argparse.ArgumentParser) -> None:
    part.add_argument("--config", type=Path, default=Path("/etc/finetune/run.json"), help="run.json of the run")
    part.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="root of the artifact volume")


if __name__ == "__main__":
    sys.exit(main())
