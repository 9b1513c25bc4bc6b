"""A RoBERTa of a few thousand parameters, made on the spot: spaces are part of tokens, positions count from 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

START, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
CONTEXT = 128


def make_tiny_roberta(path: Path | str, texts: Sequence[str], *, seed: int = 0) -> Path:
    """Write a random RoBERTa (hidden 32, 2 layers, context 128) with a byte-level BPE tokenizer that was trained on
    `texts` into `path`; return the path."""
    folder = Path(path)
    tokenizer = _tokenizer(texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RobertaForMaskedLM(
            RobertaConfig(
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT + 2,
                type_vocab_size=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [START, PAD, END, UNKNOWN, MASK]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    # Offsets untrimmed: a token's characters begin with its space, as in many models of the hub.
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{START} $A {END}",
                pair=f"{START} $A {END} {END} $B {END}",
                special_tokens=[(name, tokenizer.token_to_id(name)) for name in (START, END)],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        cls_token=START,
        eos_token=END,
        sep_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        mask_token=MASK,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
    )
