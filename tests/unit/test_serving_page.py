"""docs/serving.md has the limits, the errors and the metrics of our own server."""

from __future__ import annotations

from pathlib import Path

from tests.documented import ROOT

from finetune_trainer.serving import errors
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.metrics import Metrics

PAGE = (ROOT / "docs" / "serving.md").read_text()


def test_limits_are_those_of_the_server() -> None:
    config = ServerConfig(base_dir=Path(), base_name="base")
    sizes = (f"{config.max_request_bytes >> 20} MiB", f"{config.request_timeout_seconds:.0f} s")
    for bound in (config.max_concurrent, config.max_queue, *sizes):
        assert f"| {bound} |" in PAGE
    assert f"answers new requests for {config.drain_seconds:.0f} s more" in PAGE
    assert f"gives those that run {config.shutdown_grace_seconds:.0f} s" in PAGE


def test_errors_are_those_of_the_server() -> None:
    for kind in (errors.QueueFull, errors.BodyTooLarge, errors.ContextExceeded, errors.GenerationTimeout):
        assert f"{kind.status}, `{kind.code}`" in PAGE
    assert f"`{errors.ModelNotFound.code}`" in PAGE


def test_every_metric_is_told() -> None:
    for metric in Metrics().registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"`{name}`" in PAGE
