"""Every task by its name. A test holds the table complete."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.tasks import Task
from finetune_trainer.tasks.chat import Chat
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.completion import Completion
from finetune_trainer.tasks.kind import TaskKind
from finetune_trainer.tasks.preference import Preference
from finetune_trainer.tasks.question_answering import QuestionAnswering
from finetune_trainer.tasks.seq2seq import Seq2Seq
from finetune_trainer.tasks.token_classification import TokenClassification

KINDS: Mapping[Task, TaskKind] = {
    kind.task: kind
    for kind in (
        Chat(),
        Completion(),
        Preference(),
        Classification(),
        TokenClassification(),
        Seq2Seq(),
        QuestionAnswering(),
    )
}
