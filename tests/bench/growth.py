"""What memory tells: readings of one process after the same work again and again, with the same objects there."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

WARM_UP = 2  # rounds: pools fill, caches get their size
FEWEST = 6  # rounds of one process after that, for a first and a last third of two
ALLOWED = 1.03  # of the first third, at most: what an allocator does without any leak


@dataclass(frozen=True, slots=True)
class Reading:
    """Anonymous memory of a process after a round, MiB, and how many passes it had made by then."""

    process: int
    mib: float
    passes: int


def growth(readings: list[Reading]) -> dict[str, Any]:
    """Of the process with the most rounds: memory of the last third of its rounds as a ratio to the first third, after
    the warm-up, and KiB a pass between them. `ratio` is None where no process had enough rounds to tell."""
    lives: dict[int, list[Reading]] = {}
    for reading in readings:
        lives.setdefault(reading.process, []).append(reading)
    longest = max(lives.values(), key=len, default=[])[WARM_UP:]
    found: dict[str, Any] = {"rounds": [asdict(each) for each in readings], "processes": len(lives), "ratio": None}
    if len(longest) < FEWEST:
        return found
    third = len(longest) // 3
    first, last = longest[:third], longest[-third:]
    mib = [statistics.mean(each.mib for each in part) for part in (first, last)]
    passes = [statistics.mean(each.passes for each in part) for part in (first, last)]
    return {
        **found,
        "mib": [round(each, 2) for each in mib],
        "passes": round(passes[1] - passes[0]),
        "ratio": round(mib[1] / mib[0], 4),
        "kib_per_pass": round((mib[1] - mib[0]) * 1024 / max(1.0, passes[1] - passes[0]), 3),
    }


def grew(found: dict[str, Any]) -> str | None:
    """What is wrong with it, if anything."""
    if found["ratio"] is None:
        return f"memory: no process led for {WARM_UP + FEWEST} rounds, so nothing is told: {found}"
    return f"memory grew: {found}" if found["ratio"] > ALLOWED else None
