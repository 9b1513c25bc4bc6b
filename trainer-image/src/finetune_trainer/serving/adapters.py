"""An adapter that cannot be switched row by row, as one model that answers as Evaluate measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.tasks.question_answering_spans import keep_segments


def as_measured(base: PreTrainedModel, directory: Path) -> Any:
    """The base with the adapter in `directory`.

    In float32 it is merged, which saves its work in every call. In bfloat16 it stays beside the weights, as it was
    measured: of what was added to a weight most would be rounded away.
    """
    tuned = PeftModel.from_pretrained(base, str(directory))
    if base.dtype is torch.float32:
        return tuned.merge_and_unload()
    keep_segments(tuned)
    return tuned
