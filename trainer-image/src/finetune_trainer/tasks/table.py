"""Every task by its name. A test holds the table complete."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.tasks import Task
from finetune_trainer.tasks.chat import Chat
from finetune_trainer.tasks.completion import Completion
from finetune_trainer.tasks.kind import TaskKind

KINDS: Mapping[Task, TaskKind] = {kind.task: kind for kind in (Chat(), Completion())}
