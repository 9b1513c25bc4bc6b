"""Prepare with settings of the dataset, and its report as a reader finds it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from finetune_api.dataset import DatasetSpec
from finetune_trainer.context import StageContext
from tests.html_page import Page


def with_dataset(context: StageContext, **fields: Any) -> StageContext:
    """The same run with more settings of `spec.dataset`, which are checked as those of a user are."""
    config = context.config
    wire = {**config.dataset.to_wire(), **fields}
    return dataclasses.replace(context, config=config.model_copy(update={"dataset": DatasetSpec.model_validate(wire)}))


def report_of(context: StageContext) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((context.run_dir / "reports" / "dataset.json").read_text())
    return found


def page_of(context: StageContext) -> Page:
    return Page((context.run_dir / "reports" / "dataset.html").read_text())
