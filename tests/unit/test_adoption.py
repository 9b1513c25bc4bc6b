"""A job that begins at run 1 again, with its runs still on the volume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.conditions import Stage, Trigger
from finetune_api.job import occasion_hash
from finetune_api.reports import ModelSummary, Summary
from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.status import Beginning
from finetune_trainer.adoption import adopt_former_run
from finetune_trainer.context import StageContext

CONFIG = json.loads((Path(__file__).parents[1] / "golden" / "run-v0.1.json").read_text())
HASH = "0123456789abcdef"


def context(root: Path, run: int, run_hash: str = HASH, **begun: Any) -> StageContext:
    paths = RunPaths(run=f"team-a/travel/runs/{run}-{run_hash[:8]}", models="team-a/models")
    known = {"trigger": Trigger.CREATED, **begun}
    config = RunConfig.model_validate({**CONFIG, **known, "run": run, "hash": run_hash, "paths": paths})
    return StageContext(config, root, root)


def by_schedule(root: Path, run: int, occasion: str) -> StageContext:
    """A run of the same inputs that an occasion has begun."""
    begun = {"trigger": Trigger.SCHEDULE, "occasion": occasion}
    return context(root, run, occasion_hash(HASH, **begun), **begun)


def finish(
    there: StageContext, stages: tuple[Stage, ...] = (Stage.PREPARE, Stage.TRAIN), *, by_former_version: bool = False
) -> None:
    """What Prepare and Train leave; a former version did not say what had begun the run."""
    read = there.config.occasion or "2026-03-01T00:00:00Z"
    for stage in stages:
        path = there.report_path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        model = ModelSummary(path=f"{there.config.paths.run}/model", base_path="b", kind="Adapter", sha256="ab" * 32)
        part: dict[str, Any] = {"model": model} if stage is Stage.TRAIN else {}
        begun = Beginning(trigger=there.config.trigger, occasion=there.config.occasion, time=read)
        part |= {"begun_by": begun} if stage is Stage.PREPARE and not by_former_version else {}
        summary = Summary(stage=stage, ok=True, run=there.config.run, hash=there.config.hash, **part)
        path.write_text(summary.model_dump_json(by_alias=True, exclude_none=True))
    (there.run_dir / "reports" / "problems.json").write_text('{"not": "a summary"}')
    (there.run_dir / "model").mkdir()
    (there.run_dir / "model" / "weights").write_text(f"of run {there.config.run}")


def report(there: StageContext, stage: Stage) -> Summary:
    return Summary.model_validate_json(there.report_path(stage).read_bytes())


@pytest.mark.parametrize("by_former_version", [True, False])
def test_the_folder_of_a_forgotten_run_is_taken_over(tmp_path: Path, by_former_version: bool) -> None:
    for run in (2, 3):
        finish(context(tmp_path, run), by_former_version=by_former_version)
    own = context(tmp_path, 1)
    adopt_former_run(own, Stage.PREPARE)
    assert (own.model_dir / "weights").read_text() == "of run 3"
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
            adopt_former_run(own, Stage.PREPARE)
    adopt_former_run(own, Stage.PREPARE)
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
    adopt_former_run(own, Stage.PREPARE)
    assert there.run_dir.exists()
    assert report(there, Stage.PREPARE).run == there.config.run
    assert not own.run_dir.exists()


def test_an_unfinished_prepare_is_nothing_to_take_over(tmp_path: Path) -> None:
    there = context(tmp_path, 3)
    there.run_dir.mkdir(parents=True)
    own = context(tmp_path, 1)
    adopt_former_run(own, Stage.PREPARE)
    assert not own.run_dir.exists()


NIGHTS = [f"2026-03-0{day}T02:00:00Z" for day in range(1, 7)]


def test_of_runs_by_a_schedule_the_newest_that_has_a_model_is_taken_over(tmp_path: Path) -> None:
    finish(context(tmp_path, 1))
    for number in (2, 3):
        finish(by_schedule(tmp_path, number, NIGHTS[number]))
    finish(by_schedule(tmp_path, 4, NIGHTS[4]), (Stage.PREPARE,))  # the backup was taken while it trained
    own = context(tmp_path, 1)
    adopt_former_run(own, Stage.PREPARE)
    assert (own.model_dir / "weights").read_text() == "of run 3"
    for stage in (Stage.PREPARE, Stage.TRAIN):
        told = report(own, stage)
        assert (told.run, told.hash) == (1, HASH)
    begun = report(own, Stage.PREPARE).begun_by
    assert begun is not None
    assert begun.occasion == NIGHTS[3]
    (aside,) = own.run_dir.parent.glob(f"{own.run_dir.name}.before-*")
    assert (aside / "model" / "weights").read_text() == "of run 1"
    assert by_schedule(tmp_path, 2, NIGHTS[2]).run_dir.exists()
    adopt_former_run(own, Stage.PREPARE)  # the next attempt
    assert (own.model_dir / "weights").read_text() == "of run 3"
    finish(by_schedule(tmp_path, 3, NIGHTS[5]))
    (by_schedule(tmp_path, 3, NIGHTS[5]).model_dir / "weights").write_text("of a run since")
    adopt_former_run(own, Stage.PREPARE)  # restored once more
    assert (own.model_dir / "weights").read_text() == "of a run since"


def test_a_run_that_an_occasion_began_is_met_again_where_it_was(tmp_path: Path) -> None:
    """After the restore, the schedule makes up for what was training, as the run after the first."""
    unfinished = by_schedule(tmp_path, 4, NIGHTS[4])
    finish(unfinished, (Stage.PREPARE,))
    (unfinished.checkpoints_dir / "checkpoint-20").mkdir(parents=True)
    own = by_schedule(tmp_path, 2, NIGHTS[4])
    adopt_former_run(own, Stage.PREPARE)
    assert (own.checkpoints_dir / "checkpoint-20").is_dir()


@pytest.mark.parametrize("cut", ["aside", "moved", "renamed"])
def test_cut_short_anywhere_the_occasion_s_run_is_taken_over_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    finish(context(tmp_path, 1))
    finish(by_schedule(tmp_path, 3, NIGHTS[3]))
    own = context(tmp_path, 1)
    left = {"aside": 1, "moved": 2}.get(cut, 99)
    rename = Path.rename

    def dying(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise OSError("killed here")
        left -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        if cut != "aside":
            patch.setattr("finetune_trainer.adoption.write_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            adopt_former_run(own, Stage.PREPARE)
    adopt_former_run(own, Stage.PREPARE)
    assert (own.model_dir / "weights").read_text() == "of run 3"
    assert [report(own, stage).run for stage in (Stage.PREPARE, Stage.TRAIN)] == [1, 1]


@pytest.mark.parametrize(
    ("trigger", "stage"),
    [
        (Trigger.SPEC_CHANGED, Stage.PREPARE),  # the control plane remembers, so the occasion's run is one it knows
        (Trigger.CREATED, Stage.EVALUATE),  # measured anew, long after later runs: its model stays its own
    ],
)
def test_a_run_that_is_there_keeps_its_files(tmp_path: Path, trigger: Trigger, stage: Stage) -> None:
    own = context(tmp_path, 1, trigger=trigger)
    finish(own)
    finish(by_schedule(tmp_path, 3, NIGHTS[3]))
    adopt_former_run(own, stage)
    assert (own.model_dir / "weights").read_text() == "of run 1"


def test_a_report_that_only_claims_an_occasion_is_not_believed(tmp_path: Path) -> None:
    there = context(tmp_path, 3, "f" * 16, trigger=Trigger.SCHEDULE, occasion=NIGHTS[3])
    finish(there)
    own = context(tmp_path, 1)
    adopt_former_run(own, Stage.PREPARE)
    assert not own.run_dir.exists()
