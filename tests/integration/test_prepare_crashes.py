"""Killed at any of its writes, Prepare leaves nothing that a later attempt could trip over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.prepared_runs import CHATS, Laptop, lines
from tests.tiny_models import make_tiny_chat_model

# Runs Prepare again and again, each time in a fork that is killed at a later write to the disk, and then once more to
# the end. Forks of a process without threads: no lock can be left behind.
CRASHES = """
import json, os, pathlib, shutil, signal, sys
import peft, transformers.models.llama.modeling_llama
from finetune_api.conditions import Stage
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
import finetune_trainer.stages.prepare

root, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
config = frame.load_config(root / "run.json")
context = StageContext(config=config, artifacts=root / "artifacts", sources=root / "sources")
WRITES = [(os, "fsync"), (shutil, "copyfile"), (shutil, "rmtree"),
          *((pathlib.Path, name) for name in ("rename", "replace", "mkdir", "unlink", "open", "write_text"))]

def forked(work):
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kill_at(point):
    left = [point]
    def counted(function):
        def call(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)
        return call
    for owner, name in WRITES:
        setattr(owner, name, counted(getattr(owner, name)))

def attempt(point=0):
    kill_at(point)
    return frame.run_stage(Stage.PREPARE, context, root / "log")

def visible_manifests():
    paths = ((path, path.relative_to(context.artifacts).parts) for path in context.artifacts.rglob("manifest.json"))
    return [path for path, parts in paths if not any(part.startswith(".") for part in parts)]

def verify_then_attempt():
    for path in visible_manifests():
        artifacts.verify(path.parent)
    code = attempt()
    artifacts.verify(context.dataset_dir)
    return code

code, point = -9, 1
while code:
    shutil.rmtree(context.artifacts, ignore_errors=True)
    code = forked(lambda: attempt(point))
    again = forked(verify_then_attempt)
    left = [path.name for path in context.artifacts.rglob(".*") if not path.name.endswith(".tmp")]
    data = (context.dataset_dir / "train.jsonl").read_text()
    print(json.dumps({"point": point, "code": code, "again": again, "left": left, "data": data}), flush=True)
    point += step
"""
STEP = 9  # every ninth write; 1 tries them all (about ninety), which takes minutes


def test_killed_at_any_write_the_next_attempt_makes_it_whole(tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, make_tiny_chat_model(tmp_path / "models" / "tiny").parent)
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    (laptop.root / "run.json").write_text(context.config.model_dump_json(by_alias=True))
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(laptop.root), str(STEP)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) > 50 / STEP
    assert {outcome["code"] for outcome in outcomes[:-1]} == {-9}
    for outcome in outcomes:
        assert (outcome["again"], outcome["left"]) == (0, []), outcome
    assert len({outcome["data"] for outcome in outcomes}) == 1
