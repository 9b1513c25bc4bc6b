"""The trainer as Train builds it, run for some steps with a stopwatch, and a plain TRL script beside it."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from finetune_trainer.context import StageContext
from finetune_trainer.training import fit as fitting
from finetune_trainer.training.device import Device, choose_device
from finetune_trainer.training.inputs import Loaded, load_prepared, load_tokenizer
from finetune_trainer.training.settings import training_arguments
from finetune_trainer.training.stopping import StopRequest
from finetune_trainer.training.trainer import free_memory

WARM_UP = 3  # steps that are not timed: kernels are chosen, the allocator grows


@dataclass
class Stopwatch(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Times each step, and ends training after `steps` of them."""

    steps: int
    times: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    trainer: Any = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.tokens.append(self.trainer._total_train_tokens)  # without padding, counted by TRL
        if len(self.times) >= self.steps:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False

    @property
    def seconds(self) -> float:
        """From the end of the warm-up to the last step."""
        return self.times[-1] - self.times[WARM_UP - 1]

    @property
    def processor_seconds(self) -> float:
        """The same, of processor time: on a CPU that others use too, waiting does not count."""
        return self.processor[-1] - self.processor[WARM_UP - 1]

    @property
    def useful_tokens(self) -> int:
        """Those of the timed steps; padding does not count."""
        return self.tokens[-1] - self.tokens[WARM_UP - 1]


def device_of(context: StageContext) -> Device:
    return choose_device(context.gpus, "bfloat16" if context.gpus else "float32")


def ours(context: StageContext, steps: int, *, recompute: bool | None = None, on_disk: bool = True) -> Stopwatch:
    """Train as the stage does, for so many steps, without a checkpoint at the end. Memory is given back."""
    prepared, device, watch = load_prepared(context), device_of(context), Stopwatch(steps)

    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        chosen = training_arguments(*args, **kwargs)
        if recompute is not None:
            chosen["gradient_checkpointing"] = recompute
        return {**chosen, "save_strategy": "no", "eval_strategy": "no"}

    made = fitting._trainer

    def timed(*args: Any, **kwargs: Any) -> Any:
        trainer = made(*args, **kwargs)
        trainer.add_callback(watch)
        watch.trainer = trainer
        return trainer

    patches = {"training_arguments": arguments, "_trainer": timed, **({} if on_disk else {"load_model": _random})}
    with warnings.catch_warnings(), patch.multiple(fitting, **patches), StopRequest() as stop:
        warnings.simplefilter("ignore")
        fitting.fit(context, prepared, prepared.resolved, device, stop)
    watch.trainer = None
    free_memory()
    return watch


def _random(directory: Any, device: Device, kind: Any, facts: Any, *, options: Any = None, **kwargs: Any) -> Loaded:
    """The same model with random weights, made where it is used: reading gigabytes is not what is measured."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    chosen = {"dtype": device.dtype, **(options or {})}
    with torch.device(device.kind):
        model = kind.auto_model.from_config(config, dtype=chosen["dtype"], attn_implementation=kwargs.get("attention"))
    return Loaded(model, ())


def plain(context: StageContext, steps: int) -> Stopwatch:
    """What a script of a few lines with TRL and PEFT does, by the same settings and on the same rows."""
    prepared, device, watch = load_prepared(context), device_of(context), Stopwatch(steps)
    resolved = prepared.resolved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(prepared.base_dir, dtype=device.dtype).to(device.kind),
            args=SFTConfig(
                output_dir=str(context.run_dir / "plain"),
                num_train_epochs=1,
                per_device_train_batch_size=resolved.micro_batch_size,
                gradient_accumulation_steps=resolved.gradient_accumulation,
                learning_rate=resolved.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=resolved.warmup_steps,
                optim="adamw_torch",
                max_grad_norm=1.0,
                seed=42,
                bf16=device.precision == "bfloat16",
                use_cpu=device.kind == "cpu",
                gradient_checkpointing=device.kind == "cuda",
                max_length=None,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=prepared.rows("train"),
            processing_class=load_tokenizer(prepared.base_dir),
            peft_config=LoraConfig(
                r=resolved.lora_rank,
                lora_alpha=resolved.lora_alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[watch],
        )
        watch.trainer = trainer
        trainer.train()
        watch.trainer = None
    del trainer
    free_memory()
    return watch
