"""A model on the meta device that is asked, again and again, what a pass of it holds in memory."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from finetune_trainer.estimate.activations import Held, held_bytes

log = logging.getLogger(__name__)
MANY_ROWS = 8  # all that lives during a pass grows with the rows in a straight line, of which two points are tried


class Trial:
    """`model` is `base`, perhaps with adapters. `tiled`: the body alone is tried, whose output layer is used in tiles;
    otherwise the scores and the loss on them count too."""

    def __init__(self, model: torch.nn.Module, base: PreTrainedModel, *, tiled: bool) -> None:
        self._model = model
        self._base = base
        self._tiled = tiled
        self._lines: dict[tuple[int, bool, bool, bool], tuple[Held, Held] | None] = {}

    def held(self, rows: int, length: int, *, half: bool, recompute: bool, accumulates: bool = True) -> Held | None:
        """As `held_bytes` counts; None when the model cannot be tried."""
        key = (length, half, recompute, accumulates)
        if key not in self._lines:
            self._lines[key] = self._try(*key)
        line = self._lines[key]
        if line is None:
            return None
        whatever, row = line
        return Held(whatever.peak + rows * row.peak, whatever.between + rows * row.between)

    def _try(self, length: int, half: bool, recompute: bool, accumulates: bool) -> tuple[Held, Held] | None:
        """What is held whatever the rows, and what a row adds."""
        self._cast(torch.bfloat16 if half else torch.float32)
        try:
            one, many = (
                held_bytes(
                    self._model,
                    self._base,
                    self._pass,
                    rows,
                    length,
                    half=half,
                    recompute=recompute,
                    accumulates=accumulates,
                )
                for rows in (1, MANY_ROWS)
            )
        except Exception as error:  # whatever an architecture raises when it looks into data that is not there
            log.info("the model cannot be tried without data, a plain block is counted: %s", error)
            return None
        row = Held((many.peak - one.peak) / (MANY_ROWS - 1), (many.between - one.between) / (MANY_ROWS - 1))
        return Held(one.peak - row.peak, one.between - row.between), row

    def _cast(self, dtype: torch.dtype) -> None:
        """Frozen weights as they are computed with; trained ones are always float32."""
        for parameter in self._model.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    def _pass(self, rows: int, length: int) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": torch.zeros(rows, length, dtype=torch.long, device="meta")}
        config = self._base.config
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = inputs["input_ids"]
        if self._tiled:
            body = getattr(self._base, self._base.base_model_prefix)
            states: torch.Tensor = body(**inputs, use_cache=False)[0]
            return states
        if config.is_encoder_decoder:
            inputs["use_cache"] = False
        scores = self._base(**inputs)[0]
        classes = scores.shape[-1]
        targets = torch.zeros(scores.numel() // classes, dtype=torch.long, device="meta")
        return cross_entropy(scores.float().reshape(-1, classes), targets)
