"""What a run on a cluster needs of a trainer: finished checkpoints, exact evaluation, a stop between steps."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import KubeflowCallback

from finetune_api.interruptions import StopCosts
from finetune_trainer import artifacts
from finetune_trainer.distribution.arguments import accelerate_on_cpu
from finetune_trainer.distribution.batches import Batches, Split
from finetune_trainer.distribution.group import Group, alone
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks.kind import Measured
from finetune_trainer.training import checkpoints
from finetune_trainer.training.early_stopping import EarlyStoppingCallback, Patience
from finetune_trainer.training.progress import ProgressCallback
from finetune_trainer.training.stopping import StopRequest


class StopCallback(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Turns a stop request into a checkpoint at the end of the step. The trainer raises once it is saved."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stop.asked():
            control.should_save = True
            control.should_evaluate = False  # the grace period is for saving


class KeepBestCallback(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Saves a checkpoint at every evaluation that is better than all before, so that the best can be chosen."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # `best_metric` is updated after this event: here it is still the best of the earlier evaluations.
        if state.best_metric is None or (metrics or {}).get("eval_loss", float("inf")) < state.best_metric:
            control.should_save = True


class MissedEvaluationCallback(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Measures the weights that a resumed training begins with, when the stop came before they were measured."""

    def __init__(self, measure: Callable[[], None]) -> None:
        self._measure = measure

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = state.global_step % state.eval_steps == 0 or state.global_step >= state.max_steps
        if state.global_step and due:
            self._measure()


REPORTING_SHARE = 0.1  # of the time of a training, at most, is spent on telling how far it is
QUICK_SECONDS = REPORTING_SHARE * KubeflowCallback._MIN_UPDATE_INTERVAL  # one that takes no longer keeps the stock pace


class ContinuedProgress(KubeflowCallback):  # type: ignore[misc]  # untyped library
    """The stock progress reporter says 0 % when a training begins, resumed or not; this one what is reached. The stock
    one also lets a receiver that does not answer hold up the training, for 5 s in every 5; this one seldom asks it."""

    _due = 0.0  # monotonic time of the next report

    def _update_status(self, *args: Any, force: bool = False, **kwargs: Any) -> bool:
        begun = time.monotonic()
        if begun < self._due and not force:
            return False
        try:
            return bool(super()._update_status(*args, force=force, **kwargs))
        finally:
            ended = time.monotonic()
            if (took := ended - begun) > QUICK_SECONDS:
                self._due = ended + took * (1 / REPORTING_SHARE - 1)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            super().on_train_begin(args, state, control, **kwargs)
            return
        self._start_time, self._initialized = time.time(), True
        self._metrics: dict[str, Any] = {}
        self.on_step_end(args, state, control)


Measure = Callable[[PreTrainedModel, Callable[[], None]], Measured]
"""(model in evaluation mode, what to call between batches) -> its results on the held-out examples."""


