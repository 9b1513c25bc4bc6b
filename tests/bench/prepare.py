"""`python -m tests.bench.prepare [--megabytes 1000] [--output prepare.json]`: what Prepare costs, measured again.

Conversations of English prose (Python's own manual) are prepared for a tiny model with a tokenizer of 16,000 entries.
Memory is what the kernel says of the process that did nothing else (VmHWM), time is against the tokenizer alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from typing import Any

from tests.bench.machine import machine

VOCABULARY = 16_000
CONTEXT = 4096
BATCH = 256  # texts that the tokenizer alone gets at once: as many as Prepare gives it
MILLION = 10**6


def main() -> None:
    """Runs both measurements and prints them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.prepare", description=__doc__)
    megabytes = int(os.environ.get("FINETUNE_BENCH_MEGABYTES", "1000"))
    parser.add_argument("--megabytes", type=int, default=megabytes, help="size of the JSON Lines file")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--folder", type=Path, help="where the data lies for a while: about six times its size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-bench-", dir=arguments.folder) as folder:
        results = {"machine": machine(), **measure(Path(folder), arguments.megabytes)}
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def measure(folder: Path, megabytes: int) -> dict[str, Any]:
    """Memory for a file of 10 MB and one of `megabytes`; time for about a million tokens."""
    subprocess.run([sys.executable, "-m", "tests.bench.prepare_parts", "model", str(folder)], check=True)
    found: dict[str, Any] = {"memory": [], "time": {}}
    for size in dict.fromkeys((min(10, megabytes), megabytes)):
        data = folder / f"{size}.jsonl"
        write_data(data, size * 10**6)
        found["memory"].append({"megabytes": size, **part("prepare", folder, data)})
        data.unlink()
    data = folder / "million.jsonl"
    write_data(data, min(5, megabytes) * 10**6)
    found["time"] = part("compare", folder, data)
    return found


def part(name: str, folder: Path, data: Path) -> dict[str, Any]:
    """Run one part as a process of its own, and add what the kernel says of it."""
    command = [sys.executable, "-m", "tests.bench.prepare_parts", name, str(folder), str(data)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {**found, "process_seconds": round(time.monotonic() - started, 1), "peak_rss_mb": _megabytes(usage)}


def _megabytes(usage: resource.struct_rusage) -> int:
    return round(usage.ru_maxrss * 1024 / 10**6)  # Linux counts in KiB


def write_data(path: Path, size: int) -> None:
    """Conversations, no two alike, until the file has `size` bytes."""
    with path.open("w", encoding="utf-8") as file:
        for line in conversations():
            file.write(line)
            if file.tell() >= size:
                return


def conversations() -> Iterator[str]:
    """One or two questions and answers of 10 to 300 words, numbered."""
    words, draw = " ".join(topics.values()).split(), random.Random(0)
    for number in itertools.count():
        messages = []
        for turn in range(draw.choice((1, 1, 2))):
            messages.append({"role": "user", "content": f"{number}.{turn}: {_passage(words, draw, 40)}?"})
            messages.append({"role": "assistant", "content": _passage(words, draw, 300)})
        yield json.dumps({"messages": messages}) + "\n"


def _passage(words: list[str], draw: random.Random, most: int) -> str:
    start, length = draw.randrange(len(words) - most), draw.randrange(10, most)
    return " ".join(words[start : start + length])


if __name__ == "__main__":
    main()
