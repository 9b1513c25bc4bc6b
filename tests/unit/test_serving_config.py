"""Settings that cannot work are refused before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.serving.config import ServerConfig, ServingError, check_config, cpu_limit


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    for name in ("base/config.json", "base/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    return ServerConfig(
        base_dir=tmp_path / "base", adapter_dir=tmp_path / "adapter", base_name="tiny", tuned_name="tuned"
    )


def test_a_good_configuration_is_accepted(config: ServerConfig) -> None:
    check_config(config)
    check_config(replace(config, adapter_dir=None, tuned_name=None))
    assert config.names == ("tuned", "tiny")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tuned_name": None}, "needs both"),
        ({"tuned_name": "tiny"}, "both named"),
        ({"tuned_dir": Path("x")}, "not both"),
        ({"base_dir": Path("/nowhere")}, "no config.json"),
        ({"adapter_dir": Path("/nowhere")}, "no adapter_config.json"),
        ({"max_concurrent": 0}, "above zero"),
    ],
)
def test_a_wrong_configuration_is_refused(config: ServerConfig, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ServingError, match=said):
        check_config(replace(config, **change))


def test_weights_that_are_not_safetensors_are_refused(config: ServerConfig) -> None:
    (config.base_dir / "model.safetensors").rename(config.base_dir / "pytorch_model.bin")
    with pytest.raises(ServingError, match="safetensors"):
        check_config(config)


@pytest.mark.parametrize(("quota", "cpus"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None)])
def test_threads_follow_the_quota(tmp_path: Path, quota: str, cpus: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert cpu_limit(file) == (cpus or len(os.sched_getaffinity(0)))
    assert cpu_limit(tmp_path / "none") == len(os.sched_getaffinity(0))
