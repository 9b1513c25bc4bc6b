"""Serve: answer OpenAI-compatible requests with the base and the run's verified model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Literal

from finetune_api.conditions import Stage
from finetune_api.reports import EvaluateReport, Summary
from finetune_api.rollout import SmokeTest
from finetune_api.status import ResolvedValues
from finetune_trainer import artifacts
from finetune_trainer.context import ModelContext
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.methods import proof
from finetune_trainer.serving import ServerConfig, serve
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.training.device import limit_threads
from finetune_trainer.training.inputs import FACTS
from finetune_trainer.variables import read_part

log = logging.getLogger(__name__)
SMOKE_VARIABLE = "FINETUNE_SMOKE"


def run(context: ModelContext, host: str, port: int) -> None:
    """Serve until asked to stop. Raises ArtifactInvalidError when what is to be served is missing or was changed."""
    settings = server_config(context, host, port)
    facts = context.model_dir / FACTS
    known = Facts.from_json(facts.read_text(encoding="utf-8")) if facts.exists() else Facts()
    serve(settings, context.config.task, known)


def server_config(context: ModelContext, host: str, port: int) -> ServerConfig:
    """What the server of this run loads. The model is hashed, the base, which may be large, only measured."""
    config = context.config
    base_path, resolved = _prepared(context)
    artifacts.verify(context.artifacts / base_path, sizes_only=True)
    artifacts.verify(context.model_dir)
    adapter = proof.form_of(context.model_dir) == "Adapter"
    return ServerConfig(
        base_dir=context.artifacts / base_path,
        base_name=config.base_name,
        tuned_name=config.tuned_name,
        adapter_dir=context.model_dir if adapter else None,
        tuned_dir=None if adapter else context.model_dir,
        run=config.run,
        host=host,
        port=port,
        smoke=smoke_test(os.environ),
        question=_held_out(context),
        dtype=_precision(context, resolved),
        threads=limit_threads(resolved.model_parameters if resolved else None),
    )


def smoke_test(environment: Mapping[str, str]) -> SmokeTest:
    """What `serving.smokeTest` says. Raises UserInputError (SpecInvalid) that names the variable."""
    if not environment.get(SMOKE_VARIABLE):
        return SmokeTest()
    return read_part(environment, SMOKE_VARIABLE, SmokeTest, "a smoke test", "spec.serving.smokeTest") or SmokeTest()


def _held_out(context: ModelContext) -> str:
    """The first question that Evaluate kept; empty where it kept none. A server is not worse for a lost report."""
    path = context.evaluation_dir / "report.json"
    try:
        samples = EvaluateReport.model_validate_json(path.read_bytes()).samples
    except (OSError, ValueError) as error:
        log.warning("no held-out question for the smoke test: %s", error)
        return ""
    return samples[0].prompt if samples else ""


def _precision(context: ModelContext, resolved: ResolvedValues | None) -> Literal["float32", "auto"]:
    """A model that was trained in float32 is served in it on a GPU too. Train knows better than Prepare which it was:
    a GPU may lack bfloat16, a laptop the GPU."""
    try:
        trained = Summary.model_validate_json(context.report_path(Stage.TRAIN).read_bytes()).resolved
    except (OSError, ValueError):
        trained = None
    found = trained or resolved
    return "float32" if found and found.precision == "float32" else "auto"


def _prepared(context: ModelContext) -> tuple[str, ResolvedValues | None]:
    """The base's folder, relative to the artifact root, and what `auto` became."""
    path = context.report_path(Stage.PREPARE)
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactInvalidError(f"{path} cannot be read: {error}", advice="set a new spec.rerunToken") from error
    if summary.base_path is None:
        raise ArtifactInvalidError(f"{path} names no base model", advice="set a new spec.rerunToken")
    return summary.base_path, summary.resolved
