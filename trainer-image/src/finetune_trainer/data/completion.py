"""Checks of one example of the task Completion: {"prompt": text, "completion": text}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.problems import Fault, json_type, plain_word


def check_completion(example: Mapping[str, Any]) -> list[Fault]:
    """Everything wrong with the example. Without an error among it, `normalise_completion` takes it."""
    if "messages" in example:
        return [Fault("wrong_task", "the line has messages; set spec.task to Chat")]
    faults = []
    for key in ("prompt", "completion"):
        value = example.get(key)
        if key not in example:
            faults.append(Fault(f"missing_{key}", f"the line has no `{key}`; it needs prompt and completion"))
        elif not isinstance(value, str):
            faults.append(Fault(f"{key}_type", f"`{key}` must be a text, not {json_type(value)}", key))
    if example.get("completion") == "":
        faults.append(Fault("empty_completion", "`completion` is empty, so there is nothing to learn", "completion"))
    for key in example:
        if key not in ("prompt", "completion"):
            text = f"the key {plain_word(key)} beside prompt and completion is not used; it is ignored"
            faults.append(Fault("unknown_key", text, severity="warning"))
    return faults


def normalise_completion(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": example["prompt"], "completion": example["completion"]}
