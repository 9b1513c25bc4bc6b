"""The requests of OpenAI's API that are understood here, and the shapes of the answers.

What changes an answer and is not supported is refused by name; what only describes a request is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from finetune_trainer.data.tools import check_calls, check_tools
from finetune_trainer.messages import TemplateAbilities, arguments_object, template_message, template_tools
from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.sampling import Sampling

RequestT = TypeVar("RequestT", bound=BaseModel)

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 4
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

# Accepted and without effect: they describe the request, or are the default spelled out.
DESCRIPTIVE = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Known to OpenAI and not done here, with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}


class Strict(BaseModel):
    """Base of requests: JSON types as they are, nothing unknown; null is the same as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, data: Any) -> Any:
        """Leave out what is null: OpenAI's clients send unset fields so."""
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What a tool call calls. The arguments are a JSON object, as text."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def check_arguments(cls, arguments: str) -> str:
        """Templates print the arguments as an object."""
        if arguments_object(arguments) is None:
            raise ValueError("the arguments must be a text that holds a JSON object")
        return arguments


class ToolCall(Strict):
    """A call that the model made in an earlier answer."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    def to_template(self, abilities: TemplateAbilities) -> dict[str, Any]:
        """The message as the model's chat template takes it, the same as in training."""
        calls = [call.model_dump() for call in self.tool_calls]
        return template_message(
            self.role, self.text, self.name, abilities, tool_calls=calls, tool_call_id=self.tool_call_id
        )

    def check(self, where: str) -> None:
        """Raise InvalidRequest when a field is missing, or is not for this role."""
        needed = {
            "content": self.content is None and not self.tool_calls,
            "tool_call_id": self.role == "tool" and self.tool_call_id is None,
        }
        for name, missing in needed.items():
            if missing:
                raise InvalidRequest(
                    f"Missing required parameter: '{where}.{name}'.",
                    param=f"{where}.{name}",
                    code="missing_required_parameter",
                )
        foreign = {
            "tool_calls": self.role != "assistant" and self.tool_calls,
            "tool_call_id": self.role != "tool" and self.tool_call_id is not None,
        }
        for name, wrong in foreign.items():
            if wrong:
                raise InvalidRequest(
                    f"'{where}.{name}' is not for a message of role '{self.role}'.", param=f"{where}.{name}"
                )


class StreamOptions(Strict):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Generation(Strict):
    """What both kinds of request have."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: str | list[str] = []
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_unsupported(cls, data: Any) -> Any:
        """Drop what has no effect, and refuse by name what would have one and is not done here."""
        if not isinstance(data, dict):
            return data
        for name in UNSUPPORTED.keys() & data.keys():
            if data[name] is not None and data[name] not in UNSUPPORTED[name]:
                raise InvalidRequest(
                    f"'{name}' is not supported by this server: leave it out.", param=name, code="unsupported_parameter"
                )
        return {name: value for name, value in data.items() if name not in DESCRIPTIVE and name not in UNSUPPORTED}

    @field_validator("stop")
    @classmethod
    def check_stop(cls, stop: str | list[str]) -> list[str]:
        """Return the stop sequences as a list."""
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop sequences are allowed, not {len(stops)}")
        if not all(stops):
            raise ValueError("a stop sequence must not be empty")
        return stops

    @model_validator(mode="after")
    def check_stream_options(self) -> Self:
        """Refuse stream options without a stream, as OpenAI does."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        return self

    @property
    def answer_tokens(self) -> int | None:
        """The most tokens of an answer; None for what the context has room for."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, defaults: Mapping[str, float], choice: int) -> Sampling:
        """Return the settings of one of the n choices: each has a seed of its own, made from the request's."""
        return Sampling(
            temperature=self.temperature if self.temperature is not None else defaults.get("temperature", 1.0),
            top_p=self.top_p if self.top_p is not None else defaults.get("top_p", 1.0),
            top_k=max(0, self.top_k if self.top_k is not None else int(defaults.get("top_k", 0))),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=None if self.seed is None else self.seed + choice,
        )


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True

    @property
    def answer_tokens(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools as the model's chat template prints them, the same as in training; None when there are none, or
        none may be called."""
        return template_tools(self.tools) if self.tool_choice == "auto" else None

    @model_validator(mode="after")
    def check_conversation(self) -> Self:
        """Refuse messages and tools that do not fit together, by the rules that training data has to meet."""
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")
        messages = [message.model_dump() for message in self.messages]
        faults = [*check_tools(self.tools), *check_calls(messages, [], TemplateAbilities())]
        for fault in faults:
            if fault.severity == "error":
                raise InvalidRequest(f"Invalid value for '{fault.where}': {fault.message}.", param=fault.where)
        for index, tool in enumerate(self.tools):
            if tool["function"].get("strict"):
                place = f"tools[{index}].function.strict"
                raise InvalidRequest(
                    f"'{place}' is not supported by this server: it cannot force the model to keep to the schema. "
                    "Leave it out, and check the arguments.",
                    param=place,
                    code="unsupported_parameter",
                )
        return self

    @field_validator("tool_choice")
    @classmethod
    def check_tool_choice(cls, choice: Any) -> Any:
        """Refuse what would force a call."""
        if choice in ("auto", "none"):
            return choice
        raise InvalidRequest(
            "'tool_choice' can be 'auto' or 'none' here: this server cannot force the model to call a tool. Leave it "
            "out, or ask for the call in a message.",
            param="tool_choice",
            code="unsupported_parameter",
        )


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def answer_tokens(self) -> int | None:
        """OpenAI's default is short here."""
        return self.max_tokens or COMPLETION_TOKENS


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """Return the request in a body; raise InvalidRequest naming what is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        # Of the alternatives of a union, the one that fits best fails deepest.
        worst = max(found, key=lambda one: len(one["loc"]))
        raise as_api_error(str(worst["type"]), tuple(worst["loc"]), str(worst["msg"])) from None


def as_api_error(kind: str, location: tuple[int | str, ...], message: str) -> InvalidRequest:
    """Translate one of pydantic's errors."""
    if kind == "json_invalid":
        return InvalidRequest(
            f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    param = name_of(location)
    if kind == "extra_forbidden":
        return InvalidRequest(f"Unrecognized request argument: '{param}'.", param=param, code="unknown_parameter")
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if not param:
        return InvalidRequest("The body must be a JSON object.", code="invalid_json")
    detail = message.removeprefix("Value error, ")
    return InvalidRequest(f"Invalid value for '{param}': {detail}.", param=param, code="invalid_value")


def name_of(location: tuple[int | str, ...]) -> str:
    """Return a location as OpenAI writes it: messages[0].content. Pydantic's names of union members are left out."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "int", "float"}:
            name += f".{part}" if name else part
    return name


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return the usage of an answer, in tokens. The token that ended an answer is counted."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
