"""Device and threads: as much as the container has, and no silent fallback in a pod."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.trained_runs import RESOLVED
from transformers import LlamaConfig

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.status import ResolvedValues
from finetune_trainer.errors import TrainerError
from finetune_trainer.serving import ServerConfig, weights
from finetune_trainer.stages import serve
from finetune_trainer.training import device

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", ALLOWED),
        ("50000 100000", 1),
        ("100000 100000", 1),
        (f"{100_000 * ALLOWED * 4} 100000", ALLOWED),
        ("nonsense", ALLOWED),
        (None, ALLOWED),
    ],
)
def test_cpus_are_the_quota_of_the_container(tmp_path: Path, quota: str | None, expected: int) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota + "\n")
    assert device.cpu_limit(file) == expected


def test_no_gpu_asked_for_is_float32_on_the_cpu() -> None:
    assert device.choose_device(0, "bfloat16") == device.Device("cpu", "float32", "cpu")
    assert device.choose_device(0, "float32").dtype == torch.float32


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "computes on the CPU" in device.choose_device(1, "bfloat16").note
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(TrainerError, match="was given a GPU") as caught:
        device.choose_device(1, "bfloat16")
    assert "driver" in caught.value.advice


@pytest.mark.parametrize(("supported", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_only_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, supported: bool, precision: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    chosen = device.choose_device(1, "bfloat16")
    assert (chosen.kind, chosen.precision) == ("cuda", precision)
    assert bool(chosen.note) is not supported


@pytest.mark.parametrize(
    ("kind", "wanted", "supported", "expected"),
    [
        ("cuda", "bfloat16", True, "bfloat16"),
        ("cuda", "bfloat16", False, "float32"),
        ("cuda", "float32", True, "float32"),
        ("cpu", "bfloat16", True, "float32"),
        ("cpu", "float32", False, "float32"),
    ],
)
def test_one_rule_of_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, wanted: Any, supported: bool, expected: str
) -> None:
    """The server loads as the trainer computed, whatever the type in which the base is stored."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert device.computing_precision(kind, wanted) == expected
    asked: list[torch.dtype] = []

    def load(_folder: Path, *, dtype: torch.dtype, **_: Any) -> torch.nn.Linear:
        asked.append(dtype)
        return torch.nn.Linear(1, 1)

    LlamaConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(weights.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, _device: module)
    config = ServerConfig(base_dir=tmp_path, base_name="b", dtype="float32" if wanted == "float32" else "auto")
    weights.load_model(tmp_path, config, torch.device(kind))
    assert asked == [getattr(torch, expected)]


@pytest.mark.parametrize(
    ("prepared", "trained", "expected"),
    [
        ("bfloat16", None, "auto"),
        ("bfloat16", "bfloat16", "auto"),
        ("bfloat16", "float32", "float32"),  # the GPU had no bfloat16, or there was none
        ("float32", None, "float32"),
        (None, None, "auto"),
    ],
)
def test_the_server_is_told_what_was_trained(
    tmp_path: Path, prepared: str | None, trained: str | None, expected: str
) -> None:
    context: Any = SimpleNamespace(report_path=lambda stage: tmp_path / stage)
    values = ResolvedValues.model_validate({**RESOLVED, "precision": trained or "float32"})
    if trained:
        report = Summary(stage=Stage.TRAIN, ok=True, resolved=values)
        (tmp_path / Stage.TRAIN).write_text(report.model_dump_json(by_alias=True))
    wanted = ResolvedValues.model_validate({**RESOLVED, "precision": prepared}) if prepared else None
    assert serve._precision(context, wanted) == expected


def test_omp_threads_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert device.limit_threads() == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(device, "cpu_limit", lambda: 3)
    try:
        assert device.limit_threads() == 3
        assert device.limit_threads(135_000_000) == 3
        assert device.limit_threads(1_000_000) == 1  # threads would only wait for each other
    finally:
        torch.set_num_threads(before)
