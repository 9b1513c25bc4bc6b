"""Sizes of a model as a method trains it, counted on the meta device: no weights, no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from finetune_api.conditions import FailureReason
from finetune_api.optimization import Optimizer
from finetune_api.spec import MethodSpec
from finetune_api.tasks import TASKS, MethodType
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate.activations import Held
from finetune_trainer.estimate.trial import Trial
from finetune_trainer.methods.kind import BYTES, FLOAT32, Precision
from finetune_trainer.methods.low_rank import lora_config
from finetune_trainer.methods.table import METHODS
from finetune_trainer.tasks.kind import TaskKind
from finetune_trainer.tasks.windows import positions
from finetune_trainer.training import packed_attention
from finetune_trainer.training.packable import separates_packed

# What adapters are trained on, verified and served: plain projections, in GPT-2's writing too.
ADAPTABLE = (torch.nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model. `kv_width` is the width of keys and of values; all widths are in elements. `quantised` are the
    parameters that the method keeps in 4 bits, `largest` the weights of the largest linear layer among them. `trial`
    tells what a pass holds; without it, or where a model cannot be tried, it is counted for a plain block.
    `attentions` are the implementations that the architecture has, by transformers' names, its own choice first.

    `recomputes` (None: on a GPU) and `optimizer` are the run's choice, not the model's. `by_method` measures the same
    model as another method trains it."""

    parameters: int
    trainable: int
    layers: int
    width: int
    inner_width: int
    kv_width: int
    vocabulary: int
    context: int
    packable: bool = True  # whether examples that share a row do not see each other
    plain_rows: bool = False  # and that without a mask: see training/packed_attention.py
    method: MethodSpec = field(default_factory=MethodSpec)
    quantised: int = 0
    largest: int = 0
    tiled: bool = True  # whether scores of the vocabulary are computed in tiles, outside of the model
    trial: Trial | None = field(default=None, compare=False, repr=False)
    attentions: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2")
    recomputes: bool | None = None
    optimizer: Optimizer = Optimizer.ADAMW
    by_method: Callable[[MethodSpec], ModelShape] | None = field(default=None, compare=False, repr=False)

    @property
    def lora(self) -> bool:
        return self.trainable < self.parameters

    def activations(
        self, rows: int, length: int, precision: Precision, *, recompute: bool, accumulates: bool = True
    ) -> Held:
        """What a forward and backward pass holds beside weights, gradients, optimizer and output layer.

        Without `accumulates` the gradients come into being while the activations go: what is above them counts, and
        between forward and backward that may be less than nothing.
        """
        half, found = precision == "bfloat16", None
        if self.trial:
            found = self.trial.held(rows, length, half=half, recompute=recompute, accumulates=accumulates)
        if found is None:
            peak, between = self._plain_block(precision, recompute=recompute)
            return Held(rows * length * peak, rows * length * between)
        coming = 0 if accumulates else self.trainable * FLOAT32
        return Held(max(0, found.peak - coming), found.between - coming)

    def _plain_block(self, precision: Precision, *, recompute: bool) -> tuple[int, int]:
        """Bytes a token, at the peak and between forward and backward, for blocks with a gated unit and attention that
        keeps no score matrix; after Korthikanti et al., arXiv 2205.05198, section 4. Recomputed, of each layer only the
        input is kept, and of one everything."""
        wide, kv, inner = self.width, self.kv_width, self.inner_width
        # Per block: two norms (their float32 input and normalised value), inputs of the projections and of the gated
        # unit, queries, keys, values and the attention's result; gate, its activation, up and their product.
        elements = 4 * wide + 2 * kv + 4 * inner
        adapter = 6 * wide + inner if self.lora else 0  # the inputs of A, cast once more
        outputs = METHODS[self.method.type].kept_outputs * (3 * wide + 2 * kv + 2 * inner)
        block = 2 * (2 * 4 * wide) + (elements + adapter + outputs) * BYTES[precision]
        inputs = self.layers * wide * BYTES[precision]
        return (inputs + block, inputs) if recompute else (self.layers * block, self.layers * block)


