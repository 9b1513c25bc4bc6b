"""Train on bases that come with something of their own: generation settings, experts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.disturbed_runs import weights
from tests.trained_runs import BASE, make_run, one_thread
from transformers import AutoConfig, MixtralConfig, MixtralForCausalLM

from finetune_api.spec import MethodType
from finetune_trainer import artifacts
from finetune_trainer.stages import train


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_generation_settings_are_kept_as_the_base_came_with_them(tmp_path: Path) -> None:
    """Some models name a temperature and do not sample, which transformers saves only where nobody has changed it."""
    context = make_run(tmp_path, method=MethodType.FULL)
    settings = {"eos_token_id": 1, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / BASE / "generation_config.json").write_text(json.dumps(settings))
    artifacts.finish(tmp_path / BASE)
    train.run(context)
    kept = json.loads((context.model_dir / "generation_config.json").read_text())
    assert {name: kept.get(name) for name in ("temperature", "top_p", "do_sample")} == {
        "temperature": 0.9,
        "top_p": 0.6,
        "do_sample": None,
    }


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_model_of_experts_trains_and_still_writes(tmp_path: Path, method: MethodType) -> None:
    """An adapter leaves experts and router as they are; nothing asks for the loss that balances them."""
    context = make_run(tmp_path, method=method)
    base = tmp_path / BASE
    settings = AutoConfig.from_pretrained(base).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: settings[name] for name in (*names, "num_key_value_heads", "eos_token_id", "pad_token_id")}
    config = MixtralConfig(**shape, bos_token_id=None, num_local_experts=4, max_position_embeddings=256)
    assert config.router_aux_loss_coef
    torch.manual_seed(1)  # of some others many answers end by chance, which the trained model is then held to
    MixtralForCausalLM(config).save_pretrained(base)
    artifacts.finish(base)
    summary = train.run(context)
    assert summary.steps == 10
    if method is MethodType.FULL:
        assert not json.loads((context.model_dir / "config.json").read_text()).get("output_router_logits")
    else:
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in weights(context.model_dir)} == {
            *("q_proj", "k_proj", "v_proj", "o_proj")
        }
