"""What a GPU hour costs: the platform's table, and which of its rows a pod is charged by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from finetune_api.cost import MOST_LABELS

DEFAULT = "default"
CURRENCY = "[A-Z]{3}"  # ISO 4217
NAME = "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
HIGHEST = Decimal(1_000_000)
DIGITS = 6  # behind the point
EXAMPLE = '{"currency": "EUR", "gpuHour": {"default": 2.5}}'


@dataclass(frozen=True, slots=True)
class Price:
    """The row that holds. `amount`: of a GPU hour; None: there is no price for it, and `labels` are those, by their
    values, by which it can be found when there is one."""

    gpu: str
    amount: Decimal | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prices:
    """`gpu_hour`: by value of a node label, by extended resource, or `default`."""

    currency: str | None = None
    gpu_hour: Mapping[str, Decimal] = field(default_factory=dict)

    def of(self, resource: str, node_labels: Mapping[str, str]) -> Price:
        """The price of a GPU that is asked for by this resource, on nodes that were selected by these labels.

        The labels say most: `nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3`. They are taken from the pod, where a
        queue may have written them, and not from the node, which the operator has no right to read.
        """
        return self.by(resource, [node_labels[key] for key in sorted(node_labels)])

    def by(self, resource: str, labels: Sequence[str]) -> Price:
        """The same by the labels' values, in their order."""
        for name in (*labels, resource, DEFAULT):
            if name in self.gpu_hour:
                return Price(resource if name == DEFAULT else name, self.gpu_hour[name])
        return Price(resource, labels=tuple(labels[:MOST_LABELS]))


def read_prices(text: str) -> Prices:
    """The table as the chart writes it, in JSON. Raises ValueError, which names the entry."""
    try:
        table = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except ValueError:
        raise ValueError(f"is not JSON; write {EXAMPLE}") from None
    if not isinstance(table, dict) or set(table) - {"currency", "gpuHour"}:
        raise ValueError(f"write an object with currency and gpuHour: {EXAMPLE}")
    rows, currency = table.get("gpuHour") or {}, table.get("currency") or None
    if not isinstance(rows, dict):
        raise ValueError("gpuHour: write an object of names and prices")
    if rows and not (isinstance(currency, str) and re.fullmatch(CURRENCY, currency)):
        raise ValueError(f"currency: {currency!r} is none; write three capital letters, for example EUR")
    return Prices(currency if rows else None, {name: _amount(name, value) for name, value in rows.items()})


def _amount(name: str, value: Any) -> Decimal:
    if not re.fullmatch(NAME, name):
        raise ValueError(f"gpuHour.{name}: write default, a resource (nvidia.com/gpu), or the value of a node label")
    try:
        amount = Decimal(value) if isinstance(value, Decimal | str) else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if amount.is_nan() or not 0 <= amount <= HIGHEST or amount != round(amount, DIGITS):
        raise ValueError(f"gpuHour.{name}: write a number from 0 to {HIGHEST}, with at most {DIGITS} decimals")
    return amount
