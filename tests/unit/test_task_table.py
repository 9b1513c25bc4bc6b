"""Every task and every method that the API names is there."""

from __future__ import annotations

from finetune_api.tasks import TASKS, MethodType, Task
from finetune_trainer.methods.table import METHODS
from finetune_trainer.serving.predict_table import PREDICTORS
from finetune_trainer.tasks.table import KINDS


def test_every_task_and_method_has_its_module() -> None:
    assert set(KINDS) == set(TASKS) == set(Task)
    assert set(METHODS) == set(MethodType)


def test_what_answers_is_what_the_api_says() -> None:
    for task, predictor in PREDICTORS.items():
        assert predictor.route == TASKS[task].route
    assert {task for task in TASKS if "completions" not in TASKS[task].route} == set(PREDICTORS)
