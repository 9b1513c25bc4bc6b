"""The tuned model as graphs for ONNX: what goes in, what comes out, and which sizes may be any.

Names of files, inputs and outputs are those that Hugging Face's exporter gave them, which its runtimes (Optimum,
Transformers.js) look for: https://huggingface.co/docs/optimum/exporters/onnx/overview
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError
from finetune_trainer.packaging.comparison import OUTPUTS
from finetune_trainer.packaging.tuned import Batch

BATCH, LENGTH, PAST, TOTAL, WRITTEN = "batch", "sequence", "past", "total", "written"
TRIED_PAST = 3  # tokens of a past that the graph is traced with

Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Graph:
    """`arguments` and `shapes` are as torch.onnx.export takes them; the names are of the flat list of either side."""

    file: str
    module: torch.nn.Module
    arguments: Mapping[str, Any]
    shapes: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]


class Reader(torch.nn.Module):
    """An encoder with its head, or the encoder of a translator."""

    def __init__(self, model: torch.nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(getattr(found, name) for name in self.outputs)


class Writer(torch.nn.Module):
    """A causal language model. What it has read (keys and values of each layer) goes in and comes out, so that each new
    token costs one step."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.positioned = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: list[torch.Tensor],
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        more = {} if position_ids is None else {"position_ids": position_ids}
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **more
        )
        present = (each for layer in found.past_key_values.layers for each in (layer.keys, layer.values))
        return found.logits, *present


class Translator(torch.nn.Module):
    """The decoder of a translator. It reads all that was written each time: no past."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        found = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            use_cache=False,
        )
        return (found.logits,)


def graphs_of(model: PreTrainedModel, batch: Batch) -> list[Graph]:
    """One graph, or two for a model of two halves. Raises UserInputError (ExportUnsupported)."""
    if model.config.is_encoder_decoder:
        return _translator(model, batch)
    if model.can_generate():
        return [_writer(model, batch)]
    found = [name for name in OUTPUTS if name in _names(model, batch)]
    return [_reader("model.onnx", model, batch, found)]


def past_names(kind: str, layers: int) -> list[str]:
    """`kind` is past_key_values or present."""
    return [f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def positions(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the last `count` tokens among those that are no padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -count:]


def empty_past(model: PreTrainedModel, batch: int, length: int = 0) -> list[torch.Tensor]:
    """Keys and values of so many tokens, which are zeros: [batch, heads, tokens, size] for each layer, twice."""
    with torch.no_grad():
        layers = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values.layers
    shapes = [each.shape for layer in layers for each in (layer.keys, layer.values)]
    return [torch.zeros(batch, shape[1], length, shape[3]) for shape in shapes]


def _names(model: PreTrainedModel, batch: Batch) -> list[str]:
    with torch.no_grad():
        return list(model(**batch).keys())


def _reader(file: str, model: torch.nn.Module, batch: Batch, outputs: Sequence[str]) -> Graph:
    shapes = {name: {0: BATCH, 1: LENGTH} for name in batch}
    return Graph(file, Reader(model, outputs), batch, shapes, list(batch), outputs)


def _writer(model: PreTrainedModel, batch: Batch) -> Graph:
    _require_plain_cache(model)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    past = empty_past(model, len(ids), TRIED_PAST)
    seen = torch.cat([torch.ones(len(ids), TRIED_PAST, dtype=mask.dtype), mask], dim=1)
    module = Writer(model)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": seen, "past": past}
    shapes: dict[str, Any] = {
        "input_ids": {0: BATCH, 1: LENGTH},
        "attention_mask": {0: BATCH, 1: TOTAL},
        "past": [{0: BATCH, 2: PAST}] * len(past),
    }
    names = ["input_ids", "attention_mask", *past_names("past_key_values", len(past) // 2)]
    if module.positioned:
        arguments["position_ids"] = positions(seen, ids.shape[1])
        shapes["position_ids"] = {0: BATCH, 1: LENGTH}
        names.append("position_ids")
    return Graph("model.onnx", module, arguments, shapes, names, ["logits", *past_names("present", len(past) // 2)])


def _translator(model: PreTrainedModel, batch: Batch) -> list[Graph]:
    encoder = model.get_encoder()
    with torch.no_grad():
        states = encoder(**batch).last_hidden_state
    arguments = {
        "input_ids": batch["input_ids"][:, :4],
        "encoder_hidden_states": states,
        "encoder_attention_mask": batch["attention_mask"],
    }
    shapes = {
        "input_ids": {0: BATCH, 1: WRITTEN},
        "encoder_hidden_states": {0: BATCH, 1: LENGTH},
        "encoder_attention_mask": {0: BATCH, 1: LENGTH},
    }
    writer = Graph("decoder_model.onnx", Translator(model), arguments, shapes, list(arguments), ["logits"])
    return [_reader("encoder_model.onnx", encoder, batch, ["last_hidden_state"]), writer]


def _require_plain_cache(model: PreTrainedModel) -> None:
    """Layers that see a window only, or keep a state in place of keys and values, have other caches, which the graph's
    inputs cannot say and a short example would not show."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")):
        raise unsupported(f"{config.model_type} has layers that are not plain attention ({', '.join(sorted(kinds))})")


def unsupported(message: str) -> UserInputError:
    return UserInputError(
        f"this model cannot become ONNX: {message}",
        advice="export it as Safetensors instead",
        reason=FailureReason.EXPORT_UNSUPPORTED,
    )
