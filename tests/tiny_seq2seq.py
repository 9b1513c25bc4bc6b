"""Encoder-decoder models of some ten thousand parameters and a toy language to translate, made on the spot.

The fresh models are noise. `teach_copying` trains one for seconds to repeat what it reads, so that a fine-tuning only
has to change what is written: that an adapter of a frozen, random model cannot learn.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece  # type: ignore[import-untyped]
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT = 64
NOUNS = {"cat": "chat", "dog": "chien", "horse": "cheval", "bird": "oiseau", "fish": "poisson", "wolf": "loup"}
COLOURS = {"red": "rouge", "white": "blanc", "black": "noir", "grey": "gris", "brown": "brun"}
VERBS = {"sleeps": "dort", "eats": "mange", "runs": "court", "sings": "chante"}
SPECIAL = {"t5": ("<pad>", "</s>", "<unk>"), "bart": ("<s>", "<pad>", "</s>", "<unk>")}


def pairs(count: int, offset: int = 0) -> list[dict[str, str]]:
    """Sentences of a toy language and their translation, with the colour behind the noun: at most 120 different ones,
    always in the same random order."""
    sentences = list(itertools.product(COLOURS, NOUNS, VERBS))
    random.Random(7).shuffle(sentences)
    return [
        {"source": f"the {c} {n} {v}", "target": f"le {NOUNS[n]} {COLOURS[c]} {VERBS[v]}"}
        for c, n, v in sentences[offset : offset + count]
    ]


def prose() -> list[str]:
    return [text for pair in pairs(120) for text in pair.values()]


def make_tokenizer(family: str, texts: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `t5` ends every text with </s>, `bart` also begins it with <s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = SPECIAL[family]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*prose(), *texts], trainer)
    end = special.index("</s>")
    begin = [("<s>", 0)] if family == "bart" else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if begin else "$A </s>", special_tokens=[*begin, ("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"bos_token": "<s>"} if begin else {}),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_marian_tokenizer(folder: Path) -> MarianTokenizer:
    """The real kind: a SentencePiece model a language, and one vocabulary. Writes them into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"</s>": 0, "<unk>": 1}
    for side in ("source", "target"):
        with (folder / f"{side}.spm").open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(pair[side] for pair in pairs(120)),
                model_writer=file,
                model_type="word",
                vocab_size=40,
                hard_vocab_limit=False,
                minloglevel=2,
            )
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        for at in range(pieces.get_piece_size()):
            vocabulary.setdefault(pieces.id_to_piece(at), len(vocabulary))
    vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    names = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    return MarianTokenizer(*names, source_lang="en", target_lang="fr", model_max_length=CONTEXT)


def make_tiny_seq2seq(folder: Path, family: str = "t5", *, seed: int = 0, copying: int = 0, **config: Any) -> Path:
    """Write a T5, BART or Marian (width 32, 2 layers a side) with its tokenizer; return the folder. `copying`: steps
    of training to repeat the source. `config` overrides fields of the configuration."""
    tokenizer = make_marian_tokenizer(folder) if family == "marian" else make_tokenizer(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = {"t5": _t5, "bart": _bart, "marian": _marian}[family](tokenizer, config)
        if copying:
            teach_copying(model, tokenizer, copying)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        num_beams=4,  # as many published models have it: neither the evaluation nor the server may follow it
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_seq2seq_adapter(base: Path, folder: Path, *, seed: int = 1, **config: Any) -> Path:
    """Write a random LoRA adapter for the model in `base`, strong enough to change its answers; return the folder.
    `config` overrides fields of `LoraConfig`."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "SEQ_2_SEQ_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), LoraConfig(**{**settings, **config}))
        for name, parameter in tuned.named_parameters():
            if "lora_A" in name or "lora_B" in name:  # a DoRA magnitude keeps its length
                torch.nn.init.normal_(parameter, std=0.1)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder)
    return folder


def _t5(tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any]) -> T5ForConditionalGeneration:
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 8,  # rows that no token has, as the published ones
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "decoder_start_token_id": tokenizer.pad_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return T5ForConditionalGeneration(T5Config(**{**shape, **config}))


def _bart(tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any]) -> BartForConditionalGeneration:
    ends = {"bos_token_id": tokenizer.bos_token_id, "decoder_start_token_id": tokenizer.eos_token_id}
    forced = {"forced_eos_token_id": tokenizer.eos_token_id}
    return BartForConditionalGeneration(BartConfig(**{**_two_sides(tokenizer), **ends, **forced, **config}))


def _marian(tokenizer: MarianTokenizer, config: Mapping[str, Any]) -> MarianMTModel:
    start = {"decoder_start_token_id": tokenizer.pad_token_id, "static_position_embeddings": True}
    return MarianMTModel(MarianConfig(**{**_two_sides(tokenizer), **start, **config}))


def _two_sides(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": CONTEXT,
        "dropout": 0.0,
        "init_std": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def teach_copying(model: Any, tokenizer: Any, steps: int) -> None:
    """Train a model to write what it reads, on random sequences of the toy language's words."""
    words = [word for text in prose() for word in text.split()]
    chance = random.Random(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        texts = [" ".join(chance.choices(words, k=4)) for _ in range(16)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**{k: batch[k] for k in ("input_ids", "attention_mask")}, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
