"""The texts of a row or of an example, wherever they stand in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every text in the value, keys of objects included."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, key
            yield from texts(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from texts(inner, f"{where}[{index}]")


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with each of its texts changed; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: with_texts(inner, change) for key, inner in value.items()}
    return [with_texts(inner, change) for inner in value] if isinstance(value, list) else value
