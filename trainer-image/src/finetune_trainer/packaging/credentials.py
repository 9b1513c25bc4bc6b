"""What an export's Secret says, and nothing of any other's."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from finetune_api.conditions import FailureReason
from finetune_api.exports import secret_prefix
from finetune_trainer.errors import UserInputError

CA = "ca.crt"


def of_export(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The keys of the export's Secret. Without any (on a laptop, where no Secret is read) the user's environment."""
    prefix = secret_prefix(name)
    own = {key.removeprefix(prefix): value for key, value in environment.items() if key.startswith(prefix)}
    return own or dict(environment)


def trusted(secret: Mapping[str, str], what: str) -> ssl.SSLContext:
    """The authorities of the image, and the Secret's own. Raises UserInputError when that is no certificate."""
    context = ssl.create_default_context()
    if CA in secret:
        try:
            context.load_verify_locations(cadata=secret[CA])
        except ssl.SSLError as error:
            raise UserInputError(
                f"{what}: {CA} in the Secret is no certificate in PEM form",
                advice=f"put the certificate of the authority into {CA}, from BEGIN to END CERTIFICATE",
                reason=FailureReason.DESTINATION_REFUSED,
            ) from error
    return context


@contextmanager
def in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """For clients that read their login from nowhere else."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def refused(message: str, advice: str) -> UserInputError:
    """The destination does not take it, and trying the same again is useless."""
    return UserInputError(message, advice=advice, reason=FailureReason.DESTINATION_REFUSED)
