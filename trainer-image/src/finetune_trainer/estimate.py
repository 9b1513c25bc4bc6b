"""What a training will need: peak memory and time, from shapes alone. docs/estimates.md has the derivation.

Memory = weights + trained parameters (gradient and two Adam moments) + activations + output layer + runtime.
Time = floating point operations / rate + steps * overhead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, masking_utils
from transformers.pytorch_utils import Conv1D

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodSpec
from finetune_api.status import Estimate
from finetune_api.tasks import TASKS
from finetune_trainer.errors import UserInputError
from finetune_trainer.methods.kind import BYTES, Precision, Sizes
from finetune_trainer.methods.low_rank import lora_config
from finetune_trainer.methods.table import METHODS
from finetune_trainer.tasks.kind import TaskKind

# CUDA context, kernels and cuBLAS workspace; Python with torch, transformers and the data loader.
GPU_RUNTIME_BYTES = 1 * 2**30
CPU_RUNTIME_BYTES = 700 * 2**20
# Floating point operations a second that training really gets. GPU: 40 % of an A100's 312e12 in bfloat16, the share
# that well-tuned trainers report (PaLM, arXiv 2204.02311, 46 %; NeMo, 41 %). CPU: 25e9 a core in float32.
GPU_RATE = 125e12
CPU_RATE = 25e9
# Seconds a forward and backward pass cost however small it is: Python and kernel launches, a layer and once.
PASS_OVERHEAD, LAYER_OVERHEAD = 0.02, 0.004

# What adapters are trained on, verified and served: plain projections, in GPT-2's writing too.
ADAPTABLE = (torch.nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model. `kv_width` is the width of keys and of values; all widths are in elements. `quantised` are the
    parameters that the method keeps in 4 bits."""

    parameters: int
    trainable: int
    layers: int
    width: int
    inner_width: int
    kv_width: int
    vocabulary: int
    context: int
    packable: bool = True  # whether examples that share a row do not see each other
    method: MethodSpec = field(default_factory=MethodSpec)
    quantised: int = 0

    @property
    def lora(self) -> bool:
        return self.trainable < self.parameters


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
    packable = decoder and separates_packed(model)
    quantised = METHODS[method.type].quantised(model)
    trainable = _count_adapter(model, method, kind.peft_type) if method.type.adapter else parameters
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=parameters,
        trainable=trainable,
        layers=_layers(text),
        width=text.hidden_size,
        inner_width=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv_width=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=text.vocab_size,
        context=_context(text, tokenizer, decoder=decoder),
        packable=packable,
        method=method,
        quantised=quantised,
    )


def _layers(config: Any) -> int:
    """Of an encoder-decoder those of both sides: a side of an example has up to max_length tokens."""
    written = ("num_decoder_layers", "decoder_layers") if config.is_encoder_decoder else ()
    return int(config.num_hidden_layers + next((getattr(config, name) for name in written if hasattr(config, name)), 0))


