"""Checks of one example of the task Completion: {"prompt": text, "completion": text}, or {"text": text}, all of which
is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.problems import Fault, json_type, plain_word

NEEDED = (
    "it needs prompt and completion, or `text`, of which all is learned; if the data calls them otherwise, say so in "
    "dataset.columns"
)


def check_completion(example: Mapping[str, Any]) -> list[Fault]:
    """Everything wrong with the example. Without an error among it, `normalise_completion` takes it."""
    if "messages" in example:
        return [Fault("wrong_task", "the line has messages; set spec.task to Chat")]
    if _is_plain(example):
        return _check_text(example)
    faults = []
    for key in ("prompt", "completion"):
        value = example.get(key)
        if key not in example:
            faults.append(Fault(f"missing_{key}", f"the line has no `{key}`; {NEEDED}"))
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
    if _is_plain(example):
        return {"prompt": "", "completion": example["text"]}
    return {"prompt": example["prompt"], "completion": example["completion"]}


def _is_plain(example: Mapping[str, Any]) -> bool:
    return "text" in example and "prompt" not in example and "completion" not in example


def _check_text(example: Mapping[str, Any]) -> list[Fault]:
    text = example["text"]
    faults = []
    if not isinstance(text, str):
        faults.append(Fault("text_type", f"`text` must be a text, not {json_type(text)}", "text"))
    elif not text.strip():
        faults.append(Fault("empty_text", "`text` is empty, so there is nothing to learn; remove the line", "text"))
    for key in example:
        if key != "text":
            note = f"the key {plain_word(key)} beside text is not used; it is ignored"
            faults.append(Fault("unknown_key", note, severity="warning"))
    return faults
