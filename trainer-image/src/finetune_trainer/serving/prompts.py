"""From messages to token ids, by the model's own chat template.

Special tokens in what a user wrote are text, not control: a message that contains `<|end|>` must not end its turn.
A tokenizer cannot tell who wrote a token, so each such string is cut in two before the template is rendered, by a
mark that occurs nowhere else; the rendered text is then split at the marks and its pieces are tokenised apart, in
which no special token can form again. A message without special tokens, that is nearly every one, is rendered and
tokenised in one piece, exactly as in training.

A prompt of /v1/completions is the whole input of the model, written by one author, and there are no roles to
protect: special tokens count there, as in vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError

from finetune_trainer.messages import render
from finetune_trainer.serving.errors import InvalidRequest


def special_tokens(tokenizer: Any) -> list[str]:
    """Return the texts that the tokenizer reads as control tokens, longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = {text for text in [*added, *tokenizer.all_special_tokens] if len(text) > 1}
    return sorted(texts, key=lambda text: (-len(text), text))


def free_mark(texts: Sequence[str]) -> str:
    """Return a short string of private characters that none of the texts contains."""
    mark = "\ue0ff"
    while any(mark in text for text in texts):
        mark += "\ue0fe\ue0ff"
    return mark


def cut_special(text: str, special: Sequence[str], mark: str) -> str:
    """Put the mark into every special token in the text, also into those that overlap."""
    present = [token for token in special if token in text]
    if not present:
        return text
    starts = re.compile(f"(?=({'|'.join(map(re.escape, present))}))")
    cuts = [match.start() + 1 for match in starts.finditer(text)]
    edges = [0, *cuts, len(text)]
    return mark.join(text[start:end] for start, end in pairwise(edges))


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> list[int]:
    """Return the ids of a conversation, up to where the assistant speaks.

    Raises InvalidRequest when the model has no chat template, or its template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "This model has no chat template: use /v1/completions, or serve a model that was trained on chats.",
            param="messages",
        )
    special = special_tokens(tokenizer)
    mark = free_mark([json.dumps([messages, tools], ensure_ascii=False)])
    safe = [{**_cut(message, special, mark), "role": message["role"]} for message in messages]
    try:
        text = render(tokenizer, safe, tools=_cut(tools, special, mark), prompt=True)
    except TemplateError as error:
        raise InvalidRequest(f"The model's chat template refuses the messages: {error}", param="messages") from error
    pieces = [piece for piece in text.split(mark) if piece]
    return [one for ids in tokenizer(pieces, add_special_tokens=False)["input_ids"] for one in ids] if pieces else []


def _cut(value: Any, special: Sequence[str], mark: str) -> Any:
    """Cut the special tokens in every text of a JSON value, also in keys: their authors may fill them freely."""
    if isinstance(value, str):
        return cut_special(value, special, mark)
    if isinstance(value, Mapping):
        return {cut_special(key, special, mark): _cut(inner, special, mark) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_cut(inner, special, mark) for inner in value]
    return value