def _context(config: Any, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int:
    """Tokens, 0 when the model has no limit. Some encoders have more positions than they take tokens, which their
    tokenizers know."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    return positions if decoder or not positions else min(positions, tokenizer.model_max_length)


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


class _MaskFromPositions(Exception):
    """The model was about to make its mask from the positions."""


def separates_packed(model: PreTrainedModel) -> bool:
    """Whether the architecture keeps examples that share a row apart, given positions that begin anew with each.

    Its mask must be made from the positions, and nothing may be carried along the row beside the attention, as
    recurrent and convolution layers do. transformers has no word for the former (a forward may take positions and
    make its mask without them, as Falcon's does), so it is tried: on the meta device that costs no memory.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    carries = getattr(model, "_is_stateful", False) or any(
        kind.startswith("linear") or not kind.endswith("attention") for kind in kinds
    )
    return not carries and _masks_by_position(model)


def _masks_by_position(model: PreTrainedModel) -> bool:
    def reached(_positions: torch.Tensor) -> torch.Tensor:
        raise _MaskFromPositions

    table = model.get_input_embeddings().weight
    stock = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = reached
    try:
        model(
            inputs_embeds=torch.zeros(1, 4, table.shape[1], dtype=table.dtype, device=table.device),
            position_ids=torch.tensor([[0, 1, 0, 1]], device=table.device),
            use_cache=False,
        )
    except _MaskFromPositions:
        return True
    except Exception:  # no such argument, or an operation that the meta device lacks: not known to separate
        return False
    finally:
        masking_utils.find_packed_sequence_indices = stock
    return False


def _count_adapter(model: PreTrainedModel, method: MethodSpec, peft_type: str) -> int:
    """Parameters of the adapter that the method would train."""
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
            if inner is output or not isinstance(inner, ADAPTABLE):
                raise _bad_targets(f"{name.rsplit('.', 1)[-1]} is {_kind(inner, output)} and gets no adapter", linear)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


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


def memory_bytes(shape: ModelShape, *, rows: int, length: int, precision: Precision) -> int:
    """Peak memory of the training process with micro batches of `rows` x `length` tokens.

    On a GPU (bfloat16) the trainer recomputes: of each layer only the input is kept, and of one layer everything.
    """
    sizes = Sizes(shape.parameters, shape.trainable, shape.quantised)
    static = METHODS[shape.method.type].footprint(sizes, shape.method, precision).total
    layer = activation_bytes(shape, precision)
    kept = shape.layers * shape.width * 2 + layer if precision == "bfloat16" else shape.layers * layer
    activations = rows * length * kept
    output = rows * length * shape.vocabulary * BYTES[precision] + 2 * rows * length * shape.width * 4
    runtime = GPU_RUNTIME_BYTES if precision == "bfloat16" else CPU_RUNTIME_BYTES
    return static + activations + output + runtime


def activation_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes kept for the backward pass, a token and layer, with attention that keeps no score matrix."""
    wide, kv, inner = shape.width, shape.kv_width, shape.inner_width
    # Per block: two norms (their float32 input and normalised value), inputs of the projections and of the gated
    # unit, queries, keys, values and the attention's result; gate, its activation, up and their product.
    elements = 4 * wide + 2 * kv + 4 * inner
    norms = 2 * (2 * 4 * wide)
    adapter = 6 * wide + inner if shape.lora else 0  # the inputs of A, cast once more
    outputs = METHODS[shape.method.type].kept_outputs * (3 * wide + 2 * kv + 2 * inner)
    return norms + (elements + adapter + outputs) * BYTES[precision]


def step_seconds(shape: ModelShape, *, tokens: float, passes: int, gpus: int, cores: int) -> float:
    """Seconds of one optimizer step over `tokens` tokens in `passes` forward and backward passes.

    6 operations a parameter and token, and 4 with LoRA, which needs no gradient of the frozen weights
    (Kaplan et al., arXiv 2001.08361, section 2.1); on a GPU 2 more, for the forward pass that is done again.
    """
    operations = (METHODS[shape.method.type].operations + (2 if gpus else 0)) * shape.parameters * tokens
    rate = GPU_RATE * gpus if gpus else CPU_RATE * cores
    return operations / rate + passes * (PASS_OVERHEAD + LAYER_OVERHEAD * shape.layers)


def estimate(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    precision: Precision,
    seconds_per_step: float,
    steps: int,
    evaluations: int,
    evaluation_tokens: int,
    train_tokens_per_step: float,
) -> Estimate:
    """Peak memory in bytes and training time in seconds, evaluations included (a third of the operations a token)."""
    share = evaluation_tokens / train_tokens_per_step if train_tokens_per_step else 0.0
    seconds = seconds_per_step * (steps + evaluations * share / (2 if shape.lora else 3))
    return Estimate(
        memory_bytes=memory_bytes(shape, rows=rows, length=length, precision=precision),
        train_seconds=math.ceil(seconds),
    )
