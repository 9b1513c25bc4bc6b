"""Which tokens are trained on, for any chat template and without changing it.

A conversation is rendered once, as the server will render it, and tokenised once. What the assistant said is then
found in the text by comparing renderings: messages[:i] with the generation prompt is where answer i begins, and
messages[:i+1] is where it ends. Where a template renders earlier turns differently from the last one (it may strip
the thinking of earlier turns, for example), the place is found by putting a marker into message i instead, and
the answer ends with the first stop token after it.

A label is the token's own id where it is trained on, and -100 (IGNORED) elsewhere; the shift by one is the model's.
"""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from finetune_trainer.data.problems import EncodingError
from finetune_trainer.messages import begin_ids, render

T = TypeVar("T")
IGNORED = -100  # the index that PyTorch's cross entropy leaves out

# Two markers that share neither their first nor their last character: a text can then not agree with both by chance.
MARKERS = ("Ω marker one ж", "Ж marker two ω")


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """input_ids and labels have the same length, in tokens."""

    input_ids: list[int]
    labels: list[int]

    @property
    def loss_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class ChatMasker:
    """Renders and masks conversations for one tokenizer. `stop_ids` are the tokens that end a generation."""

    tokenizer: Any
    stop_ids: frozenset[int]

    def mask(self, example: Mapping[str, Any]) -> MaskedTokens:
        """`example` has `messages` in the form that templates take, and perhaps `tools`. Raises EncodingError."""
        return _or_raise(self.mask_all([example])[0])

    def mask_all(self, examples: Sequence[Mapping[str, Any]]) -> list[MaskedTokens | EncodingError]:
        """The same of many, which the tokenizer reads at once; what keeps one from being masked is in its place."""
        texts = [_or_error(self._render_whole, each["messages"], each.get("tools")) for each in examples]
        rendered = [text for text in texts if isinstance(text, str)]
        tokens = _with_offsets(self.tokenizer, rendered)
        return [
            text if isinstance(text, EncodingError) else _or_error(self._masked, each, text, *next(tokens))
            for each, text in zip(examples, texts, strict=True)
        ]

    def _masked(
        self, example: Mapping[str, Any], full: str, ids: list[int], offsets: Sequence[tuple[int, int]]
    ) -> MaskedTokens:
        messages, tools = example["messages"], example.get("tools")
        labels = [IGNORED] * len(ids)
        for index in trainable(messages):
            span = self._span(full, messages, tools, index)
            answer = self._answer_positions(ids, offsets, span, index)
            labels[answer] = ids[answer]
        return MaskedTokens(ids, labels)

    def _render_whole(self, messages: Sequence[Any], tools: Any) -> str:
        try:
            return self._render(messages, tools, prompt=False)
        except Exception as error:
            raise EncodingError("template", f"the model's chat template refuses this conversation: {error}") from error

    def _render(self, messages: Sequence[Any], tools: Any, *, prompt: bool) -> str:
        return render(self.tokenizer, messages, tools=tools, prompt=prompt)

    def _span(self, full: str, messages: Sequence[Any], tools: Any, index: int) -> tuple[int, int]:
        """First character of answer `index`, and the character before which its last token must begin."""
        start = self._prefix_length(full, messages[:index], tools, prompt=True)
        if start is None:
            start = self._marked_position(full, messages, tools, index)
        if index + 1 == len(messages):
            return start, len(full)
        end = self._prefix_length(full, messages[: index + 1], tools, prompt=False)
        if end is None or end <= start:
            end = self._marked_position(full, messages, tools, index + 1)
        return start, end

    def _prefix_length(self, full: str, messages: Sequence[Any], tools: Any, *, prompt: bool) -> int | None:
        """Characters of the rendering of the first messages, or None when the whole does not begin with it."""
        try:
            text = self._render(messages, tools, prompt=prompt)
        except Exception:  # templates raise what they like, for example on a conversation without a user
            return None
        return len(text) if text and full.startswith(text) else None

    def _marked_position(self, full: str, messages: Sequence[Any], tools: Any, index: int) -> int:
        """Character at which the content of message `index` begins in the whole rendering."""
        begins = []
        for marker in MARKERS:
            marked = [*messages[:index], {**messages[index], "content": marker}, *messages[index + 1 :]]
            try:
                text = self._render(marked, tools, prompt=False)
            except Exception as error:
                raise EncodingError("template", f"the model's chat template refuses it: {error}") from error
            if marker not in text:
                raise EncodingError(
                    "not_rendered",
                    "the model's chat template leaves this message out; split the conversation or use another model",
                    f"messages[{index}]",
                )
            begins.append(_agreement(full, text))
        return min(begins)

    def _answer_positions(
        self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], span: tuple[int, int], index: int
    ) -> slice:
        """Positions of the answer's tokens, up to and with its end-of-turn token.

        A token that lies across the border counts as the answer's when any of its characters do. Offsets ascend.
        """
        first = bisect(offsets, span[0], key=lambda token: max(token[1], token[0] + 1))
        after = bisect_left(offsets, span[1], lo=first, key=lambda token: token[0])
        stop = next((n for n in range(after - 1, first - 1, -1) if ids[n] in self.stop_ids), None)
        if stop is None:
            raise EncodingError(
                "end_of_turn",
                "the model's chat template does not end an answer with a stop token of the model, so it would never "
                "learn to stop; use the model's instruct variant, or put the template's end-of-turn token into "
                "eos_token_id of its generation_config.json",
                f"messages[{index}]",
            )
        return slice(first, stop + 1)


