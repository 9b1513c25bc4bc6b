"""Tool calls in a model's text: the server and the evaluation find them here, so that both see the same.

Which form a model's template writes is found by trying: the template writes a call, and the form that reads the same
call back is the template's. So nothing depends on the names of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from finetune_trainer.messages import render
from finetune_trainer.tool_forms import FORMS, Call, Form, Tools, Written, by_response_template

PROBED = Call("probe", {"text": 'a "b"', "count": 2})
PROBE_TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": PROBED.name,
            "description": "Probe.",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["text", "count"],
            },
        },
    }
]
PROBE_ID = "probe0001"  # of nine letters and digits, as some templates demand


def call_form(tokenizer: Any) -> Form | None:
    """The form in which the tokenizer's chat template writes calls; None when it writes none, or none that is known."""
    return _call_form(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _call_form(tokenizer: Any, template: str) -> Form | None:
    asked = {"role": "user", "content": "Probe."}
    function = {"name": PROBED.name, "arguments": dict(PROBED.arguments)}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": PROBE_ID, "type": "function", "function": function}],
    }
    try:
        prompt = render(tokenizer, [asked], tools=PROBE_TOOLS, prompt=True)
        whole = render(tokenizer, [asked, called], tools=PROBE_TOOLS, prompt=False)
    except Exception:  # templates raise what they like
        return None
    text = whole[len(_common_start(prompt, whole)) :]
    end = tokenizer.eos_token or ""
    text = text.partition(end)[0] if end else text
    own = getattr(tokenizer, "response_template", None)
    for form in (by_response_template(own or {}), *FORMS, by_response_template(_known_to_trl(template))):
        if form and read_calls(form, text, PROBE_TOOLS, end=end) == [PROBED]:
            return form
    return None


def _known_to_trl(template: str) -> Mapping[str, Any]:
    """The `response_template` that TRL has for this very template (Gemma 4, GLM, LFM2, gpt-oss); empty when none."""
    from trl.chat_template_utils import add_response_schema  # only for the few that need it

    try:
        found: Mapping[str, Any] = add_response_schema(SimpleNamespace(chat_template=template)).response_template
    except ValueError:
        return {}
    return found


def _common_start(one: str, other: str) -> str:
    length = next((n for n, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), len(one))
    return one[:length]


def hidden_tokens(tokenizer: Any, form: Form) -> frozenset[int]:
    """Ids of the special tokens that no text shows; the others mark calls."""
    special = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return frozenset(one for one, text in special.items() if not any(text in mark for mark in form.marks))


def decode(tokenizer: Any, ids: Sequence[int], hidden: frozenset[int]) -> str:
    """The text of an answer, with the marks of calls."""
    shown = [one for one in ids if one not in hidden]
    return str(tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def read_calls(form: Form, text: str, tools: Tools, *, ended: bool = True, end: str = "") -> list[Call]:
    """The calls in a whole answer."""
    reader = CallReader(form, tools, end)
    reader.push(text)
    return reader.finish(ended=ended)[1]


@dataclass(slots=True)
class CallReader:
    """Takes the calls out of an answer as it is written: what comes before them may be shown at once."""

    form: Form
    tools: Sequence[Mapping[str, Any]]
    end: str = ""  # the model's end-of-turn token
    _text: str = ""
    _shown: int = 0

    def push(self, text: str) -> str:
        """Return what may be shown now: nothing that may yet become a call, nor the space before one."""
        self._text += text
        opening = self.form.opens.search(self._text, self._shown, partial=True)
        return self._show(opening.start() if opening else len(self._text))

    def finish(self, *, ended: bool) -> tuple[str, list[Call]]:
        """Return the rest of the text, and the calls. What is no whole call is text. `ended`: by the model itself,
        and not by a limit."""
        opening = self.form.opens.search(self._text, self._shown)
        if opening is None:
            return self._text[self._shown :], []
        written = Written(self._text[opening.start() :], self.tools, ended, self.end)
        try:
            calls, after = self.form.read(written)
        except (ValueError, RecursionError):
            calls, after = [], ""
        if not calls:
            return self._text[self._shown :], []
        return self._show(opening.start()) + after.rstrip(), calls

    def _show(self, until: int) -> str:
        shown = self._text[self._shown : until].rstrip()
        self._shown += len(shown)
        return shown
