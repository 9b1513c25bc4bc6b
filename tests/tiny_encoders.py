"""Encoders of a few thousand parameters, made on the spot: no download, under a second each.

The weights are random. A classifier, tagger or reader learns an easy synthetic task on them within seconds, because
even random embeddings tell words apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
)

PAD, UNKNOWN, START, SEPARATOR, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
CONTEXT = 128
WORDS = (
    "The invoice was charged twice and the refund has not arrived yet.",
    "The parcel is late, the courier left it with a neighbour in Lisbon.",
    "I cannot log in: the password reset mail never comes. Who wrote the letter, and when did Anna leave Bern?",
    "Grüße aus München, café crème, naïve façade: words beyond plain letters.",
)
Kind = Literal["bert", "bert-without-pooler", "distilbert"]


def make_tiny_encoder_tokenizer(texts: Sequence[str] = WORDS, *, token_types: bool = True) -> PreTrainedTokenizerFast:
    """Return a cased WordPiece tokenizer as BERT has it: [CLS] a [SEP] b [SEP], with offsets.

    A word of `texts` is one token; any other word is spelled out, letter by letter. Letters that are neither ASCII
    nor in `texts` become [UNK]. The same texts give the same ids.
    """
    split = pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    letters = sorted({chr(code) for code in range(33, 127)} | {letter for word in words for letter in word})
    entries = [PAD, UNKNOWN, START, SEPARATOR, MASK, *letters, *(f"##{letter}" for letter in letters), *sorted(words)]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {SEPARATOR}",
        pair=f"{START} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(name, vocabulary[name]) for name in (START, SEPARATOR)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=SEPARATOR,
        mask_token=MASK,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    )


def make_tiny_encoder(
    path: Path | str,
    *,
    texts: Sequence[str] = WORDS,
    seed: int = 0,
    kind: Kind = "bert",
    tokenizer: Any = None,
    **config: Any,
) -> Path:
    """Write a random encoder (hidden 32, 2 layers, context 128) with its tokenizer into `path`; return the path.

    `texts`: what the tokenizer is trained on; give the words of the task. `config` overrides fields of the model's
    configuration. `bert-without-pooler` and `distilbert` lack layers of the classification head below its last one,
    as most models of the hub do. Weights differ by seed and are the same for the same seed.
    """
    folder = Path(path)
    tokenizer = tokenizer or make_tiny_encoder_tokenizer(texts, token_types=kind != "distilbert")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _build(kind, len(tokenizer), int(tokenizer.pad_token_id), config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _build(kind: Kind, vocabulary: int, pad: int, config: dict[str, Any]) -> Any:
    # At the usual 0.02 nothing of a text reaches the first token in so small a model, and training barely begins.
    config = {"initializer_range": 0.1, **config}
    if kind == "distilbert":
        shape = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
        sizes = {"vocab_size": vocabulary, "pad_token_id": pad, "max_position_embeddings": CONTEXT}
        return DistilBertForMaskedLM(DistilBertConfig(**{**shape, **sizes, **config}))
    shape = {
        "vocab_size": vocabulary,
        "pad_token_id": pad,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    architecture = BertForPreTraining if kind == "bert" else BertForMaskedLM
    return architecture(BertConfig(**{**shape, **config}))
