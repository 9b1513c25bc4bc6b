"""What to do about data that was refused: which file to correct, and where a column is missing what to write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune_api.dataset import Columns
from finetune_trainer.data.problems import Finding, Findings, plain_word, plain_words

NAMES = tuple(Columns.model_fields)  # in the order in which people have them: text, then label
# Names that stand together in the data of a task: where one of them lacks, the others mean what they say.
TOGETHER = (
    {"text", "text_pair", "label"},
    {"text", "tokens", "tags", "spans"},
    {"source", "target"},
    {"question", "context", "answers"},
    {"prompt", "completion"},
    {"prompt", "chosen", "rejected"},
)


def remedy(errors: Sequence[Finding], findings: Findings) -> str:
    """One sentence or two for the worst findings. Names of columns are said where they are plain words."""
    files = dict.fromkeys(error.file for error in errors)
    called = [f"{name} ({file})" if len(files) > 1 else name for file in files if (name := findings.name(file))]
    lines = f"correct these lines of {' and '.join(called)}" if called else "correct these lines"
    missing = next((error.file for error in errors if error.fault.check.startswith("missing_")), None)
    keys = findings.keys(missing) if missing else ()
    if not missing or not keys:
        return lines
    lacking = [error.fault.check.removeprefix("missing_") for error in errors if error.file == missing]
    said = list(_said(lacking, keys))
    return "; ".join([*said, f"{'or ' if said else ''}{lines} (the {missing} data has {plain_words(keys)})"])


def _said(lacking: Sequence[str], keys: Sequence[str]) -> Iterator[str]:
    """What the job has to say. The columns are a guess, made in their order, which is why it is called an example."""
    ours = set[str]().union(*(names for names in TOGETHER if names & set(lacking)))
    free = [word.strip("'") for key in keys if key not in ours and (word := plain_word(key)).startswith("'")]
    if "messages" in lacking:
        if len(free) >= 2 and "messages" not in keys:
            yield (
                "two columns of text train spec.task: Completion with "
                f"dataset.columns: {{prompt: {free[0]}, completion: {free[1]}}}; "
                "for Chat call them `instruction` and `output`, and each row is a question and its answer"
            )
        return
    wanted = [name for name in NAMES if name in lacking]
    if wanted and free:
        pairs = ", ".join(f"{name}: {theirs}" for name, theirs in zip(wanted, free, strict=False))
        yield f"say what the data calls it, for example dataset.columns: {{{pairs}}}"
