"""Where examples that share a row stay unseen by each other: what is claimed, against what the models compute."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.training import packed_attention
from finetune_trainer.training.packable import separates_packed

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
INNER = {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
KINDS = {
    "llama": ("llama", {**WIDTH, **INNER}, True),
    "sliding": ("mistral", {**WIDTH, **INNER, "sliding_window": 8}, True),
    "qwen3": ("qwen3", {**WIDTH, **INNER, "head_dim": 8}, True),
    "gemma2": ("gemma2", {**WIDTH, **INNER, "head_dim": 8}, True),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "n_positions": 64}, True),
    "neox": ("gpt_neox", {**WIDTH, "intermediate_size": 64, "max_position_embeddings": 64}, True),
    "falcon": ("falcon", {**WIDTH, "alibi": False}, False),  # takes positions, and makes its mask without them
    "falcon-alibi": ("falcon", {**WIDTH, "alibi": True}, False),
    "opt": ("opt", {**WIDTH, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32}, False),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}, False),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 97}, False),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97}, False),
    "lfm2": ("lfm2", {**WIDTH, **INNER, "layer_types": ["conv", "full_attention"]}, False),
}


def build(kind: str) -> PreTrainedModel:
    name, fields, _ = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **fields, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that a neighbour that is seen makes a difference
    return model


@torch.no_grad()
def neighbour_is_seen(model: PreTrainedModel) -> bool:
    """Whether the scores of an example change with the example before it in the row."""
    own = torch.arange(10, 22)
    positions = torch.cat([torch.arange(9), torch.arange(len(own))])[None]
    takes = "position_ids" in inspect.signature(type(model).forward).parameters
    given = {"position_ids": positions} if takes else {}
    scores = [
        model(input_ids=torch.cat([torch.arange(start, start + 9), own])[None], use_cache=False, **given).logits[0, 9:]
        for start in (30, 60)
    ]
    return not torch.allclose(scores[0], scores[1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_in_one_row(kind: str) -> None:
    model = build(kind)
    with torch.device("meta"):
        assert separates_packed(AutoModelForCausalLM.from_config(model.config)) is KINDS[kind][2]
    assert neighbour_is_seen(model) is not KINDS[kind][2]


PLAIN = ("llama", "sliding", "qwen3", "neox", "opt")
LENGTHS = [9, 12, 1, 20]  # the last ones longer than the window of "sliding"


@pytest.mark.parametrize("kind", KINDS)
def test_where_boundaries_reach_the_attention(kind: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(build(kind).config)
    before = model.config._attn_implementation
    assert packed_attention.keeps_apart(model) is (kind in PLAIN)
    assert model.config._attn_implementation == before


def test_attention_with_dropout_is_not_of_the_plain_kind() -> None:
    config = build("llama").config
    config.attention_dropout = 0.1
    with torch.device("meta"):
        assert not packed_attention.keeps_apart(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", PLAIN)
def test_packed_rows_are_computed_and_learnt_as_if_alone(kind: str) -> None:
    """Scores, and the gradients of the weights, are those of the examples one by one."""
    model = build(kind)
    ids = torch.randint(3, 97, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, 1)]
    gradients = _gradients(model, torch.cat(alone, 1))
    packed_attention.register()
    model.set_attn_implementation(packed_attention.NAME)
    given = packed_attention.boundaries_of(LENGTHS, "cpu")
    packed = model(input_ids=ids, position_ids=positions, use_cache=False, **given).logits
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-4, rtol=1e-4)
    for before, after in zip(gradients, _gradients(model, packed), strict=True):
        torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def _gradients(model: PreTrainedModel, scores: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    scores.square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_rows_with_padding_are_computed_as_ever() -> None:
    model = build("sliding")
    ids = torch.arange(10, 34).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    packed_attention.register()
    model.set_attn_implementation(packed_attention.NAME)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before)
    whole = model(input_ids=ids[:1]).logits
    torch.testing.assert_close(whole, before[:1])
