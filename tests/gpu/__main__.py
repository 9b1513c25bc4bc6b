"""`python -m tests.gpu [--output DIR] [--only PART,PART] [--smoke]`: every part, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Read when the libraries are loaded. Whether there is a GPU is asked of the driver, not of CUDA: a process that has
# begun to use CUDA cannot be forked.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "triton", "numpy")


def environment(setting: Any) -> Iterator[dict[str, Any]]:
    """What it ran on."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count(), "packages": {}}
    for name in PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            found["packages"][name] = None
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum().item()
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_bytes": total,
            "free_bytes_after_context": free,
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version,memory.used", "--format=csv,noheader"),
        }
    yield found


def models(setting: Any) -> Iterator[dict[str, Any]]:
    """The bases that are read from disk."""
    from tests.gpu.setting import base_folder

    for name in ("20M", "SmolLM2-135M", "Llama-3.2-1B"):
        started = time.monotonic()
        base_folder(setting, setting.model(name))
        yield {"model": name, "seconds": round(time.monotonic() - started, 1)}


# In the order of what would be missed most: the module and function of a part, and the seconds after which it is
# ended with what it has.
PARTS = {
    "environment": ("tests.gpu.__main__:environment", 30),
    "models": ("tests.gpu.__main__:models", 60),
    "packing": ("tests.gpu.packing:run", 60),
    "memory": ("tests.gpu.memory:run", 150),
    "out-of-memory": ("tests.gpu.stages:run_out_of_memory", 60),
    "resume": ("tests.gpu.stages:run_resume", 120),
    "throughput": ("tests.gpu.throughput:run", 180),
    "methods": ("tests.gpu.stages:run_methods", 180),
}


def load(name: str) -> Callable[[Any], Iterator[dict[str, Any]]]:
    module, _, function = PARTS[name][0].partition(":")
    found: Callable[[Any], Iterator[dict[str, Any]]] = getattr(importlib.import_module(module), function)
    return found


def load_libraries() -> None:
    """Once for all parts, without using CUDA: bitsandbytes asks for the GPU's capability when it is imported, which
    would begin to. Any GPU of the last years has more than it is told."""
    import torch

    with patch.object(torch.cuda, "get_device_capability", lambda *_: (8, 0)):
        for name in PARTS:
            load(name)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.gpu")
    options.add_argument("--output", type=Path, default=Path(".build/gpu"), help="folder for figures and logs")
    options.add_argument("--only", default="", help="parts, separated by commas")
    options.add_argument("--smoke", action="store_true", help="on the CPU, with tiny models")
    chosen = options.parse_args()
    if not chosen.smoke and not _has_gpu():
        print("skipped: there is no CUDA device here (nvidia-smi lists none, or PyTorch was built without CUDA)")
        return 0
    chosen.output.mkdir(parents=True, exist_ok=True)
    load_libraries()
    from tests.gpu.setting import Setting

    root = Path(tempfile.mkdtemp(prefix="finetune-gpu-"))
    names = [name for name in PARTS if not chosen.only or name in {"environment", *chosen.only.split(",")}]
    results = {}
    try:
        method = "fork"  # the libraries are loaded once for all
        for name in names:
            results[name] = _run(name, Setting(root, chosen.smoke, gpu=not chosen.smoke), chosen.output, method)
            if name == "environment" and not results[name]["ok"]:
                method = "spawn"  # a library has begun to use CUDA in this process
                results[name] = _run(name, Setting(root, chosen.smoke, gpu=not chosen.smoke), chosen.output, method)
            (chosen.output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    failed = [name for name, result in results.items() if not result["ok"]]
    print(f"\n{len(names) - len(failed)} of {len(names)} parts ok" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(name: str, setting: Any, output: Path, method: str) -> dict[str, Any]:
    """One part in a process of its own: a broken CUDA context ends with it, and memory is given back."""
    _, bound = PARTS[name]
    context: Any = multiprocessing.get_context(method)
    lines = output / f"{name}.jsonl"
    lines.unlink(missing_ok=True)
    started = time.monotonic()
    print(f"== {name}", flush=True)
    process = context.Process(target=_part, args=(name, setting, lines, output / f"{name}.log"))
    process.start()
    process.join(bound * (10 if setting.smoke else 1))
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    seconds = round(time.monotonic() - started, 1)
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    ok = process.exitcode == 0 and all(each.get("ok", True) for each in found)
    for each in found:
        print(f"   {json.dumps(each)}", flush=True)
    print(f"   {'ok' if ok else f'NOT OK (exit code {process.exitcode})'} in {seconds} s", flush=True)
    if not ok:
        print((output / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
    return {"ok": ok, "seconds": seconds, "ended_at_its_bound": late, "found": found}


def _part(name: str, setting: Any, lines: Path, log: Path) -> None:
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
        logging.basicConfig(level=logging.INFO, force=True)
        try:
            for found in load(name)(setting):
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found, default=str) + "\n")
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # threads of servers and of data loading are of no interest any more


def _has_gpu() -> bool:
    import torch

    return torch.version.cuda is not None and bool(_output("nvidia-smi", "--list-gpus"))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


if __name__ == "__main__":
    sys.exit(main())
