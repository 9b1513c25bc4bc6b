"""A loaded module and the way in which prompts go through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class Start(NamedTuple):
    """What a cohort begins with: its first columns, of shape (rows, columns), their mask, and an empty cache."""

    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any


@dataclass(frozen=True, slots=True)
class Lane:
    """A module that rows can share a batch in. `switched` says whether it takes an adapter's name for each row.

    This is the lane of a causal language model: a prompt and its answer are one text.
    """

    module: Any
    switched: bool
    parameters: frozenset[str]
    merges: ClassVar[bool] = True
    """Whether rows that began at different times can go on in one batch."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        """Return the prompts, padded on the left: the newest tokens of all rows stand in one column."""
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for index, prompt in enumerate(prompts):
            ids[index, width - len(prompt) :] = torch.tensor(prompt)
            mask[index, width - len(prompt) :] = 1
        return Start(ids, mask, self.new_cache())

    def new_cache(self) -> Any:
        """Return an empty key-value cache, of the plain kind where the model allows it.

        Layers that slide over a window are correct with a plain cache too, since the mask hides what is out of
        the window; only recurrent layers need a cache of their own, which cannot be merged with another.
        """
        typed = DynamicCache(config=self.module.config)
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in typed.layers)
        return DynamicCache() if plain else typed

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, device: torch.device, options: dict[str, Any]
    ) -> torch.Tensor:
        """Return scores of shape (rows, columns, vocabulary), of which the last column counts; extend the cache."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "position_ids": positions.to(device),
            "logits_to_keep": 1,
        }
        inputs = {name: value for name, value in inputs.items() if name in self.parameters}
        scores: torch.Tensor = self.module(**inputs, **options, past_key_values=cache, use_cache=True).logits
        return scores
