"""The stages themselves, from the data to an answer, in bfloat16 with CUDA's kernels; memory that runs out; a stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from finetune_api.conditions import ExitCode, Stage
from finetune_api.reports import Summary, parse_summary
from finetune_api.run_config import RunConfig
from finetune_api.spec import MethodSpec, MethodType
from finetune_trainer import frame
from finetune_trainer.context import StageContext
from finetune_trainer.distribution import plan
from finetune_trainer.methods import proof
from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.stages import serve
from tests.gpu.setting import GIB, Setting, base_folder, prepared_run, rows_of
from tests.gpu.trainers import ours

WORDS = ("morning", "spring", "winter", "harbour", "boats", "sun", "rain", "market")
PLACES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Cairo", "Perth", "Lima", "Rome", "Baku", "Riga", "Bern", "Doha")
MODEL = "20M"
BOUND = 60.0


def run_methods(setting: Setting) -> Iterator[dict[str, Any]]:
    """Each method through Prepare, Train and Evaluate, then asked."""
    for method in MethodType:
        started = time.monotonic()
        try:
            found = _whole_run(setting, method)
        except Exception as error:  # one method must not hide the others
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        yield {"method": method.value, "seconds": round(time.monotonic() - started, 1), **found}


def _whole_run(setting: Setting, method: MethodType) -> dict[str, Any]:
    context = _chat_run(setting, f"run-{method.value.lower()}", method)
    found: dict[str, Any] = {}
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
        message = context.artifacts / "termination-log"
        code = frame.run_stage(stage, context, message)
        if code:
            return {"ok": False, "stage": stage.value, "code": code, "message": json.loads(message.read_text())}
    trained = Summary.model_validate_json(context.report_path(Stage.TRAIN).read_bytes())
    evaluation = json.loads((context.evaluation_dir / "report.json").read_bytes())["evaluation"]
    found["precision"] = trained.resolved.precision if trained.resolved else None
    found["kind"] = trained.model.kind if trained.model else None
    found["train_seconds"] = trained.train_seconds
    found["loss"] = {each: evaluation[each]["loss"] for each in ("base", "tuned")}
    found["notes"] = trained.notes
    found["merged"] = _merged(setting, context)
    found["answers"] = _asked(setting, context)
    better = found["loss"]["tuned"] < found["loss"]["base"]
    found["ok"] = better and found["precision"] == setting.precision and all(found["answers"])
    return found


def _chat_run(setting: Setting, name: str, method: MethodType) -> StageContext:
    folder = base_folder(setting, setting.model(MODEL))
    mount = setting.root / "sources" / "pvc"
    mount.mkdir(parents=True, exist_ok=True)
    link = mount / "models"
    if not link.is_symlink():
        link.symlink_to(folder.parent)
    data = setting.root / "sources" / "configmap" / name
    data.mkdir(parents=True, exist_ok=True)
    (data / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in _chats(240)))
    rate = "2" if method is MethodType.FULL else "10"
    config = RunConfig.model_validate(
        {
            "namespace": "team",
            "job": name,
            "run": 1,
            "hash": "0123456789abcdef",
            "task": "Chat",
            "baseModel": {"source": f"pvc://models/{folder.name}"},
            "baseName": "base",
            "tunedName": "tuned",
            "dataset": {
                "train": {"configMapRef": {"name": name, "key": "train.jsonl"}},
                "validation": {"fraction": 0.1},
            },
            "method": {"type": method.value},
            "hyperparameters": {"epochs": 2, "batchSize": 16, "learningRateMultiplier": rate},
            "evaluation": {"maxExamples": 16, "sampleAnswers": 2},
            "gpus": setting.gpus,
            "paths": {"run": f"team/{name}/runs/1-01234567", "models": f"team/fetched-{name}"},
        }
    )
    return StageContext(config=config, artifacts=setting.root / "artifacts", sources=setting.root / "sources")


def _chats(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me about {PLACES[n % len(PLACES)]} {n}."},
                {"role": "assistant", "content": " and ".join(WORDS[: 1 + n % len(WORDS)]) + f" in {n}."},
            ]
        }
        for n in range(count)
    ]


@torch.no_grad()
def _merged(setting: Setting, context: StageContext) -> dict[str, float] | None:
    """An adapter merged into its base against the adapter beside it, in the type that is served: largest difference
    of the scores, and how often the first word is the same. None where a whole model was made."""
    if proof.form_of(context.model_dir) != "Adapter":
        return None
    config = serve.server_config(context, "127.0.0.1", 8000)
    dtype = torch.bfloat16 if setting.gpu else torch.float32
    ids = torch.randint(5, 400, (4, 64), generator=torch.Generator().manual_seed(0)).to(setting.device)

    def loaded() -> Any:
        base = AutoModelForCausalLM.from_pretrained(config.base_dir, dtype=dtype).to(setting.device)
        return PeftModel.from_pretrained(base, config.adapter_dir).eval()

    beside = loaded().forward(input_ids=ids).logits.float()
    whole = loaded().merge_and_unload()
    target = context.run_dir / "merged"
    whole.save_pretrained(target)
    again = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).to(setting.device).eval()
    merged = again(input_ids=ids).logits.float()
    same = (merged.argmax(-1) == beside.argmax(-1)).float().mean()
    largest = (merged - beside).abs().max() / beside.abs().max()
    return {"largest_difference_relative": float(largest), "same_first_word": float(same)}


def _asked(setting: Setting, context: StageContext) -> list[str]:
    """What the server says, base and tuned, each from its own thread of work on the device."""
    config = serve.server_config(context, "127.0.0.1", 8000)
    engine = Engine(config, Metrics())
    answers = []
    with TestClient(create_app(config, engine)) as client:
        end = time.monotonic() + BOUND
        while client.get("/readyz").status_code != 200:
            if not engine.alive or time.monotonic() > end:
                raise RuntimeError(f"the server does not get ready: {engine.failure}")
            time.sleep(0.05)
        for model in (config.base_name, config.tuned_name):
            body = {
                "model": model,
                "max_tokens": 16,
                "messages": [{"role": "user", "content": "Tell me about Oslo 1."}],
            }
            answer = client.post("/v1/chat/completions", json=body)
            choice = answer.json().get("choices", [{}])[0] if answer.status_code == 200 else {}
            answers.append(choice.get("message", {}).get("content") or f"status {answer.status_code}" * bool(choice))
        device = str(engine.weights.device) if engine.weights else "none"
    return [*answers, device]


def run_out_of_memory(setting: Setting) -> Iterator[dict[str, Any]]:
    """A real CUDA out-of-memory: the process may have what a half of the micro batch needs, and no more."""
    if not setting.gpu:
        yield {"skipped": "needs CUDA"}
        return
    context = _loaded_run(setting, "oom", micro=32)
    small, large = (_peak(setting, micro) for micro in (16, 32))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    message = context.artifacts / "oom-log"
    with patch.object(plan, "MICRO_TOKENS", 32 * 1024):  # so that Train takes what does not fit
        code = frame.run_stage(Stage.TRAIN, context, message)
    torch.cuda.set_per_process_memory_fraction(1.0)
    summary = parse_summary(message.read_text())
    notes = summary.notes if summary else []
    yield {
        "peak_gib": {"16": round(small / GIB, 3), "32": round(large / GIB, 3)},
        "code": code,
        "notes": notes,
        "steps": summary.steps if summary else None,
        "ok": code == 0 and any("32 examples" in note and "16" in note for note in notes),
    }


def _loaded_run(setting: Setting, name: str, micro: int) -> StageContext:
    rows = rows_of([1024] * 64, 1000)
    resolved = {"batch_size": 32, "micro_batch_size": micro, "gradient_accumulation": 32 // micro, "max_length": 1024}
    return prepared_run(setting, name, setting.model(MODEL), rows, method=MethodSpec(), resolved=resolved)


def _peak(setting: Setting, micro: int) -> int:
    """Bytes that the allocator took for some steps."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ours(_loaded_run(setting, f"oom-{micro}", micro), steps=2)
    return torch.cuda.max_memory_reserved()


