"""TensorBoard: event files on the claim."""

from __future__ import annotations

import shutil
from pathlib import Path

from finetune_trainer.tracking.story import Story


def track(story: Story, folder: Path) -> None:
    """The folder, made anew."""
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(logdir=str(folder), write_to_disk=True) as writer:
        for point in story.points:
            for name, value in point.values.items():
                writer.add_scalar(name, value, point.step, walltime=point.time)
        last = story.points[-1].step if story.points else 0
        for name, value in story.results.items():
            writer.add_scalar(name, value, last, walltime=story.ended)
        table = "\n".join(f"| {name} | {value} |" for name, value in {**story.parameters, **story.tags}.items())
        writer.add_text("run", f"| | |\n|---|---|\n{table}", walltime=story.ended)
