"""What docs/tasks/chat.md shows is data that Prepare takes, and a Job that the API takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from finetune_api.job import FineTuneJob
from finetune_trainer.data.chat import check_chat
from finetune_trainer.messages import TemplateAbilities

PAGE = (Path(__file__).parents[2] / "docs" / "tasks" / "chat.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_examples_are_good_data() -> None:
    found = [check_chat(json.loads(text), TemplateAbilities()) for text in blocks("json")]
    assert len(found) == 4
    assert [[fault.check for fault in faults] for faults in found] == [[], [], [], ["tools_missing"]]


def test_the_job_is_one() -> None:
    (text,) = blocks("yaml")
    assert FineTuneJob.model_validate(yaml.safe_load(text)).spec.task.value == "Chat"
