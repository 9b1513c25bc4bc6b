"""Ours against a plain TRL script by the same settings on the same rows, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.spec import MethodSpec
from tests.gpu.setting import Setting, mixed_lengths, prepared_run, rows_of
from tests.gpu.trainers import WARM_UP, Stopwatch, ours, plain


@dataclass(frozen=True)
class Race:
    """`longest` tokens of a row; lengths are mixed, or all the same."""

    model: str
    micro: int
    longest: int
    steps: int
    rounds: int
    mixed: bool = True
    accumulation: int = 1


RACES = (
    Race("SmolLM2-135M", 16, 1024, steps=16, rounds=2),
    Race("Llama-3.2-1B", 16, 1024, steps=16, rounds=2),
)
SMOKE = (Race("tiny", 8, 128, steps=8, rounds=1),)


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for race in SMOKE if setting.smoke else RACES:
        yield {"race": vars(race), **result(setting, race)}


def result(setting: Setting, race: Race) -> dict[str, Any]:
    """Useful tokens a second of each in each round, and the ratios of the medians."""
    count = race.micro * race.accumulation * (race.steps + 2)
    lengths = mixed_lengths(count, race.longest) if race.mixed else [race.longest] * count
    rows = rows_of(lengths, 1000)

    def context(packing: bool) -> Any:
        name = "packed" if packing else "padded"
        return prepared_run(
            setting,
            name,
            setting.model(race.model),
            rows,
            method=MethodSpec(rank=16),
            resolved={
                "batch_size": race.micro * race.accumulation,
                "micro_batch_size": race.micro,
                "gradient_accumulation": race.accumulation,
                "max_length": race.longest,
                "packing": packing,
            },
        )

    padded, packed = context(False), context(True)
    found: dict[str, list[Stopwatch]] = {"plain": [], "ours": [], "packed": []}
    if setting.gpu:  # the first training of a process is slower than all after it
        plain(padded, WARM_UP + 1)
    for _ in range(race.rounds):
        found["plain"].append(plain(padded, race.steps))
        found["ours"].append(ours(padded, race.steps))
        found["packed"].append(ours(packed, race.steps))
    return {
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "threads": torch.get_num_threads(),
        "by_the_clock": _compared({name: [_rate(each, each.seconds) for each in of] for name, of in found.items()}),
        "by_processor_time": _compared(
            {name: [_rate(each, each.processor_seconds) for each in of] for name, of in found.items()}
        ),
    }


def _rate(watch: Stopwatch, seconds: float) -> float:
    return round(watch.useful_tokens / seconds, 1)


def _compared(rates: dict[str, list[float]]) -> dict[str, Any]:
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tokens_per_second": rates,
        "ours_over_plain": round(median["ours"] / median["plain"], 3),
        "packed_over_plain": round(median["packed"] / median["plain"], 3),
    }