class Checkpointing(Trainer):  # type: ignore[misc]  # untyped library
    """Stands before a trainer of transformers or TRL in a class's bases. `measure` is every evaluation during
    training, `resumed` the checkpoint that it goes on from. All processes of `group` train; its first one writes.
    Without one it is a process of its own."""

    def __init__(
        self,
        *,
        measure: Measure,
        progress: ProgressCallback,
        stop: StopRequest,
        resumed: checkpoints.SavedCheckpoint | None,
        group: Group | None = None,
        batches: Batches | None = None,
        layout: str = checkpoints.WHOLE,
        patience: Patience | None = None,
        **kwargs: Any,
    ):
        early = [] if patience is None else [EarlyStoppingCallback(patience)]
        missed = MissedEvaluationCallback(self._evaluate_resumed)
        accelerate_on_cpu(kwargs["args"])
        super().__init__(**kwargs, callbacks=[StopCallback(stop), KeepBestCallback(), *early, progress, missed])
        self.remove_callback(PrinterCallback)  # progress logs the same numbers, one line each
        if self.pop_callback(KubeflowCallback):  # transformers adds it when the environment names a receiver
            self.add_callback(ContinuedProgress())
        self.control: TrainerControl
        self._measure = measure
        self._progress = progress
        self._stop = stop
        self._resumed = resumed
        self._group = group or alone()
        self._batches = batches or self._own_batches()
        self._layout = layout
        self._pass_sizes: list[int] = []  # examples of the step's forward passes that are still to come
        self.pass_weight = 1.0
        self._clock = time.monotonic()
        self._tokens_before = 0

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to do for a training that had stopped early before it was interrupted."""
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _own_batches(self) -> Batches:
        """Those of one process."""
        rows, passes = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        return Batches(len(self.train_dataset), Split(rows * passes, 1, rows), 0, self.args.seed)

    def get_train_dataloader(self) -> DataLoaderShard:
        """The forward passes of this process. The stock loader repeats examples at the end of an epoch, so that steps
        would depend on the number of processes."""
        dataset = self.train_dataset
        if self.args.remove_unused_columns:
            dataset = self._remove_unused_columns(dataset, description="training")
        return DataLoaderShard(
            dataset,
            device=self.accelerator.device,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also notes how many examples the passes of the step have: 0 where the example is there for company."""
        size = self._batches.step_size(self.state.global_step)
        self._pass_sizes = self._batches.cut.sizes(size, self._group.place.rank)
        return super().get_batch_samples(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """What the step learns from, in all processes, without what is there for company."""
        counted = [
            batch if size else {name: _ignored(value) for name, value in batch.items()}
            for batch, size in zip(batch_samples, self._pass_sizes, strict=True)
        ]
        return super()._get_num_items_in_batch(counted, device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Weighs the pass: `compute_loss` multiplies by `pass_weight`."""
        self.pass_weight = self.weight_of(self._pass_sizes.pop(0))
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def weight_of(self, examples: int) -> float:
        """Of a forward pass of so many examples. Its loss is a share of the step's already."""
        return float(examples > 0)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The pass's share of the step's loss."""
        return super().compute_loss(*args, **kwargs) * self.pass_weight

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss over everything that is held out, the very number that Evaluate reports.

        The stock loop averages over batches instead, whatever their number of tokens, and so prefers another
        checkpoint when the examples differ in length. A stop request ends it between two batches, after a checkpoint.
        """
        started = time.monotonic()
        self.model.eval()
        with self.compute_loss_context_manager():
            measured = self._measure(self.model, self._stop_evaluating)
        metrics = {"eval_loss": measured.mean_loss}
        metrics |= {f"eval_{metric.name.lower()}": value for metric, value in measured.metrics.items()}
        # Each process measures everything: together they run a divided model, and alone none would be done earlier.
        metrics = self._group.of_first(metrics)
        self.log(metrics)
        self.model.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._clock += time.monotonic() - started
        return metrics

    @property
    def stop_costs(self) -> StopCosts:
        """What it took to save, and what had to be trained again."""
        return self._progress.values.stop_costs

    def _stop_evaluating(self) -> None:
        """Grant a stop request in the middle of an evaluation; the next attempt measures these weights."""
        step = self.state.global_step
        if self._stop.asked() and (self._resumed is None or self._resumed.step != step):
            self._save_checkpoint(self.model_wrapped, None)  # raises once it is saved
        self._stop.check(f"checkpoint of step {step} of {self.state.max_steps} is there", self._progress.values)

    def _evaluate_resumed(self) -> None:
        """Measure what was loaded, unless it was before; the loss counts when the best checkpoint is chosen."""
        if self._resumed is None or checkpoints.is_scored(self._resumed.path, self._resumed.step):
            return
        metrics = self.evaluate()
        self._determine_best_metric(metrics=metrics, trial=None)
        if self._group.place.first:
            checkpoints.score_later(self._resumed.path, metrics["eval_loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what travels to the control plane with the stock protocol: tokens_per_second, checkpoint_step, and what
        a stop costs."""
        if "loss" in logs:
            now, tokens = time.monotonic(), self._tokens_seen()
            if now > self._clock:
                logs["tokens_per_second"] = round((tokens - self._tokens_before) / (now - self._clock), 1)
            self._clock, self._tokens_before = now, tokens
        if self._progress.values.checkpoint_step:
            logs["checkpoint_step"] = self._progress.values.checkpoint_step
        logs.update(self._progress.values.stop_costs.model_dump(exclude_none=True))
        super().log(logs, start_time)

    def _tokens_seen(self) -> int:
        """TRL counts the trained-on ones; transformers, when asked to, all."""
        return int(getattr(self, "_total_train_tokens", None) or self.state.num_input_tokens_seen)

    def _save_checkpoint(self, model: PreTrainedModel, trial: Any) -> None:
        """Save, finish with a manifest of all processes' files, remove what is no longer needed; then stop if that was
        asked for."""
        started = time.monotonic()
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        first = self._group.place.first
        if first and folder.exists():  # left unfinished by an attempt that was killed, or passed over as damaged
            shutil.rmtree(folder)
        self._group.barrier()
        _take_settings(self.model)
        with checkpoints.full_volume_named(folder.parent):
            super()._save_checkpoint(model, trial)
        self._group.barrier()
        if first:
            artifacts.write_json(folder / checkpoints.LAYOUT, json.dumps({"layout": self._layout}))
            artifacts.finish(folder)
            checkpoints.rotate(folder.parent)
        self._group.barrier()
        seconds = time.monotonic() - started
        self._progress.checkpoint_saved(step, seconds)
        self._clock += seconds
        self._stop.check(f"checkpoint saved at step {step} of {self.state.max_steps}", self._progress.values)


def _take_settings(model: PreTrainedModel) -> None:
    """Let generation settings be saved as the base came with them. transformers refuses what it calls invalid (some
    models name a temperature and do not sample) unless nothing was changed since it was loaded; but by now it and TRL
    have entered the tokenizer's padding."""
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings._original_object_hash = hash(settings)


def _ignored(value: Any) -> Any:
    """The same size, of labels of which none is learned."""
    return torch.full_like(value, IGNORED) if isinstance(value, torch.Tensor) else value


def free_memory() -> None:
    """Give back what the device's caching allocator holds, after the last reference to a model is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
