"""A job that begins at run 1 again, with its runs still on the volume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_api.conditions import Stage
from finetune_api.reports import ModelSummary, Summary
from finetune_api.run_config import RunConfig, RunPaths
from finetune_trainer.adoption import adopt_former_run
from finetune_trainer.context import StageContext

CONFIG = json.loads((Path(__file__).parents[1] / "golden" / "run-v0.1.json").read_text())
HASH = "0123456789abcdef"


def context(root: Path, run: int, run_hash: str = HASH) -> StageContext:
    paths = RunPaths(run=f"team-a/travel/runs/{run}-{run_hash[:8]}", models="team-a/models")
    config = RunConfig.model_validate({**CONFIG, "run": run, "hash": run_hash, "paths": paths})
    return StageContext(config, root, root)


def finish(there: StageContext) -> None:
    """What Prepare and Train leave."""
    for stage in (Stage.PREPARE, Stage.TRAIN):
        path = there.report_path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        model = ModelSummary(path=f"{there.config.paths.run}/model", base_path="b", kind="Adapter", sha256="ab" * 32)
        part = {"model": model} if stage is Stage.TRAIN else {}
        summary = Summary(stage=stage, ok=True, run=there.config.run, hash=there.config.hash, **part)
        path.write_text(summary.model_dump_json(by_alias=True, exclude_none=True))
    (there.run_dir / "reports" / "problems.json").write_text('{"not": "a summary"}')
    (there.run_dir / "model").mkdir()
    (there.run_dir / "model" / "weights").write_text("w")


def report(there: StageContext, stage: Stage) -> Summary:
    return Summary.model_validate_json(there.report_path(stage).read_bytes())


def test_the_folder_of_a_forgotten_run_is_taken_over(tmp_path: Path) -> None:
    for run in (2, 3):
        finish(context(tmp_path, run))
    own = context(tmp_path, 1)
    adopt_former_run(own)
    assert (own.model_dir / "weights").read_text() == "w"
    assert not context(tmp_path, 3).run_dir.exists()
    assert context(tmp_path, 2).run_dir.exists()
    assert report(own, Stage.PREPARE).run == 1
    model = report(own, Stage.TRAIN).model
    assert model is not None
    assert model.path == f"{own.config.paths.run}/model"


def test_cut_short_after_the_move_it_is_completed_by_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(context(tmp_path, 3))
    own = context(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.adoption.write_json", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        with pytest.raises(OSError, match="killed here"):
            adopt_former_run(own)
    adopt_former_run(own)
    assert [report(own, stage).run for stage in (Stage.PREPARE, Stage.TRAIN)] == [1, 1]


@pytest.mark.parametrize(
    ("former", "now"),
    [
        (context(Path(), 3, "0123456700000000"), 1),  # the same eight digits, another hash
        (context(Path(), 1), 2),  # the control plane counts on: it knows run 1, which may be served
    ],
)
def test_what_is_another_run_s_stays_there(tmp_path: Path, former: StageContext, now: int) -> None:
    there = context(tmp_path, former.config.run, former.config.hash)
    finish(there)
    own = context(tmp_path, now, HASH)
    adopt_former_run(own)
    assert there.run_dir.exists()
    assert report(there, Stage.PREPARE).run == there.config.run
    assert not own.run_dir.exists()


def test_an_unfinished_prepare_is_nothing_to_take_over(tmp_path: Path) -> None:
    there = context(tmp_path, 3)
    there.run_dir.mkdir(parents=True)
    own = context(tmp_path, 1)
    adopt_former_run(own)
    assert not own.run_dir.exists()
