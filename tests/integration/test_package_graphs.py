"""Graphs for ONNX of many architectures, with random weights: each answers under onnxruntime as in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trained_runs import one_thread
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError
from finetune_trainer.packaging import onnx_export
from finetune_trainer.packaging.comparison import Difference, difference, worst_of
from finetune_trainer.packaging.graphs import empty_past, graphs_of, past_names

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
WINDOWED = {**GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "bert labels texts": (AutoModelForSequenceClassification, "bert", {**SHAPE, "num_labels": 3}),
    "roberta reads": (AutoModelForQuestionAnswering, "roberta", SHAPE),
    "qwen3 writes": (AutoModelForCausalLM, "qwen3", GROUPED),
    "gpt2 writes": (AutoModelForCausalLM, "gpt2", GPT2),
    "t5 translates": (AutoModelForSeq2SeqLM, "t5", T5),
}


def test_an_output_that_is_no_number_is_no_small_difference() -> None:
    """Wherever it stands: of two outputs the second, of two batches the second."""
    good, bad = torch.ones(2, 3), torch.full((2, 3), torch.nan)
    for found in ([bad, good], [good, bad]):
        assert not difference([good, good], found).largest <= 1e9
    close, far = Difference(0.0, 1.0), difference([good], [bad])
    for each in ([close, far], [far, close]):
        assert not worst_of(each).largest <= 1e9


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def build(case: tuple[Any, str, dict[str, Any]]) -> PreTrainedModel:
    auto, name, fields = case
    config = AutoConfig.for_model(name, **fields, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(types: bool = False) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ids = torch.randint(3, 96, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    return {**found, "token_type_ids": (torch.arange(12) > 5).long().repeat(3, 1)} if types else found


@pytest.mark.parametrize("name", list(CASES))
def test_the_graph_answers_as_pytorch_does(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    inputs = batch(types=name.startswith("bert"))
    graphs = graphs_of(model, inputs)
    onnx_export._write(graphs, tmp_path)
    names = ["encoder_model.onnx", "decoder_model.onnx"] if "translates" in name else ["model.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    found = onnx_export.compare(model, inputs, tmp_path)
    assert found.largest < onnx_export.TOLERANCE
    assert found.agreement == 1.0
    if name == "qwen3 writes":
        assert_writes_as_pytorch(model, tmp_path)
    with torch.no_grad():  # a wrong weight is seen
        embedding = next(model.parameters())
        embedding.mul_(torch.linspace(0.5, 1.5, embedding.shape[-1]))
    assert onnx_export.compare(model, inputs, tmp_path).largest > onnx_export.TOLERANCE


def assert_writes_as_pytorch(model: PreTrainedModel, folder: Path) -> None:
    """Token by token, each from the last one and the past."""
    prompt = batch()["input_ids"][:1, :5]
    wanted = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    ids, past = prompt, empty_past(model, 1)
    while ids.shape[1] < wanted.shape[1]:
        length = past[0].shape[2]
        new = ids[:, length:]
        read = {
            "input_ids": new,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(length, ids.shape[1])[None],
            **dict(zip(past_names("past_key_values", 2), past, strict=True)),
        }
        answer = onnx_export._run(folder / "model.onnx", read)
        ids = torch.cat([ids, answer.pop("logits")[:, -1:].argmax(-1)], dim=1)
        past = list(answer.values())
    assert ids.tolist() == wanted.tolist()


def test_layers_that_see_a_window_are_refused() -> None:
    with pytest.raises(UserInputError, match="not plain attention") as caught:
        graphs_of(build((AutoModelForCausalLM, "qwen3", {**WINDOWED, "use_sliding_window": True})), batch())
    assert caught.value.reason is FailureReason.EXPORT_UNSUPPORTED


def test_what_the_exporter_does_not_know_is_refused(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if input_ids.sum() > 3:  # depends on the data
                return (input_ids.float(),)
            return (attention_mask.float(),)

    (graph,) = graphs_of(build(CASES["roberta reads"]), batch())
    with pytest.raises(UserInputError, match="cannot become ONNX") as caught:
        onnx_export._write([type(graph)("model.onnx", Odd(), batch(), graph.shapes, graph.inputs, ["out"])], tmp_path)
    assert "\n" not in caught.value.message
    assert caught.value.advice
