"""How far an export's answers are from those of the model that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from finetune_trainer.packaging.tuned import Batch

OUTPUTS = ("logits", "start_logits", "end_logits")
Outputs = Sequence[torch.Tensor]
"""Scores of the tokens that are no padding (or of the examples), float32: one tensor an output of the task."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`largest` is relative to the largest output; `agreement` the share of the tokens (or examples) whose best output
    is the same."""

    largest: float
    agreement: float


@torch.no_grad()
def outputs(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """What PyTorch answers."""
    found = model.eval()(**batch, **decoder_inputs(model, batch))
    named = (getattr(found, name, None) for name in OUTPUTS)
    return [without_padding(each, batch) for each in named if each is not None]


def decoder_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Where the model has a decoder of its own: it is told the beginning of what it shall write, for which any tokens
    do."""
    if not model.config.is_encoder_decoder:
        return {}
    ids = batch["input_ids"][:, :4].clone()
    ids[:, 0] = getattr(model.config, "decoder_start_token_id", None) or 0
    return {"decoder_input_ids": ids}


def without_padding(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Shape [tokens, outputs] where there is a score a token, else as it is."""
    mask = batch["attention_mask"].bool()
    return (scores[mask] if scores.shape[:2] == mask.shape else scores).float()


def difference(wanted: Outputs, found: Outputs) -> Difference:
    """Of the same batch. `largest` is not a number where an output of either is none."""
    largest = float(torch.stack([each.abs().max() for each in wanted]).max())  # unlike max(), keeps what is no number
    apart = float(torch.stack([(a - b).abs().max() for a, b in zip(wanted, found, strict=True)]).max())
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(wanted, found, strict=True)])
    return Difference(apart / max(largest, 1e-12), float(same.float().mean()))


def worst_of(found: Sequence[Difference]) -> Difference:
    """The largest difference, not a number where one is none, and the least agreement."""
    largest = float(torch.tensor([each.largest for each in found]).max())
    return Difference(largest, min(each.agreement for each in found))
