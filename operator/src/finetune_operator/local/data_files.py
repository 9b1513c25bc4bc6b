"""A data file that was given where a job belongs: how it is known, and the job that would name it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from finetune_api import API_VERSION, KIND
from finetune_api.spec import Task
from finetune_api.tasks import TASKS
from finetune_operator.local.errors import BadInput

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".txt")
HEAD_BYTES = 65_536
DELIMITERS = ",;\t"
# Keys that only the data of a task has, the particular before the general.
TELLING: Mapping[str, Task] = {
    "messages": Task.CHAT,
    "conversations": Task.CHAT,
    "instruction": Task.CHAT,
    "rejected": Task.PREFERENCE,
    "preferred_output": Task.PREFERENCE,
    "completion": Task.COMPLETION,
    "label": Task.CLASSIFICATION,
    "tags": Task.TOKEN_CLASSIFICATION,
    "spans": Task.TOKEN_CLASSIFICATION,
    "target": Task.SEQ2SEQ,
    "answers": Task.QUESTION_ANSWERING,
    "text": Task.COMPLETION,
}
# A small model of the kind that the task needs.
MODELS = {Task.SEQ2SEQ: "google/flan-t5-base"}
ENCODER, DECODER = "answerdotai/ModernBERT-base", "HuggingFaceTB/SmolLM2-135M-Instruct"


def refuse_data(file: str) -> None:
    """Raise BadInput, with the job to write, when the file holds examples."""
    path = Path(file)
    keys = _keys(path)
    if path.suffix.lower() in SUFFIXES or (keys and "kind" not in keys and path.suffix.lower() == ".json"):
        named = path.with_name("-".join(path.name.split()))  # a source has no blanks
        rename = "" if named == path else f"rename it: mv {shlex.quote(str(path))} {shlex.quote(str(named))}; then "
        claim = shlex.quote(f"data={path.parent}")
        raise BadInput(
            f"{file} is data, not a job: a job is a YAML file that names the data, the model and the task",
            f"{rename}write this as job.yaml, then: finetune check -f job.yaml --claim {claim}\n\n"
            f"{job_for(named, keys)}",
        )


def job_for(path: Path, keys: list[str]) -> str:
    """A whole job for the data, in YAML: the task that its keys tell, or for two columns text after text."""
    task = next((task for key, task in TELLING.items() if key in keys), None)
    columns = ""
    if task is None and len(keys) >= 2:
        task = Task.COMPLETION
        columns = f"\n    columns: {{prompt: {_word(keys[0])}, completion: {_word(keys[1])}}}"
    task = task or Task.CHAT
    rules = TASKS[task]
    model = MODELS.get(task) or (DECODER if rules.decoder else ENCODER)
    return (
        f"apiVersion: {API_VERSION}\n"
        f"kind: {KIND}\n"
        f"metadata: {{name: my-job}}\n"
        f"spec:\n"
        f"  task: {task}    # its data has: {rules.data}. Tasks: {', '.join(TASKS)}\n"
        f"  baseModel: {{source: hf://{model}}}\n"
        f"  dataset:\n"
        f"    train: {{source: {_word(f'pvc://data/{path.name}')}}}{columns}\n"
        f"  output: {{claimName: models}}"
    )


def _keys(path: Path) -> list[str]:
    """Of the first example, or the columns; empty when they cannot be read in passing."""
    try:
        with path.open("rb") as file:
            text = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    except OSError:
        return []
    first = text.split("\n", 1)[0].strip()
    if not text.startswith(("{", "[")):
        return _header(first) if path.suffix.lower() in (".csv", ".tsv") else []
    try:
        # A list that is longer than what was read: its first object is enough.
        value = json.JSONDecoder().raw_decode(text.lstrip("[ \r\n\t"))[0]
    except ValueError:
        return []
    return list(value) if isinstance(value, dict) else []


def _header(line: str) -> list[str]:
    counts = Counter({delimiter: line.count(delimiter) for delimiter in DELIMITERS})
    return [name.strip().strip('"') for name in line.split(counts.most_common(1)[0][0])]


def _word(text: str) -> str:
    """As a YAML value inside braces: in quotes where it is more than a plain word."""
    return text if text.replace("://", "").replace("/", "").replace(".", "").isidentifier() else json.dumps(text)
