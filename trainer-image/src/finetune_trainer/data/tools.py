"""Checks of tools, of their calls and of the calls' results. Prepare and the server ask the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_trainer.data.problems import Fault, json_type
from finetune_trainer.data.schemas import SchemaUnusableError, broken_rule, require_schema
from finetune_trainer.messages import TemplateAbilities, arguments_object


def check_tools(tools: Any) -> Iterator[Fault]:
    """What is wrong with the definitions. Without an error among it, each has a name of its own."""
    if tools is None or tools == []:
        return
    if not isinstance(tools, list):
        yield Fault("tools", f"`tools` must be a list, not {json_type(tools)}", "tools")
        return
    names: set[str] = set()
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            text = "a tool must be {'type': 'function', 'function': {'name': ..., 'parameters': {...}}}"
            yield Fault("tools", text, place)
            continue
        if function["name"] in names:
            yield Fault("tools", "two tools have the same name; remove or rename one", f"{place}.function.name")
        names.add(function["name"])
        yield from _parameters(function, f"{place}.function")


def _parameters(function: Mapping[str, Any], where: str) -> Iterator[Fault]:
    parameters = function.get("parameters", {})
    if not isinstance(parameters, dict):
        yield Fault("tools", "the `parameters` of a tool must be a JSON schema object", where)
        return
    try:
        require_schema(parameters)
    except SchemaUnusableError:
        text = (
            "the `parameters` of a tool are no valid JSON schema (is a `type` misspelt?), so calls of it cannot be "
            "checked; correct them"
        )
        yield Fault("tool_schema", text, f"{where}.parameters", severity="warning")


def check_calls(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], abilities: TemplateAbilities
) -> Iterator[Fault]:
    """Every call is well formed and has a result, and every result answers an earlier call."""
    faults = [*_each_call(messages, tools)]
    yield from faults
    if not any(fault.severity == "error" for fault in faults):
        yield from _results(messages)
    uses = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    if uses and not abilities.tool_calls:
        text = "the model's chat template does not render tool calls; use a model that was made for tools"
        yield Fault("template_tools", text)
    elif uses and not tools:
        text = "tools are called but `tools` does not define them; the model sees them defined when it is used"
        yield Fault("tools_missing", text, severity="warning")


def _each_call(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    known_ids: set[str] = set()
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            yield from _call_list(message["tool_calls"], f"messages[{index}].tool_calls", schemas, known_ids)
        if message["role"] == "tool":
            place = f"messages[{index}].tool_call_id"
            if not isinstance(message.get("tool_call_id"), str):
                text = "a tool message needs the `tool_call_id` of the call that it answers"
                yield Fault("tool_call_id", text, place)
            elif message["tool_call_id"] not in known_ids:
                yield Fault("tool_call_id", "the `tool_call_id` is that of no earlier call", place)


def _results(messages: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """A call that ends the conversation needs no result: it is what the model is to learn."""
    for index, message in enumerate(messages[:-1]):
        waiting = {call["id"] for call in message.get("tool_calls") or ()}
        for later in messages[index + 1 :]:
            if later["role"] != "tool":
                break
            waiting.discard(later["tool_call_id"])
        if waiting:
            text = (
                "a tool call has no result; put a message of role `tool` with its `tool_call_id` right after it, or "
                "end the conversation with the call"
            )
            yield Fault("call_without_result", text, f"messages[{index}].tool_calls")


def _call_list(
    calls: Any, where: str, schemas: Mapping[str, Mapping[str, Any]], known_ids: set[str]
) -> Iterator[Fault]:
    if not isinstance(calls, list):
        yield Fault("tool_calls", f"`tool_calls` must be a list, not {json_type(calls)}", where)
        return
    for index, call in enumerate(calls):
        place = f"{where}[{index}]"
        function = call.get("function") if isinstance(call, dict) and call.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            text = "a tool call must be {'id': ..., 'type': 'function', 'function': {'name': ..., 'arguments': '...'}}"
            yield Fault("tool_calls", text, place)
            continue
        if not isinstance(call.get("id"), str) or not call["id"]:
            yield Fault("tool_calls", "a tool call needs an `id`", f"{place}.id")
        elif call["id"] in known_ids:
            yield Fault("tool_calls", "the `id` of a tool call is used twice in the conversation", f"{place}.id")
        else:
            known_ids.add(call["id"])
        if schemas and function["name"] not in schemas:
            text = "a call names a function that `tools` does not define"
            yield Fault("unknown_tool", text, f"{place}.function.name")
        yield from _arguments(function, schemas, f"{place}.function.arguments")


def _arguments(function: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]], where: str) -> Iterator[Fault]:
    arguments = arguments_object(function.get("arguments"))
    if arguments is None:
        text = '`arguments` must be a text that holds a JSON object, for example \'{"city": "Lisbon"}\''
        yield Fault("tool_arguments", text, where)
        return
    try:
        rule = broken_rule(schemas.get(function["name"], {}), arguments)
    except SchemaUnusableError:  # said of the tool
        return
    if rule:
        text = (
            f"the arguments of a call do not fit the tool's `parameters` (rule: {rule}): the model would learn calls "
            "that the tool refuses; correct the arguments or the schema"
        )
        yield Fault("arguments_schema", text, where, severity="warning")
