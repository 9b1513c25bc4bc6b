"""Benchmarks: tasks of EleutherAI's lm-eval by their names, for what the tuning may have broken."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Int

MOST_BENCHMARKS = 6
TASK_LENGTH = 48  # six of them, with their figures, fit into a termination message of 4,096 bytes
METRIC_LENGTH = 48
TaskName = Annotated[str, Field(min_length=1, max_length=TASK_LENGTH, pattern="^[A-Za-z0-9][-_.A-Za-z0-9]*$")]
MetricName = Annotated[str, Field(min_length=1, max_length=METRIC_LENGTH, pattern="^[A-Za-z0-9_@]+(,[-_A-Za-z0-9]+)?$")]


class BenchmarkSpec(ApiModel):
    """One task of lm-eval, which base and tuned model both do."""

    task: TaskName = Field(
        description="Name of the task in lm-eval, for example hellaswag or gsm8k; not of a group or a tag. Prepare "
        "fetches its data from the hub, or refuses the name."
    )
    limit: Int = Field(default=100, ge=1, le=10000, description="Questions at most: the first ones of the task's data.")
    few_shot_examples: Int | None = Field(
        default=None, ge=0, le=32, description="Solved examples before each question. Default: as the task has it."
    )
    metric: MetricName | None = Field(
        default=None,
        description="Which of the task's metrics counts, for example acc_norm; with a filter as lm-eval writes it: "
        "exact_match,flexible-extract. Default: the task's first.",
    )
