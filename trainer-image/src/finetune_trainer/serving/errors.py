"""Errors in the form that OpenAI clients understand.

ApiError
├── InvalidRequest      400  the request cannot be answered as it is; `param` names the culprit
│   └── ContextExceeded 400  prompt and answer do not fit into the model's context
├── ModelNotFound       404
├── BodyTooLarge        413
├── QueueFull           429  with Retry-After
├── GenerationFailed    500  no details: they are in the server's log
├── Unavailable         503  still loading, or shutting down; with Retry-After
└── GenerationTimeout   504
"""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """An answer that is an error. `message` is for the person who reads it."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: str | None = None
    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param or self.param
        self.code = code or self.code

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {}

    def body(self) -> dict[str, Any]:
        """The JSON body, as OpenAI has it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    """The request is wrong."""

    status = 400
    kind = "invalid_request_error"


class ContextExceeded(InvalidRequest):
    """Prompt and answer are longer than the model's context; counts in tokens."""

    code = "context_length_exceeded"

    def __init__(self, *, context: int, prompt: int, answer: int | None, param: str) -> None:
        wanted = f"{prompt} in the prompt" if answer is None else f"{prompt} in the prompt, {answer} in the completion"
        total = prompt + (answer or 0)
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, you requested {total} tokens "
            f"({wanted}). Please shorten the prompt or lower max_tokens.",
            param=param,
        )


class ModelNotFound(ApiError):
    """No model of that name is served here."""

    status = 404
    kind = "invalid_request_error"
    code = "model_not_found"
    param = "model"

    def __init__(self, name: str, served: tuple[str, ...]) -> None:
        super().__init__(f"The model {name[:200]!r} does not exist here. Served: {', '.join(served)}.")


class RouteNotFound(ApiError):
    """There is nothing at that path."""

    status = 404
    kind = "invalid_request_error"
    code = "unknown_url"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not."""

    status = 405
    kind = "invalid_request_error"
    code = "method_not_supported"


class BodyTooLarge(ApiError):
    """The body is larger than allowed. The rest of it is not read, so the connection cannot be used again."""

    status = 413
    kind = "invalid_request_error"
    code = "request_too_large"

    @property
    def headers(self) -> dict[str, str]:
        """Close the connection."""
        return {"Connection": "close"}


class QueueFull(ApiError):
    """All places are taken."""

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, seconds."""
        return {"Retry-After": "1"}


class GenerationFailed(ApiError):
    """Something broke in here."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The server failed to answer this request. Its log has the details.")


class Unavailable(ApiError):
    """Not ready yet, or not any more."""

    status = 503
    code = "unavailable"

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, seconds; by another connection, which may reach another server."""
        return {"Retry-After": "1", "Connection": "close"}


class GenerationTimeout(ApiError):
    """The answer took longer than allowed."""

    status = 504
    kind = "timeout_error"
    code = "timeout"
