"""Lines of preference data, in OpenAI's form and in TRL's, and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.chat import check_chat, normalise_chat
from finetune_trainer.data.problems import Fault, json_type, plain_word
from finetune_trainer.messages import TemplateAbilities

INPUT_KEYS = {"messages", "tools", "parallel_tool_calls"}
FORMS = (
    '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]} or '
    '{"prompt": ..., "chosen": ..., "rejected": ...}'
)
MESSAGE_PLACE = re.compile(r"messages\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Names:
    """What a form calls its parts, for people who have to find them."""

    prompt: str
    chosen: str
    rejected: str
    tools: str


OPENAI = Names("input.messages", "preferred_output", "non_preferred_output", "input.tools")
TRL = Names("prompt", "chosen", "rejected", "tools")


@dataclass(frozen=True, slots=True)
class Pair:
    """A line of either form: messages as OpenAI writes them, `more` beside them (tools), and unchecked still."""

    names: Names
    prompt: list[Any]
    chosen: Any
    rejected: Any
    more: Mapping[str, Any]

    def conversation(self, answer: Any) -> dict[str, Any]:
        return {"messages": [_unweighted(message) for message in [*self.prompt, answer]], **self.more}


def check_preference(line: Mapping[str, Any], abilities: TemplateAbilities) -> list[Fault]:
    """Everything wrong with the line. Without an error among it, `normalise_preference` takes it."""
    if _names(line) is None:
        return [_no_pair(line)]
    faults = [*_unknown_keys(line)]
    pair = read_pair(line, faults)
    if pair is None or any(fault.severity == "error" for fault in faults):
        return faults
    faults.extend(_conversations(pair, abilities))
    if not any(fault.severity == "error" for fault in faults):
        faults.extend(_prompt_end(pair))
        normal = _normal(pair, abilities)
        if normal["chosen"] == normal["rejected"]:
            text = f"`{pair.names.chosen}` and `{pair.names.rejected}` are equal, so there is nothing to prefer"
            faults.append(Fault("equal_outputs", f"{text}; remove the line", pair.names.rejected))
    return faults


def normalise_preference(line: Mapping[str, Any], abilities: TemplateAbilities) -> dict[str, Any]:
    """{"messages": what was said before, "tools" when given, "chosen": message, "rejected": message}, as chat
    templates take them."""
    pair = read_pair(line, [])
    assert pair is not None, "a checked line can be read"
    return _normal(pair, abilities)


def read_pair(line: Mapping[str, Any], faults: list[Fault]) -> Pair | None:
    """The parts of a line; what keeps it from having them goes into `faults`."""
    names = _names(line)
    if names is OPENAI:
        given = line.get("input")
        if not isinstance(given, Mapping):
            found = json_type(given) if "input" in line else "missing"
            text = f"`input` must be an object with `messages`, and is {found}"
            faults.append(Fault("input", text, "input"))
            return None
        more = {key: given[key] for key in ("tools", "parallel_tool_calls") if key in given}
        chosen, rejected = (_output(line, name, faults) for name in (OPENAI.chosen, OPENAI.rejected))
        return Pair(OPENAI, _prompt(given.get("messages"), OPENAI.prompt, faults), chosen, rejected, more)
    more = {"tools": line["tools"]} if "tools" in line else {}
    shared = _shared(line, faults)
    if shared is not None:
        return Pair(TRL, shared, line["chosen"][-1], line["rejected"][-1], more)
    chosen, rejected = (_output(line, name, faults) for name in (TRL.chosen, TRL.rejected))
    return Pair(TRL, _prompt(line.get("prompt"), TRL.prompt, faults), chosen, rejected, more)


def _names(line: Mapping[str, Any]) -> Names | None:
    if any(key in line for key in ("input", "preferred_output", "non_preferred_output")):
        return OPENAI
    return TRL if any(key in line for key in ("chosen", "rejected")) else None


def _no_pair(line: Mapping[str, Any]) -> Fault:
    if "messages" in line:
        return Fault("wrong_task", "the line has messages and no two answers to choose between; set spec.task to Chat")
    if "prompt" in line and "completion" in line:
        return Fault("wrong_task", "the line has prompt and completion; set spec.task to Completion")
    return Fault("missing_outputs", f"the line has no better and worse answer; write {FORMS}")


def _unknown_keys(line: Mapping[str, Any]) -> Iterator[Fault]:
    names = _names(line)
    known = {"input", OPENAI.chosen, OPENAI.rejected} if names is OPENAI else {"prompt", "chosen", "rejected", "tools"}
    inner = line.get("input")
    found = [key for key in line if key not in known]
    if names is OPENAI and isinstance(inner, Mapping):
        found += [key for key in inner if key not in INPUT_KEYS]
    for key in found:
        yield Fault("unknown_key", f"the key {plain_word(key)} is not used; it is ignored", severity="warning")


def _prompt(value: Any, place: str, faults: list[Fault]) -> list[Any]:
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and value:
        return value
    problem = "is missing" if value is None else "is empty" if value in ("", []) or isinstance(value, str) else ""
    problem = problem or f"is {json_type(value)}"
    what = "a list of messages" if place == OPENAI.prompt else "a text or a list of messages"
    faults.append(Fault("prompt", f"`{place}` {problem}; it must be {what}: what the model is asked", place))
    return []


def _output(line: Mapping[str, Any], name: str, faults: list[Fault]) -> Any:
    """The answer under this name, as a message."""
    value = line.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if name not in line:
        faults.append(Fault(f"missing_{name}", f"the line has no `{name}`; write {FORMS}"))
    elif isinstance(value, list):
        text = f"`{name}` has {len(value)} messages and must be exactly one of the assistant"
        faults.append(Fault("several_outputs", f"{text}; put what comes before the answer into the input", name))
    elif isinstance(value, str):
        return _answer({"role": "assistant", "content": value}, name, faults)
    elif isinstance(value, Mapping):
        return _answer(value, name, faults)
    else:
        text = f"`{name}` must be one assistant message (or its text), not {json_type(value)}"
        faults.append(Fault("output_type", text, name))
    return None


def _answer(message: Mapping[str, Any], name: str, faults: list[Fault]) -> Mapping[str, Any]:
    if message.get("role") != "assistant":
        text = f"the message in `{name}` must have the role assistant, not {plain_word(message.get('role'))}"
        faults.append(Fault("output_role", text, f"{name}[0].role"))
    elif _is_empty(message):
        text = f"`{name}` is empty; both answers need a text, or remove the line"
        faults.append(Fault("empty_output", text, f"{name}[0].content"))
    return message


def _is_empty(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if message.get("tool_calls"):
        return False
    if isinstance(content, list):
        return not any(isinstance(part, Mapping) and str(part.get("text") or "").strip() for part in content)
    return content is None or (isinstance(content, str) and not content.strip())


def _shared(line: Mapping[str, Any], faults: list[Fault]) -> list[Any] | None:
    """What both answers follow, where a line writes it twice: both are whole conversations that differ in their last
    message. None when they are not."""
    chosen, rejected, prompt = line.get("chosen"), line.get("rejected"), line.get("prompt")
    if not (isinstance(chosen, list) and isinstance(rejected, list) and min(len(chosen), len(rejected)) > 1):
        return None
    before: list[Any] = chosen[:-1]
    if before != rejected[:-1]:
        text = "`chosen` and `rejected` are conversations that differ before their last message"
        remedy = "write what both answer into `prompt`, and one assistant message into each"
        faults.append(Fault("different_prompts", f"{text}; {remedy}", "rejected"))
    asked = before[-1].get("content") if isinstance(before[-1], Mapping) else None
    if prompt is not None and prompt not in (asked, before):
        text = "`prompt` is not what `chosen` and `rejected` begin with"
        faults.append(Fault("different_prompts", f"{text}; leave one of them out", "prompt"))
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(messages[-1], Mapping):
            _answer(messages[-1], name, faults)
    return before


def _conversations(pair: Pair, abilities: TemplateAbilities) -> list[Fault]:
    """The faults of both conversations under the line's own names; those of the prompt once."""
    faults = []
    for answer, name in ((pair.chosen, pair.names.chosen), (pair.rejected, pair.names.rejected)):
        for fault in check_chat(pair.conversation(answer), abilities):
            if fault.check == "empty_answer":  # of earlier turns, which are only read: both answers were looked at
                continue
            faults.append(Fault(fault.check, fault.message, _place(fault.where, pair, name), fault.severity))
    messages = [*pair.prompt, pair.chosen, pair.rejected]
    if any(isinstance(each, Mapping) and each.get("weight") is not None for each in messages):
        text = "`weight` is of the task Chat: of a pair both answers count, and nothing else; it is ignored"
        faults.append(Fault("weight", text, pair.names.prompt, severity="warning"))
    return list(dict.fromkeys(faults))


