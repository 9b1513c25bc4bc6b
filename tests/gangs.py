"""Trainings by several processes of this machine, with the trainer's own code.

`python -m tests.gangs CELLS.json` loads the libraries once and forks the processes of one training after the other from
there: started one by one, each would load them for ten seconds. The launcher that starts processes in earnest has tests
of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.run_config import RunConfig
from finetune_trainer.context import StageContext
from finetune_trainer.distribution import environment, launcher

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    """A run as `make_run` left it, and how it shall be trained. `pods`: each process is told that it is the only one of
    a pod."""

    context: StageContext
    processes: int
    distribution: Mapping[str, str]
    pods: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.context.config.to_wire(),
            "artifacts": str(self.context.artifacts),
            "processes": self.processes,
            "distribution": dict(self.distribution),
            "pods": self.pods,
        }


def train_cells(cells: Sequence[Cell], folder: Path) -> list[Summary]:
    """Train them all, one after the other. The first process's summary of each."""
    wanted = folder / "cells.json"
    wanted.write_text(json.dumps([cell.to_json() for cell in cells]))
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.gangs", str(wanted)]
        done = subprocess.run(command, cwd=REPOSITORY, env=quiet(), stdout=subprocess.PIPE, stderr=log, check=False)
    assert done.returncode == 0, (folder / "log").read_text()[-6000:]
    return [Summary.model_validate_json(line) for line in done.stdout.splitlines()]


def quiet(**more: str) -> dict[str, str]:
    """This environment for a process of one thread, on the CPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", **more}


def main(cells: Sequence[dict[str, Any]]) -> int:
    """Print a summary a cell. Returns how many failed."""
    from trl import DPOTrainer, SFTTrainer  # noqa: F401  # loaded before the processes are

    import finetune_trainer.stages.train  # noqa: F401

    failed = 0
    for cell in cells:
        config = RunConfig.model_validate(cell["config"])
        context = StageContext(config, Path(cell["artifacts"]), Path(cell["artifacts"]) / "sources")
        summary = _train(context, cell["processes"], json.dumps(cell["distribution"]), pods=cell["pods"])
        failed += not summary.ok
        print(summary.model_dump_json(by_alias=True, exclude_none=True), flush=True)
    return failed


def _train(context: StageContext, processes: int, distribution: str, *, pods: bool) -> Summary:
    port = launcher.free_port()
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(processes):
            told = {environment.DISTRIBUTION: distribution, **(as_pod(rank, processes) if pods else {})}
            children.append(_fork(context, rank, processes, port, Path(folder), told))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        text = launcher.words_of(Path(folder), 0).read_text()
    print("exit codes", codes, file=sys.stderr)
    return Summary.model_validate_json(text)


def as_pod(node: int, nodes: int) -> dict[str, str]:
    """What a pod of a training is told of its place among the others."""
    return {
        environment.NODES: str(nodes),
        environment.NODE_RANK: str(node),
        environment.RENDEZVOUS: "127.0.0.1:29500",
    }


def _fork(context: StageContext, rank: int, processes: int, port: int, folder: Path, told: Mapping[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from finetune_trainer import frame

        os.environ |= {
            **dict(zip(environment.PLACE, map(str, (rank, processes, rank, processes)), strict=True)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            environment.GANG: str(folder),
            **told,
        }
        if processes == 1:
            del os.environ[environment.GANG], os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]
        frame.set_up_log(Stage.TRAIN, context.config, rank)
        code = frame.run_process(Stage.TRAIN, context, folder, rank)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