def trainable(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the messages that are trained on: the assistant's, unless their weight is 0."""
    return [n for n, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight") != 0]


def mask_completion(tokenizer: Any, prompt: str, completion: str) -> MaskedTokens:
    """Tokens of prompt and completion; trained on are the completion and the end-of-sequence token after it.

    The prompt is tokenised as a server tokenises it, with what the tokenizer puts before every text.
    Raises EncodingError when the tokenizer has no end-of-sequence token.
    """
    return _or_raise(mask_completions(tokenizer, [(prompt, completion)])[0])


def mask_completions(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[MaskedTokens | EncodingError]:
    """The same of many (prompt, completion), which the tokenizer reads at once."""
    end = tokenizer.eos_token_id
    if end is None:
        text = "the model's tokenizer has no end-of-sequence token, so nothing would stop it"
        return [EncodingError("end_of_turn", text) for _ in pairs]
    begin = begin_ids(tokenizer)
    prompts = _ids(tokenizer, [prompt for prompt, _ in pairs])
    joint = _ids(tokenizer, [prompt + completion for prompt, completion in pairs])
    # Where a token lies across the border the server will tokenise the prompt alone, and so do we.
    apart = [n for n, whole in enumerate(joint) if whole[: len(prompts[n])] != prompts[n]]
    answers = dict(zip(apart, _going_on(tokenizer, [pairs[n][1] for n in apart]), strict=True))
    masked: list[MaskedTokens | EncodingError] = []
    for n, whole in enumerate(joint):
        read, answer = [*begin, *prompts[n]], answers[n] if n in answers else whole[len(prompts[n]) :]
        masked.append(MaskedTokens([*read, *answer, end], [*[IGNORED] * len(read), *answer, end]))
    return masked


def _going_on(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that go on in a word. SentencePiece's kin put a blank before whatever they are given, which is
    not in the data; behind a line end, which joins with nothing, they put none."""
    edge, *behind = _ids(tokenizer, ["\n", *(f"\n{text}" for text in texts)])
    found = zip(behind, _ids(tokenizer, texts), strict=True)
    return [whole[len(edge) :] if whole[: len(edge)] == edge else alone for whole, alone in found]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return list(_tokens(tokenizer, texts)["input_ids"]) if texts else []


def _with_offsets(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], Sequence[tuple[int, int]]]]:
    """(ids, offsets in characters) of each text, one after the other."""
    if texts:
        found = _tokens(tokenizer, texts, return_offsets_mapping=True)
        yield from zip(found["input_ids"], found["offset_mapping"], strict=True)


def _tokens(tokenizer: Any, texts: Sequence[str], **more: Any) -> Any:
    # verbose=False: that an example is longer than the context is reported by us, with its line
    plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(list(texts), **plain, **more)


def _or_error(make: Callable[..., T], *arguments: Any) -> T | EncodingError:
    try:
        return make(*arguments)
    except EncodingError as error:
        return error


def _or_raise(found: MaskedTokens | EncodingError) -> MaskedTokens:
    if isinstance(found, EncodingError):
        raise found
    return found


def _agreement(one: str, other: str) -> int:
    """Number of characters in which two texts agree from their beginning."""
    for position, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return position
    return min(len(one), len(other))
