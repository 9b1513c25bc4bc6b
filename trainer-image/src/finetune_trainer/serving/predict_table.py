"""Which tasks predict instead of generating, and by which route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.tasks import Task
from finetune_trainer.serving.predict_answer import AnswerPredictor
from finetune_trainer.serving.predict_classify import ClassifyPredictor
from finetune_trainer.serving.predict_tag import TagPredictor
from finetune_trainer.serving.predictor import Predictor

PREDICTORS: Mapping[Task, Predictor[Any]] = {
    Task.CLASSIFICATION: ClassifyPredictor(),
    Task.TOKEN_CLASSIFICATION: TagPredictor(),
    Task.QUESTION_ANSWERING: AnswerPredictor(),
}
