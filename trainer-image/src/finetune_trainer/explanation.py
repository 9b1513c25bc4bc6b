"""What an error means to whoever reads the status, and what of it nobody may read."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from finetune_api.conditions import ExitCode, FailureReason
from finetune_api.reports import StageFailure
from finetune_trainer.errors import TrainerError

# Environment variables whose values must never reach a log or a status. The rest of a Secret's keys that this
# trainer knows (HF_ENDPOINT, AWS_ENDPOINT_URL, AWS_REGION) are places, which an error has to name.
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "AUTHORIZATION", "ACCESS_KEY", "API_KEY")
FULL = (errno.ENOSPC, errno.EDQUOT)
# The same from libraries that are not written in Python: safetensors, tokenizers.
FULL_WORDS = tuple(os.strerror(number) for number in FULL)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL_ADVICE = "enlarge the output claim, or delete old runs from it; the stage is tried again by itself"
SHORTEST_SECRET = 6  # characters; replacing shorter values would garble ordinary words


def explain(error: BaseException) -> tuple[StageFailure, int]:
    """What went wrong in the words of the status, and the exit code."""
    if isinstance(error, TrainerError):
        return _failure(error.reason, error.message, error.advice), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        failure = _failure(FailureReason.INTERRUPTED, "interrupted from the keyboard", "run the same command again")
        return failure, ExitCode.INTERRUPTED
    text = f"{type(error).__name__}: {error}"
    if is_full(error):
        return _failure(FailureReason.STORAGE_FULL, text, FULL_ADVICE), ExitCode.STORAGE_FULL
    if isinstance(error, OSError) and error.errno in NO_RIGHT and error.filename:
        return _failure(FailureReason.SYSTEM_FAULT, text, _let_in()), 1
    if isinstance(error, MemoryError):
        return _failure(FailureReason.OUT_OF_MEMORY, text, "raise compute.resources.limits.memory"), 1
    if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: the frame does not load torch
        advice = "use a GPU with more memory, a smaller maxLength, or a smaller model"
        return _failure(FailureReason.CUDA_OUT_OF_MEMORY, text, advice), ExitCode.GPU_OUT_OF_MEMORY
    return _failure(FailureReason.SYSTEM_FAULT, text, "read the log of the stage's pod, which has the stack trace"), 1


def _let_in() -> str:
    return (
        f"let user {os.getuid()} of group {os.getgid()} read and write there: the volume's owner, mode or mount says "
        "who may; NFS and hostPath volumes do not obey the pod's fsGroup"
    )


def is_full(error: BaseException) -> bool:
    """Whether a volume had no room, or a quota left none."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(words in str(error) for words in FULL_WORDS)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without the values of secret environment variables."""
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= SHORTEST_SECRET and any(word in name.upper() for word in SECRET_WORDS):
            text = text.replace(value, f"<{name}>")
    return text


def _failure(reason: FailureReason, message: str, advice: str) -> StageFailure:
    return StageFailure(reason=reason, message=redact(message), advice=redact(advice))