def _place(where: str, pair: Pair, answer: str) -> str:
    """`messages[3].content` of a conversation as the line calls it."""
    found = MESSAGE_PLACE.match(where)
    if found is None:
        return f"{pair.names.tools}{where.removeprefix('tools')}" if where.startswith("tools") else where
    index, rest = int(found[1]), where[found.end() :]
    return f"{answer}[0]{rest}" if index == len(pair.prompt) else f"{pair.names.prompt}[{index}]{rest}"


def _prompt_end(pair: Pair) -> Iterator[Fault]:
    if pair.prompt[-1]["role"] not in ("user", "tool"):
        text = "what both answers follow must end with a message of the user (or of a tool)"
        place = f"{pair.names.prompt}[{len(pair.prompt) - 1}]"
        yield Fault("prompt_end", f"{text}, not {plain_word(pair.prompt[-1]['role'])}", place)


def _normal(pair: Pair, abilities: TemplateAbilities) -> dict[str, Any]:
    conversations = [
        normalise_chat(pair.conversation(answer), abilities)["messages"] for answer in (pair.chosen, pair.rejected)
    ]
    tools = pair.more.get("tools")
    normal = {"messages": conversations[0][:-1], "chosen": conversations[0][-1], "rejected": conversations[1][-1]}
    return {**normal, "tools": tools} if tools else normal


def _unweighted(message: Any) -> Any:
    """`weight` says what a Chat learns; a pair is learned of its two answers."""
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if key != "weight"}


def conversation(normal: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """A normalised example with its `chosen` or `rejected` answer as a Chat, of which the answer alone is learned."""
    before: Sequence[Mapping[str, Any]] = normal["messages"]
    messages = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in before]
    chat = {"messages": [*messages, normal[answer]]}
    return {**chat, "tools": normal["tools"]} if normal.get("tools") else chat
