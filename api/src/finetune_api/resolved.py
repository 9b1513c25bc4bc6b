"""`status.run.resolved`: what the trainer works by. All numbers as the libraries take them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.distribution import Offload, Strategy
from finetune_api.fields import Count, Word
from finetune_api.optimization import Loss, Optimizer, Schedule


class ResolvedValues(StatusModel):
    """What `auto` became. All numbers as the trainer uses them."""

    epochs: Count = Field(description="Passes over the data.")
    batch_size: Count = Field(description="Examples per optimizer step.")
    micro_batch_size: Count = Field(description="Examples per forward pass of a process.")
    gradient_accumulation: Count = Field(description="Forward passes of a process per optimizer step.")
    processes: Count = Field(default=1, description="Training processes, on all nodes.")
    strategy: Strategy = Field(default=Strategy.NONE, description="How the training is spread over the processes.")
    offload: Offload = Field(default=Offload.NONE, description="CPU: the optimizer's state is in the pod's memory.")
    learning_rate: float = Field(description="Peak learning rate.")
    schedule: Schedule | None = Field(default=None, description="How the learning rate goes on after its warm-up.")
    optimizer: Optimizer | None = Field(default=None, description="By transformers' names.")
    weight_decay: float | None = Field(default=None, description="Of weights other than biases and norms.")
    max_grad_norm: float | None = Field(default=None, description="Norm to which gradients are clipped; 0: not.")
    loss: Loss | None = Field(default=None, description="What is minimised.")
    label_smoothing: float | None = Field(default=None, description="Share spread over all labels, 0 to 0.5.")
    neftune_alpha: float | None = Field(default=None, description="Noise on the embeddings.")
    early_stopping_patience: Count | None = Field(
        default=None, description="Evaluations without improvement after which the training ends."
    )
    early_stopping_improvement: float | None = Field(
        default=None, description="Share of the lowest held-out loss by which the next one must be lower."
    )
    max_length: Count = Field(description="Tokens.")
    total_steps: Count = Field(description="Optimizer steps.")
    warmup_steps: Count = Field(description="Optimizer steps.")
    evaluation_steps: Count = Field(description="Optimizer steps between evaluations.")
    checkpoint_steps: Count = Field(description="Optimizer steps between checkpoints.")
    packing: bool = Field(description="Whether short examples share a row.")
    precision: Literal["float32", "bfloat16"] = Field(description="Arithmetic.")
    attention: Word | None = Field(default=None, description="Implementation, by transformers' names.")
    gradient_checkpointing: bool | None = Field(
        default=None, description="Whether activations are computed again in the backward pass."
    )
    lora_rank: Count | None = Field(default=None, description="Rank of the adapter.")
    lora_alpha: Count | None = Field(default=None, description="Alpha of the adapter.")
    beta: float | None = Field(default=None, description="Preference: how strongly the model is held to its base.")
    revision: Word | None = Field(default=None, description="Commit or digest of the base model.")
    model_parameters: Count | None = Field(default=None, description="Parameters of the base model.")
    trainable_parameters: Count | None = Field(default=None, description="Parameters that are trained.")
