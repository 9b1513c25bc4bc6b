"""What differs between tasks, and nothing else of a task is known outside its module.

A line of the data goes `check` -> `normalise` -> `encode` -> `cut` (all in Prepare), its columns go into `trainer`
(Train) and `measure` (Train and Evaluate), and `ask` and `answer` show people what the model does with it.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.evaluation import ANSWER_TOKENS
from finetune_api.status import ResolvedValues
from finetune_api.tasks import Metric, Task
from finetune_trainer.data.problems import EncodingError as EncodingError
from finetune_trainer.data.problems import Fault, Findings

Tokens = Mapping[str, "array[int]"]
"""Columns of one example as Train reads them: `input_ids` always; the others are the task's own."""

Row = Mapping[str, Sequence[int]]
"""The same, read back from disk."""


def no_interruption() -> None:
    """For callers that nothing interrupts."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What Prepare learned of the training data that the model is built by. Empty for tasks that generate text.

    `counts` of a prepared dataset: how often an epoch meets each label, without what is held out or left out."""

    labels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    multi_label: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Facts:
        found = json.loads(text)
        return cls(tuple(found["labels"]), tuple(found["counts"]), found["multi_label"])


class ExampleFormat(Protocol):
    """How lines of the data become tokens of one model. Reads the training data first, then the held-out data."""

    @property
    def special(self) -> re.Pattern[str]:
        """The model's special tokens, which no text may hold."""

    @property
    def windowed(self) -> bool:
        """Whether `cut` takes the part that matters, so that a cut example is no loss."""

    def check(self, row: Mapping[str, Any]) -> list[Fault]:
        """Everything wrong with the line. Without an error among it, `normalise` takes it."""

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The example in our one form: what `dataset/train.jsonl` keeps."""

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        """Its tokens, uncut. Raises EncodingError."""

    def encode_all(self, normals: Sequence[Mapping[str, Any]]) -> Sequence[Tokens | EncodingError]:
        """The tokens of each, in order, or why there are none."""

    def settled(self, tokens: Tokens) -> Tokens:
        """Tokens of either file after `end_of_training_data`: what was provisional (the number of a label) is final."""

    def cut(self, tokens: Tokens, max_length: int) -> Tokens | None:
        """At most `max_length` tokens of it, the same object when it is short enough; None when nothing to learn
        remains."""

    def beside(self, tokens: Tokens, max_length: int) -> Sequence[Tokens]:
        """What else is trained on of an example that `cut` takes a part of: other windows of a long text."""

    def learned(self, tokens: Tokens) -> int:
        """How many tokens (or labels) are trained on."""

    def end_of_training_data(self, findings: Findings) -> None:
        """Called between the two files: what is learned of the training data (labels) is now fixed."""

    @property
    def facts(self) -> Facts:
        """What was learned of the training data."""


class OneByOne:
    """The part of an ExampleFormat that reads one example after the other, and whose tokens are final at once."""

    def encode(self, normal: Mapping[str, Any]) -> Tokens:
        raise NotImplementedError

    def encode_all(self, normals: Sequence[Mapping[str, Any]]) -> Sequence[Tokens | EncodingError]:
        return [self._encoded(normal) for normal in normals]

    def settled(self, tokens: Tokens) -> Tokens:
        return tokens

    def beside(self, tokens: Tokens, max_length: int) -> Sequence[Tokens]:
        return ()

    def _encoded(self, normal: Mapping[str, Any]) -> Tokens | EncodingError:
        try:
            return self.encode(normal)
        except EncodingError as error:
            return error


@dataclass(frozen=True, slots=True)
class Measured:
    """Per example, shape [n]: summed loss in nats, and what it is a sum over (trained-on tokens, or 1).

    `metrics` are those that come with the loss (token accuracy, accuracy, F1); `outputs` is what a task keeps for its
    `measure` of another model on the same rows (Preference: log-probabilities, shape [n, 2]). `details` go into
    `evaluation/report.json` as they are (Classification: figures of each label, what was taken for what).
    `request_tokens` is the mean of what is read before an answer, where that differs with the prompt.
    """

    loss: NDArray[np.float64]
    weight: NDArray[np.int64]
    metrics: Mapping[Metric, float] = field(default_factory=dict)
    outputs: NDArray[np.float64] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    request_tokens: float | None = None

    @property
    def mean_loss(self) -> float:
        return float(self.loss.sum() / max(1, self.weight.sum()))


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out example as a person sees it, and the row that the model sees.

    `expected_tokens` is the length of the data's answer where one is generated, `most` the tokens after which one is
    cut off; `fits` is False when the model's context has no room for an answer.
    """

    prompt: str
    expected: str
    row: Row
    expected_tokens: int = 0
    fits: bool = True
    most: int = ANSWER_TOKENS