def measure_shape(
    folder: Path, kind: TaskKind, method: MethodSpec, tokenizer: PreTrainedTokenizerBase, source: str
) -> ModelShape:
    """Build the task's model without weights (meta device) and count. Raises UserInputError.

    ModelInvalid when the architecture is unknown or made for another task, SpecInvalid when target_modules match
    nothing.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a foreign configuration raises whatever its class raises
        raise _unusable(source, kind, error) from error
    kind.require(config, tokenizer, source)
    try:
        with torch.device("meta"):
            model = kind.auto_model.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _unusable(source, kind, error) from error
    _refuse_grown(model, tokenizer, source)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    decoder = TASKS[kind.task].decoder
    plain_rows = decoder and packed_attention.keeps_apart(model)
    packable = plain_rows or (decoder and separates_packed(model))
    quantised = METHODS[method.type].quantised(model)
    output = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, ADAPTABLE) and part is not output]
    largest = max((part.weight.numel() for part in linear), default=0)
    trained = _adapted(model, method, kind.peft_type) if method.type.adapter else model
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=parameters,
        trainable=sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad),
        layers=_layers(text),
        width=text.hidden_size,
        inner_width=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv_width=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=text.vocab_size,
        context=_context(text, tokenizer, decoder=decoder),
        packable=packable,
        plain_rows=plain_rows,
        method=method,
        quantised=quantised,
        largest=largest,
        tiled=decoder,
        trial=Trial(trained, model, tiled=decoder),
        attentions=attentions(model),
        by_method=lambda other: measure_shape(folder, kind, other, tokenizer, source),
    )


def attentions(model: PreTrainedModel) -> tuple[str, ...]:
    """The implementations that the architecture has, transformers' own choice first."""
    chosen = str(model.config._attn_implementation)
    known = {"sdpa": model._supports_sdpa, "eager": True, "flash_attention_2": model._supports_flash_attn}
    return (chosen, *(name for name, there in known.items() if there and name != chosen))


def _layers(config: Any) -> int:
    """Of an encoder-decoder those of both sides: a side of an example has up to max_length tokens."""
    written = ("num_decoder_layers", "decoder_layers") if config.is_encoder_decoder else ()
    return int(config.num_hidden_layers + next((getattr(config, name) for name in written if hasattr(config, name)), 0))


def _context(config: Any, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int:
    """Tokens, 0 when the model has no limit. Some encoders take fewer tokens than they have positions for, which
    their tokenizers know."""
    places = positions(config) or 0
    return places if decoder or not places else min(places, tokenizer.model_max_length)


def _refuse_grown(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise UserInputError (ModelInvalid) when the tokenizer has tokens that the model has no row for."""
    rows, largest = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserInputError(
            f"{source}: the tokenizer counts tokens up to {largest}, and the model knows {rows} (0 to {rows - 1}): the "
            "vocabulary would have to grow, and the new tokens would mean nothing",
            advice="use the tokenizer that the model was published with; to add tokens, enlarge the model by "
            "resize_token_embeddings first, and save both",
            reason=FailureReason.MODEL_INVALID,
        )


def _unusable(source: str, kind: TaskKind, error: Exception) -> UserInputError:
    return UserInputError(
        f"{source} cannot be used for the task {kind.task}: {' '.join(str(error).split())[:300]}",
        advice="use a model of the kind that the task needs, whose architecture transformers itself knows; code of a "
        "repository is never run",
        reason=FailureReason.MODEL_INVALID,
    )


def _adapted(model: PreTrainedModel, method: MethodSpec, peft_type: str) -> PeftModel:
    """The model with the adapter that the method would train."""
    targets = list(method.target_modules) if method.target_modules else "all-linear"
    output = model.get_output_embeddings()
    linear = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, part in model.named_modules()
            if isinstance(part, ADAPTABLE) and part is not output
        }
    )
    settings = lora_config(method, model, peft_type=peft_type)
    settings.init_lora_weights = False  # nothing to initialise on the meta device
    try:
        adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise _bad_targets(f"they match nothing in the model ({', '.join(targets)})", linear) from error
    for name, part in adapted.named_modules():
        if isinstance(part, BaseTunerLayer):
            inner = part.get_base_layer()
            # PEFT's layers on 4 bits leave the input as it is under autocast; those on whole weights cast a copy of it.
            part.cast_input_dtype_enabled = method.type is not MethodType.QLORA
            if inner is output or not isinstance(inner, ADAPTABLE):
                raise _bad_targets(f"{name.rsplit('.', 1)[-1]} is {_kind(inner, output)} and gets no adapter", linear)
    return adapted


def _kind(part: torch.nn.Module, output: torch.nn.Module | None) -> str:
    if part is output:
        return "the output layer"
    return "an embedding" if isinstance(part, torch.nn.Embedding) else f"a {type(part).__name__}"


def _bad_targets(problem: str, linear: list[str]) -> UserInputError:
    return UserInputError(
        f"method.targetModules: {problem}",
        advice=f"leave it out for all linear layers, or choose among {', '.join(linear)}",
        reason=FailureReason.SPEC_INVALID,
    )
