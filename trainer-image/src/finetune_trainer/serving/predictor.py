"""What a predicting task tells the server: one object is one route.

A request goes `request` (JSON to a checked object) -> `items` (tokens, in a worker thread) -> `predict` (rows of many
requests at once, in the engine's thread) -> `render` (JSON again). A new task writes a `Predictor` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.protocol import DESCRIPTIVE, Strict
from finetune_trainer.tasks.kind import Facts, Row

MAX_ITEMS = 64  # texts of one request


class PredictRequest(Strict):
    """What every request has. A task adds its own fields: `input`, `top_k` and so on."""

    model: str

    @model_validator(mode="before")
    @classmethod
    def drop_descriptive(cls, data: Any) -> Any:
        """Leave out what describes a request and changes no answer."""
        return {key: value for key, value in data.items() if key not in DESCRIPTIVE} if isinstance(data, dict) else data


@dataclass(frozen=True, slots=True)
class PredictModel:
    """The loaded model, in evaluation mode. `context`: the most tokens of a row, special ones included."""

    name: str
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: Facts
    context: int


@dataclass(frozen=True, slots=True)
class Item:
    """One text (or pair, or question) of a request: its rows, of which a long text may have several, and the tokens
    that are counted for it. `source`: whatever `render` needs to know of it."""

    rows: Sequence[Row]
    tokens: int
    source: Any = None


RequestT = TypeVar("RequestT", bound=PredictRequest)


class Predictor(Protocol[RequestT]):
    """One task's route. `sample`: fields of a request that the server asks itself before it says it is ready."""

    route: ClassVar[str]
    sample: ClassVar[Mapping[str, Any]]

    @property
    def request(self) -> type[RequestT]:
        """The type that a body is checked against."""

    def items(self, wanted: RequestT, model: PredictModel) -> list[Item]:
        """The things asked for, as tokens. Raises InvalidRequest that names the culprit: see `check_items` and
        `check_length`. The only caller of the tokenizer at a time."""

    def predict(self, model: PredictModel, rows: Sequence[Row]) -> Sequence[Any]:
        """What the model makes of each row, in order. Called by one thread."""

    def render(self, wanted: RequestT, model: PredictModel, item: Item, outputs: Sequence[Any]) -> dict[str, Any]:
        """One entry of `data`, without its index, from the outputs of the item's rows."""


def check_items(count: int, param: str = "input") -> None:
    """Raise InvalidRequest when a request asks for nothing, or for too much at once."""
    if count == 0:
        raise InvalidRequest(f"'{param}' is an empty list: give at least one text.", param=param, code="empty_input")
    if count > MAX_ITEMS:
        raise InvalidRequest(
            f"'{param}' has {count} entries; this server takes {MAX_ITEMS} in one request. Send several requests.",
            param=param,
            code="too_many_items",
        )


def check_text(text: str, param: str) -> None:
    """Raise InvalidRequest when a text says nothing."""
    if not text.strip():
        raise InvalidRequest(f"'{param}' is empty: there is nothing to judge.", param=param, code="empty_input")


def check_length(tokens: int, context: int, param: str) -> None:
    """Raise InvalidRequest when a text does not fit into the model."""
    if tokens > context:
        raise InvalidRequest(
            f"'{param}' has {tokens} tokens, and this model reads {context} at most: shorten the text, or split it.",
            param=param,
            code="context_length_exceeded",
        )