@dataclass(frozen=True, slots=True)
class Answer:
    """`stopped`: whether a generated answer ended by itself; None where nothing is generated. `length` is its tokens,
    `distinct` the different ones among them."""

    text: str
    stopped: bool | None = None
    length: int = 0
    distinct: int = 0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a model is measured on: the rows, and the same examples as text, in the same order. `max_length` is what
    training examples were cut to, `context` what the model takes, `answer_tokens` what a generated answer may have,
    all in tokens. `resolved` are the run's values, where there is a run."""

    rows: Sequence[Row]
    examples: Sequence[Mapping[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    facts: Facts
    max_length: int
    context: int
    resolved: ResolvedValues | None = None
    answer_tokens: int = ANSWER_TOKENS


@dataclass(frozen=True, slots=True)
class TrainerParts:
    """What a trainer is made of. `extra` are the keyword arguments of our mixin: hand them on unread."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    resolved: ResolvedValues
    arguments: Mapping[str, Any]  # of transformers.TrainingArguments; a task adds its own to them
    train: Any  # datasets.Dataset
    validation: Any  # datasets.Dataset, for its form alone: `measure` has the held-out examples
    facts: Facts
    base_dir: Path
    extra: Mapping[str, Any]


class TaskKind(Protocol):
    """One task. Implementations are plain classes without state."""

    task: Task
    auto_model: Any  # AutoModelForCausalLM and its kin
    peft_type: str  # PEFT's word for the task: SEQ_CLS and its kin
    needs_reference: bool  # whether `measure` of a tuned model needs what it said of the base

    def require(self, config: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        """Raise UserInputError (ModelInvalid) when a model of this configuration cannot do the task."""

    def model_options(self, facts: Facts) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained` and for the configuration: labels of a classifier."""

    def example_format(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], special: re.Pattern[str]
    ) -> ExampleFormat: ...

    def trainer(self, parts: TrainerParts) -> Any:
        """A transformers Trainer with our mixin, `Checkpointing`, in front."""

    def measure(
        self,
        model: PreTrainedModel,
        held_out: HeldOut,
        *,
        reference: Measured | None = None,
        between_batches: Callable[[], None] = no_interruption,
    ) -> Measured:
        """Loss and the metrics that come with it, of a model in evaluation mode. `reference`: of the base model on
        the same rows, None when this is the base. `between_batches` may raise to stop."""

    def generated(
        self, model: PreTrainedModel, held_out: HeldOut, *, between_batches: Callable[[], None] = no_interruption
    ) -> Mapping[Metric, float]:
        """Metrics that need the model to generate; empty for most tasks."""

    def ask(self, held_out: HeldOut) -> Iterator[Question]:
        """The examples that can be asked, in order."""

    def pose(self, prompt: str, held_out: HeldOut) -> Question | None:
        """A question that is not in the data. None where no text is written, or nothing is left of the prompt."""

    def answer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        *,
        facts: Facts,
        between_batches: Callable[[], None] = no_interruption,
    ) -> list[Answer]:
        """What the model makes of them, in order, as the server would."""
