"""Which examples are trained on and which are held out; pure functions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from finetune_trainer.data.flow import Example
from finetune_trainer.data.problems import Fault, Findings
from finetune_trainer.errors import UserInputError

FEW_EXAMPLES = 50  # OpenAI's guide: clear improvements begin at 50 to 100 examples; below we warn


def find_duplicates(examples: Sequence[Example]) -> list[int]:
    """Line numbers of the examples that occurred before, in order. They stay: repeating can be meant as a weight."""
    seen: set[str] = set()
    lines = []
    for example in examples:
        digest = example.digest
        if digest in seen:
            lines.append(example.line)
        seen.add(digest)
    return lines


def hold_out(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split into (train, held out): about `fraction` of the examples, at least one, and never all.

    Depends on the seed and on each example's content only, not on the order. Equal examples go to the same side, so
    that nothing held out is trained on; one of each is held out.
    Raises UserInputError with fewer than two different examples.
    """
    counts = Counter(example.digest for example in examples)
    if len(counts) < 2:
        raise UserInputError(
            f"train data: {len(counts)} different example(s), and at least 2 are needed to hold one out",
            advice="add examples, or give dataset.validation a source of its own",
        )
    ranked = sorted(counts, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    wanted = min(max(1, round(fraction * len(counts))), len(counts) - 1)
    held = set(ranked[:wanted])
    train = [example for example in examples if example.digest not in held]
    first = {example.digest: example for example in reversed(examples) if example.digest in held}
    return train, sorted(first.values(), key=lambda example: example.line)


def without_overlap(train: Sequence[Example], held_out: Sequence[Example]) -> tuple[list[Example], list[int]]:
    """(held-out examples that are not trained on, lines of those that are). Measuring on the latter would flatter."""
    known = {example.digest for example in train}
    kept = [example for example in held_out if example.digest not in known]
    return kept, [example.line for example in held_out if example.digest in known]


def note_duplicates(lines: Sequence[int], findings: Findings) -> None:
    text = "the example occurred before; it is trained on again"
    for line in lines:
        findings.add("train", line, [Fault("duplicate", text, severity="warning")])


def note_overlap(lines: Sequence[int], findings: Findings) -> None:
    text = "the held-out example is also a training example; it is left out of the evaluation"
    for line in lines:
        findings.add("validation", line, [Fault("overlap", text, severity="warning")])


def note_few(train: Sequence[Example], findings: Findings) -> None:
    if len(train) < FEW_EXAMPLES:
        text = f"only {len(train)} training examples; clear improvements begin at {FEW_EXAMPLES} to 100"
        findings.add("train", 0, [Fault("few_examples", text, severity="warning")])
