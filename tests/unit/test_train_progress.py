"""Numbers that are not finite end training at once, and by name; what a stop costs is measured."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from finetune_api.interruptions import StopCosts
from finetune_api.reports import ProgressFile
from finetune_trainer import artifacts
from finetune_trainer.errors import LossNotFiniteError
from finetune_trainer.training.progress import ProgressCallback, check_finite, lost_steps
from finetune_trainer.training.trainer import ContinuedProgress

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "logs",
    [{"loss": NAN, "grad_norm": 1.0}, {"loss": INF}, {"loss": 1.0, "grad_norm": NAN}, {"eval_loss": -INF}],
)
def test_a_number_that_is_not_finite(logs: dict[str, Any]) -> None:
    with pytest.raises(LossNotFiniteError, match="at step 7") as caught:
        check_finite(logs, 7)
    assert "learningRateMultiplier" in caught.value.advice


def test_other_numbers_do_not_matter() -> None:
    check_finite({"loss": 1.5, "grad_norm": 0, "entropy": NAN, "note": "text"}, 1)


def test_lost_steps_are_those_that_no_checkpoint_had(tmp_path: Path) -> None:
    """Of all attempts: the sum lies on the volume, whoever looks at the pods meanwhile."""
    path = tmp_path / "progress.json"
    assert lost_steps(path, 0) == 0
    lost = 0
    for reached, resumed, all_lost in ((17, 10, 7), (20, 20, 7), (31, 25, 13)):
        before = ProgressFile(step=reached, stop_costs=StopCosts(lost_steps=lost))
        path.write_text(before.model_dump_json(by_alias=True))
        lost = lost_steps(path, resumed)
        assert lost == all_lost


@pytest.mark.parametrize("text", ["", "{", '{"step": "many"}', "[]", '{"step": 5, "stopCosts": {"lostSteps": -1}}'])
def test_a_file_that_nobody_can_read_counts_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "progress.json"
    path.write_text(text)
    assert lost_steps(path, 3) == 0


def test_a_file_of_an_earlier_version_counts_what_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text('{"step": 9, "percent": 20}')
    assert lost_steps(path, 4) == 5


def test_the_slowest_step_and_checkpoint_are_kept(tmp_path: Path) -> None:
    callback = ProgressCallback(tmp_path / "progress.json", 0)
    for seconds in (1.0, 3.0, 2.0):
        callback.checkpoint_saved(1, seconds)
    written = ProgressFile.model_validate_json((tmp_path / "progress.json").read_bytes())
    assert written.stop_costs == StopCosts(save_seconds=3.0)


def test_progress_that_cannot_be_noted_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    progress = ProgressCallback(tmp_path / "progress.json", 0)
    monkeypatch.setattr(artifacts, "write_json", full)
    progress.checkpoint_saved(20, 1.0)
    assert progress.values.checkpoint_step == 20
    assert "No space left on device" in caplog.text


def test_progress_that_fails_otherwise_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(artifacts, "write_json", denied)
    with pytest.raises(PermissionError):
        ProgressCallback(tmp_path / "progress.json", 0).checkpoint_saved(20, 1.0)


@pytest.mark.parametrize(("answers_after", "reports"), [(0.0, 101), (5.0, 13)], ids=["answers", "hangs"])
def test_a_receiver_that_hangs_does_not_hold_the_training_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers_after: float, reports: int
) -> None:
    """500 s of training, a step each 0.1 s. The library's own time-out is 5 s."""
    now = [1000.0]
    asked: list[float] = []

    def urlopen(*_: Any, **__: Any) -> Any:
        asked.append(now[0])
        now[0] += answers_after
        raise TimeoutError

    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://192.0.2.1/progress")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told, state = ContinuedProgress(), TrainerState(max_steps=5000, is_world_process_zero=True)
    told.on_train_begin(None, state, None)
    for step in range(1, 5001):
        now[0] += 0.1
        state.global_step = step
        told.on_step_end(None, state, None)
    told.on_train_end(None, state, None)
    assert abs(len(asked) - reports) <= 1
    assert now[0] - 1500 <= 500 * 0.115 + 2 * answers_after, "the first and the last report are always tried"
