"""What Chat and Completion share: a causal language model that learns to write the answer."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.problems import Fault, Findings
from finetune_trainer.masking import IGNORED, MaskedTokens
from finetune_trainer.tasks.kind import Facts, Tokens


@dataclass(frozen=True, slots=True)
class CausalFormat:
    """The ExampleFormat of both: `mask` says which tokens are the answer."""

    special: re.Pattern[str]
    check: Callable[[Mapping[str, Any]], list[Fault]]
    normalise: Callable[[Mapping[str, Any]], dict[str, Any]]
    mask: Callable[[Mapping[str, Any]], MaskedTokens]

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        masked = self.mask(normal)
        return {"input_ids": array("i", masked.input_ids), "labels": array("i", masked.labels)}

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """The first `max_length` tokens."""
        if len(tokens["input_ids"]) <= max_length:
            return tokens
        shorter = {name: column[:max_length] for name, column in tokens.items()}
        return shorter if self.learned(shorter) else None

    def learned(self, tokens: Tokens) -> int:
        return len(tokens["labels"]) - tokens["labels"].count(IGNORED)

    def end_of_training_data(self, findings: Findings) -> None:
        """Nothing is learned of the data beforehand."""

    @property
    def facts(self) -> Facts:
        return Facts()
