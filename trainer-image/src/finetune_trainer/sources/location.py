"""Sources as values: `pvc://datasets/travel.jsonl` is Pvc("datasets", "travel.jsonl")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError

FORMS = "hf://OWNER/NAME, pvc://CLAIM/PATH, s3://BUCKET/KEY or https://HOST/PATH"


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository of a Hugging Face hub; `path` is a file in it, or empty for the whole."""

    repo: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Pvc:
    """A path in a PersistentVolumeClaim."""

    claim: str
    path: str


@dataclass(frozen=True, slots=True)
class S3:
    """An object, or a prefix of objects, in a bucket."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class Https:
    """A file of a web server."""

    url: str


Location = Hub | Pvc | S3 | Https


def parse_source(source: str) -> Location:
    """Raises UserInputError (SpecInvalid) on what is none of the four forms or leaves its root by `..`."""
    scheme, _, rest = source.partition("://")
    segments = rest.split("/")
    if ".." in segments or "\\" in rest:
        raise _invalid(source, "'..' and '\\' are not allowed; name the file from the root of its source")
    tail = "/".join(segments[1:]).strip("/")
    if scheme == "pvc" and segments[0] and tail:
        return Pvc(segments[0], tail)
    if scheme == "s3" and segments[0] and tail:
        return S3(segments[0], tail)
    if scheme == "hf" and len(segments) >= 2 and segments[0] and segments[1]:
        return Hub(f"{segments[0]}/{segments[1]}", "/".join(segments[2:]))
    if scheme == "https" and segments[0]:
        try:
            parts = urlsplit(source)
            user, _ = parts.username, parts.port  # ValueError where the port is none
        except ValueError as error:
            raise _invalid(source, f"correct the host or its port: {error}") from error
        if user is not None:
            raise UserInputError(  # without the source: it holds a password
                "a source carries a user name in its URL",
                advice="put the credentials into a Secret (HTTPS_AUTHORIZATION) and name it in secretRef",
                reason=FailureReason.SPEC_INVALID,
            )
        return Https(source)
    raise _invalid(source, f"write {FORMS}")


def slug(location: Location) -> str:
    """A folder name for a model: letters, digits, dots, underscores and dashes; at most 100 characters."""
    match location:
        case Hub(repo, _):
            words = repo
        case Pvc(claim, path):
            words = f"{claim}/{path}"
        case S3(bucket, key):
            words = f"{bucket}/{key}"
        case Https(url):
            words = url.removeprefix("https://")
    return re.sub(r"[^A-Za-z0-9._-]+", "--", words).strip("-.")[:100]


def _invalid(source: str, advice: str) -> UserInputError:
    return UserInputError(f"source {source} is not valid", advice=advice, reason=FailureReason.SPEC_INVALID)
