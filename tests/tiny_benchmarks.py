"""Data for real lm-eval tasks, of our making: the repositories that the tasks name, with a few rows in their form."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hub_mirror import Repository

PLACES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Cairo", "Perth", "Lima", "Rome")
ARC_README = """---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: train, path: ARC-Easy/train-*}
  - {split: test, path: ARC-Easy/test-*}
  - {split: validation, path: ARC-Easy/validation-*}
---
"""


def arc_easy(questions: int = 6, name: str = "ARC-Easy") -> Repository:
    """`allenai/ai2_arc`, which the task arc_easy reads: multiple choice, by log-likelihood."""
    readme = ARC_README.replace("config_name: ARC-Easy", f"config_name: {name}")
    return _repository(
        readme, {f"ARC-Easy/{split}": _arc_rows(split, questions) for split in ("train", "test", "validation")}
    )


def gsm8k(questions: int = 4) -> Repository:
    """`openai/gsm8k`: an answer is written, and a number read from it."""
    rows = [
        {"question": f"{n} boats leave, and {n} more. How many?", "answer": f"{n} and {n} are {2 * n}.\n#### {2 * n}"}
        for n in range(questions)
    ]
    readme = "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/train-*}\n"
    readme += "  - {split: test, path: main/test-*}\n---\n"
    return _repository(readme, {"main/train": rows, "main/test": rows})


def lambada(texts: int = 5) -> Repository:
    """`EleutherAI/lambada_openai`: the last word of a text, and the perplexity of it."""
    rows = [
        {"text": f"In the morning the boats leave {PLACES[n]}, and in the evening they are back in {PLACES[n]}"}
        for n in range(texts)
    ]
    readme = "---\nconfigs:\n- config_name: default\n  data_files: [{split: test, path: data/test-*}]\n---\n"
    return _repository(readme, {"data/test": rows})


def _arc_rows(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{split}-{n}",
            "question": f"What do you see at {PLACES[n % len(PLACES)]} {n} in the morning?",
            "choices": {"text": ["boats", f"the harbour in {n}", "winter", "sun"], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[n % 4],
        }
        for n in range(count)
    ]


def _repository(readme: str, parts: dict[str, Sequence[dict[str, Any]]]) -> Repository:
    files = {f"{name}-00000-of-00001.parquet": _parquet(rows) for name, rows in parts.items()}
    return Repository({"README.md": readme.encode(), **files})


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()
