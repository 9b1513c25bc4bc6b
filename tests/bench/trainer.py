"""Our trainer against a plain TRL script by the same settings on the same rows, in turn, on this machine.

`python -m tests.bench.trainer [--output FILE]` prints JSON. A GPU is used where there is one. On a CPU the processor
time of the process is what counts, since others may use the machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.bench.machine import machine
from tests.gpu.setting import Setting
from tests.gpu.throughput import RACES, Race, result

# On a CPU a model that a core computes hundreds of tokens a second of; lengths as of chats, and all the same.
CPU_RACES = (
    Race("4M", 8, 256, steps=15, rounds=3),
    Race("4M", 8, 128, steps=11, rounds=3, mixed=False),
)
AT_LEAST = {"ours_over_plain": 0.97, "packed_over_plain": 1.5}  # the latter where lengths are mixed


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.bench.trainer")
    options.add_argument("--output", type=Path, help="file for the JSON, beside standard output")
    chosen = options.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    root = Path(tempfile.mkdtemp(prefix="finetune-bench-"))
    try:
        races = [_race(Setting(root, smoke=False, gpu=gpu), race) for race in (RACES if gpu else CPU_RACES)]
    finally:
        shutil.rmtree(root, ignore_errors=True)
    text = json.dumps({"machine": _machine(gpu), "races": races}, indent=1)
    print(text)
    if chosen.output:
        chosen.output.write_text(text + "\n", encoding="utf-8")
    return 0


def _race(setting: Setting, race: Race) -> dict[str, Any]:
    found = result(setting, race)
    counts = "by_the_clock" if setting.gpu else "by_processor_time"
    reached = {
        name: found[counts][name] >= least
        for name, least in AT_LEAST.items()
        if race.mixed or name != "packed_over_plain"
    }
    return {"race": vars(race), "counts": counts, "reached": reached, **found}


def _machine(gpu: bool) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}
    return {**machine(), "gpu": torch.cuda.get_device_name() if gpu else None, "packages": packages}


if __name__ == "__main__":
    sys.exit(main())
