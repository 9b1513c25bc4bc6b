"""Chat models of a few thousand parameters, made on the spot: no download, under a second each.

The weights are random, so the answers are noise; what they are good for is everything that does not depend on
sense: loading, batching, streaming, stopping, templates, adapters, checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CONTEXT = 256
PROSE = (
    "The harbour is quiet in the morning and the boats leave before the sun is up.",
    "What is the best time to visit Lisbon? Spring is mild and the streets are not yet full.",
    "Grüße aus München, café crème, naïve façade, 東京 and 🚢🌊 are words beyond plain letters.",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("role '" ~ message['role'] ~ "' is unknown to this model") -}}
{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] ~ '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] ~ '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make_tiny_tokenizer(prose: Sequence[str] = PROSE, *, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of so many entries with a chat template and an end-of-turn token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(prose), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_tiny_chat_model(path: Path | str, *, seed: int = 0, tokenizer: Any = None, **config: Any) -> Path:
    """Write a random Llama (hidden 32, 2 layers, context 256) with its tokenizer into `path`; return the path.

    `config` overrides fields of `LlamaConfig`. Weights differ by seed and are the same for the same seed.
    """
    folder = Path(path)
    tokenizer = tokenizer or make_tiny_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**shape, **config}))
        # Wider than the usual 0.02: with almost equal scores an argmax would hang on the last bit of a sum.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_adapter(base: Path | str, path: Path | str, *, seed: int = 1, rank: int = 4, **config: Any) -> Path:
    """Write a LoRA adapter for the model in `base` into `path`, strong enough to change its answers; return the path.

    `config` overrides fields of `LoraConfig`.
    """
    folder = Path(path)
    model = AutoModelForCausalLM.from_pretrained(base)
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned = get_peft_model(model, LoraConfig(**settings))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder)
    return folder
