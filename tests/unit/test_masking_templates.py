"""Exactly the assistant's words are trained on, whatever the chat template does to the conversation."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny_models import make_tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.problems import EncodingError
from finetune_trainer.masking import IGNORED, ChatMasker, mask_completion

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
INST = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- raise_exception('this model has no system role') -}}{%- endif -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate user/assistant') -}}{%- endif -%}
{%- if message.role == 'user' -%}{{- '[INST] ' ~ message.content ~ ' [/INST]' -}}
{%- else -%}{{- ' ' ~ message.content ~ eos_token -}}{%- endif -%}
{%- endfor -%}
"""
GENERATION = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>' -}}{%- generation -%}{{- message.content ~ '<|end|>' -}}{%- endgeneration -%}
{%- else -%}{{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
# Like Qwen3: earlier answers lose their thinking, the last one gets an empty thought, tools are rendered as JSON.
THINKING = """\
{%- if tools -%}{{- '<|im_start|>system\nTools: ' ~ tools | tojson ~ '<|im_end|>\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content -%}
{%- if message.role == 'assistant' -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.last -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{{- content -}}
{%- for call in message.tool_calls or [] -%}
{%- if content or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- '<tool_call>' ~ call.function | tojson ~ '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- else -%}{{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def tokenizer_for(template: str, *specials: str, bos: str | None = None) -> Any:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials), "eos_token": specials[0]})
    if bos:
        tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    "chatml": lambda: tokenizer_for(CHATML, "<|im_end|>", "<|im_start|>"),
    "llama3": lambda: tokenizer_for(
        LLAMA3, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", bos="<|begin_of_text|>"
    ),
    "inst": lambda: tokenizer_for(INST, "</s>", bos="<s>"),
    "generation": lambda: tokenizer_for(GENERATION, "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    "thinking": lambda: tokenizer_for(THINKING, "<|im_end|>", "<|im_start|>"),
}


def trained_texts(name: str, example: dict[str, Any]) -> list[str]:
    """The runs of trained-on tokens, decoded."""
    tokenizer = TOKENIZERS[name]()
    tokens = ChatMasker(tokenizer, frozenset([tokenizer.eos_token_id])).mask(example)
    runs: list[list[int]] = []
    previous = IGNORED
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            if previous == IGNORED:
                runs.append([])
            runs[-1].append(label)
        previous = label
    return [tokenizer.decode(run) for run in runs]


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TWO_TURNS = [say("user", "Hi"), say("assistant", "Hello!"), say("user", "And Porto?"), say("assistant", "It is near.")]
CASES = [
    ("chatml", TWO_TURNS, ["Hello!<|im_end|>", "It is near.<|im_end|>"]),
    ("chatml", [say("system", "Be kind."), *TWO_TURNS[:2]], ["Hello!<|im_end|>"]),
    ("chatml", [say("assistant", "I begin."), *TWO_TURNS[:2]], ["I begin.<|im_end|>", "Hello!<|im_end|>"]),
    ("chatml", [*TWO_TURNS[:2], say("user", "Bye")], ["Hello!<|im_end|>"]),
    # a newline that merges with the template's own, beginning and end alike
    ("chatml", [say("user", "Hi\n"), say("assistant", "\n\nHello!\n")], ["\n\nHello!\n<|im_end|>"]),
    ("chatml", [say("user", "Hi"), say("assistant", "")], ["<|im_end|>"]),
    ("chatml", [say("user", "Hello!"), say("assistant", "Hello!")], ["Hello!<|im_end|>"]),
    ("chatml", [say("user", "東京 🚢"), say("assistant", "🚢🌊 東京")], ["🚢🌊 東京<|im_end|>"]),
    ("llama3", TWO_TURNS, ["Hello!<|eot_id|>", "It is near.<|eot_id|>"]),
    ("llama3", [say("user", " Hi "), say("assistant", "  Hello!  ")], ["Hello!<|eot_id|>"]),
    ("inst", TWO_TURNS, [" Hello!</s>", " It is near.</s>"]),
    ("generation", TWO_TURNS, ["Hello!<|end|>", "It is near.<|end|>"]),
    ("thinking", TWO_TURNS, ["Hello!<|im_end|>", "<think>\n\n</think>\n\nIt is near.<|im_end|>"]),
    (
        "thinking",
        [say("user", "Hi"), say("assistant", "<think>\nhm\n</think>\n\nHello!"), *TWO_TURNS[2:]],
        ["Hello!<|im_end|>", "<think>\n\n</think>\n\nIt is near.<|im_end|>"],
    ),
    ("thinking", [*TWO_TURNS[:2], say("user", "Bye")], ["Hello!<|im_end|>"]),
]


@pytest.mark.parametrize(("name", "messages", "expected"), CASES)
def test_trained_text_is_the_assistants_alone(name: str, messages: list[Any], expected: list[str]) -> None:
    assert trained_texts(name, {"messages": messages}) == expected


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_weight_zero_is_not_trained_on(name: str) -> None:
    silent = [TWO_TURNS[0], {**TWO_TURNS[1], "weight": 0}, *TWO_TURNS[2:]]
    everything = trained_texts(name, {"messages": TWO_TURNS})
    assert trained_texts(name, {"messages": silent}) == everything[1:]


def test_tool_calls_are_trained_on_and_their_results_are_not() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Porto"}}}
    messages = [
        say("user", "Rain?"),
        say("assistant", "", tool_calls=[call]),
        say("tool", "sunny", tool_call_id="1"),
        say("assistant", "No rain."),
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert trained_texts("thinking", {"messages": messages, "tools": tools}) == [
        '<tool_call>{"name": "weather", "arguments": {"city": "Porto"}}</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nNo rain.<|im_end|>",
    ]


def test_beginning_of_sequence_stands_once() -> None:
    for name in ("llama3", "inst"):
        tokenizer = TOKENIZERS[name]()
        ids = ChatMasker(tokenizer, frozenset([tokenizer.eos_token_id])).mask({"messages": TWO_TURNS}).input_ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


NO_END = CHATML.replace("~ '<|im_end|>\n'", "~ '\n'")
END_LATER = """\
{%- for message in messages -%}
{%- if not loop.first -%}{{- '<|im_end|>' -}}{%- endif -%}{{- '<|im_start|>' ~ message.role ~ message.content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_end|><|im_start|>assistant' -}}{%- endif -%}
"""
LAST_TWO = CHATML.replace("in messages", "in messages[-2:]")


@pytest.mark.parametrize(
    ("template", "messages", "check", "where"),
    [
        (NO_END, TWO_TURNS, "end_of_turn", "messages[1]"),
        (END_LATER, TWO_TURNS[:2], "end_of_turn", "messages[1]"),
        (LAST_TWO, TWO_TURNS, "not_rendered", "messages[1]"),
        (INST, [say("system", "x"), *TWO_TURNS], "template", ""),
        (INST, [*TWO_TURNS, say("assistant", "again")], "template", ""),
    ],
)
def test_what_cannot_be_masked_is_refused(template: str, messages: list[Any], check: str, where: str) -> None:
    tokenizer = tokenizer_for(template, "<|im_end|>", "<|im_start|>", bos="<s>")
    with pytest.raises(EncodingError) as caught:
        ChatMasker(tokenizer, frozenset([tokenizer.eos_token_id])).mask({"messages": messages})
    assert (caught.value.check, caught.value.where) == (check, where)


ENDLESS_CHATML = CHATML.replace("~ '<|im_end|>\n'", "~ ('' if message.role == 'assistant' else '<|im_end|>')")
ENDLESS_HISTORY = THINKING.replace(
    "{{- '<|im_end|>\n' -}}\n{%- else", "{%- if loop.last -%}{{- '<|im_end|>' -}}{%- endif -%}\n{%- else"
)


@pytest.mark.parametrize("template", [ENDLESS_CHATML, ENDLESS_HISTORY])
def test_stop_token_of_another_turn_does_not_count(template: str) -> None:
    """The user's end-of-turn token after an answer without one must not make the answer look ended."""
    assert template not in (CHATML, THINKING)
    tokenizer = tokenizer_for(template, "<|im_end|>", "<|im_start|>")
    with pytest.raises(EncodingError, match="never learn to stop"):
        ChatMasker(tokenizer, frozenset([tokenizer.eos_token_id])).mask({"messages": TWO_TURNS})


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Lisbon is", " by the sea."), ("", "Alone."), ("The harb", "our is quiet"), ("a ", " b")],
)
def test_completion_and_its_end_are_trained_on_and_the_prompt_is_not(prompt: str, completion: str) -> None:
    tokenizer = make_tiny_tokenizer()
    tokens = mask_completion(tokenizer, prompt, completion)
    prompt_ids = tokenizer(prompt)["input_ids"]
    trained = [label for label in tokens.labels if label != IGNORED]
    assert tokens.input_ids[: len(prompt_ids)] == prompt_ids
    assert tokens.labels[: len(prompt_ids)] == [IGNORED] * len(prompt_ids)
    assert tokenizer.decode(trained) == f"{completion}<|end|>"
    assert trained[-1] == tokenizer.eos_token_id


def test_completion_without_an_end_token_is_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(EncodingError, match="end-of-sequence"):
        mask_completion(tokenizer, "a", "b")


@pytest.mark.parametrize(
    ("prompt", "completion"), [("The harb", "our is quiet."), ("The harb", "\nour"), ("The", " harbour")]
)
def test_a_completion_that_goes_on_in_a_word_gets_no_blank(prompt: str, completion: str) -> None:
    """SentencePiece puts one before every text, which a server never does in the middle of one."""
    words = Tokenizer(models.BPE(byte_fallback=False))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words.decoder = decoders.Metaspace(prepend_scheme="first")
    words.train_from_iterator(
        ["The harbour is quiet. \n our harb"] * 9,
        trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>"], show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokens = mask_completion(tokenizer, prompt, completion)
    assert tokenizer.decode(tokens.input_ids[:-1]) == prompt + completion
    assert tokens.labels[: len(tokenizer(prompt)["input_ids"])] == [IGNORED] * len(tokenizer(prompt)["input_ids"])