def run_resume(setting: Setting) -> Iterator[dict[str, Any]]:
    """Stopped by SIGTERM in the middle, started again, and how far its weights are from an uninterrupted run's."""
    folders, steps = [], 6 if setting.smoke else 60
    for name, stopped in (("whole", False), ("stopped", True)):
        context = prepared_run(
            setting,
            f"resume-{name}",
            setting.model(MODEL),
            rows_of([128] * 8 * steps, 1000),
            method=MethodSpec(),
            resolved={"total_steps": steps, "checkpoint_steps": steps, "evaluation_steps": steps, "max_length": 128},
        )
        codes = []
        if stopped:
            watcher = threading.Thread(target=_stop_after, args=(context, steps // 3), daemon=True)
            watcher.start()
            codes.append(frame.run_stage(Stage.TRAIN, context, None))
        codes.append(frame.run_stage(Stage.TRAIN, context, None))
        folders.append((context, codes))
    (whole, _), (again, codes) = folders
    summary = Summary.model_validate_json(again.report_path(Stage.TRAIN).read_bytes())
    yield {
        "codes": codes,
        "resumed_from_step": summary.resumed_from_step,
        "largest_difference": _distance(whole.model_dir, again.model_dir),
        "ok": codes == [ExitCode.INTERRUPTED, 0] and bool(summary.resumed_from_step),
    }


def _stop_after(context: StageContext, step: int) -> None:
    end = time.monotonic() + BOUND
    while time.monotonic() < end:
        try:
            if json.loads(context.progress_path.read_bytes())["step"] >= step:
                break
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)


def _distance(one: Path, other: Path) -> float:
    from safetensors.torch import load_file

    first, second = (load_file(folder / proof.ADAPTER_WEIGHTS) for folder in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)
