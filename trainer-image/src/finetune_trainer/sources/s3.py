"""s3:// sources: AWS, or any server that speaks its protocol and is named by AWS_ENDPOINT_URL."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
)

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_trainer.errors import DIVIDE, TrainerError, UserInputError
from finetune_trainer.sources.location import S3
from finetune_trainer.sources.model_files import wanted_files

log = logging.getLogger(__name__)

CREDENTIALS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for a server of your own, AWS_ENDPOINT_URL"
DENIED = {
    *("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
    *("400", "301", "PermanentRedirect", "AuthorizationHeaderMalformed"),  # the wrong region, or an expired token
}
MISSING = {"NoSuchKey", "404", "NotFound"}


def fetch_file(location: S3, target: Path, policy: SourcePolicy) -> Path:
    """Download one object to `target`; return it. Raises UserInputError (SourceUnavailable)."""
    with _explained(location, FailureReason.SOURCE_UNAVAILABLE):
        client = _client()
        size = int(client.head_object(Bucket=location.bucket, Key=location.key)["ContentLength"])
        _refuse_large(f"s3://{location.bucket}/{location.key}", size, policy)
        client.download_file(location.bucket, location.key, str(target))
    return target


def version(location: S3) -> str:
    """Of one object. Raises UserInputError (SourceUnavailable)."""
    with _explained(location, FailureReason.SOURCE_UNAVAILABLE):
        head = _client().head_object(Bucket=location.bucket, Key=location.key)
    return f"etag {head['ETag']} {head['ContentLength']}"


def fetch_model(location: S3, folder: Path, policy: SourcePolicy) -> None:
    """Download the wanted files directly below the prefix into `folder`. Raises UserInputError."""
    source = f"s3://{location.bucket}/{location.key}"
    prefix = f"{location.key}/"
    with _explained(location, FailureReason.MODEL_ACCESS):
        client = _client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=prefix, Delimiter="/")
        sizes = {
            entry["Key"].removeprefix(prefix): int(entry["Size"])
            for page in pages
            for entry in page.get("Contents", [])
        }
    if not sizes:
        raise UserInputError(
            f"{source} has no objects",
            advice="correct the prefix in baseModel.source",
            reason=FailureReason.MODEL_ACCESS,
        )
    names = wanted_files(sizes, source)
    folder.mkdir(parents=True)
    for name in names:
        _refuse_large(f"{source}/{name}", sizes[name], policy)
        log.info("base model: downloads %s (%s bytes)", name, f"{sizes[name]:,}")
        with _explained(location, FailureReason.MODEL_ACCESS):
            client.download_file(location.bucket, prefix + name, str(folder / name))


def _client() -> Any:
    # Path-style addresses: servers other than AWS have no DNS name for each bucket. AWS takes both.
    settings = Config(
        s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10
    )
    return boto3.session.Session().client("s3", config=settings)


def _refuse_large(name: str, size: int, policy: SourcePolicy) -> None:
    if size > policy.max_bytes:
        raise UserInputError(
            f"{name} has {size} bytes, and {policy.max_bytes} are allowed for a file",
            advice=DIVIDE,
            reason=FailureReason.SOURCE_UNAVAILABLE,
        )


@contextlib.contextmanager
def _explained(location: S3, reason: FailureReason) -> Iterator[None]:
    name = f"s3://{location.bucket}/{location.key}"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserInputError(
            f"{name}: there are no S3 credentials",
            advice=f"name a Secret with {CREDENTIALS} in secretRef",
            reason=reason,
        ) from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in DENIED:
            advice = f"check the keys in the Secret of secretRef ({CREDENTIALS}) and what they may read"
            raise UserInputError(f"{name}: access was refused ({code})", advice=advice, reason=reason) from error
        if code in MISSING or code == "NoSuchBucket":
            what = "bucket" if code == "NoSuchBucket" else "object or bucket"
            raise UserInputError(
                f"{name}: there is no such {what}", advice="correct the source", reason=reason
            ) from error
        raise
    except BotoCoreError as error:
        if isinstance(error, NoRegionError | ParamValidationError):
            advice = f"complete the Secret of secretRef ({CREDENTIALS})"
            raise UserInputError(f"{name}: {error}", advice=advice, reason=reason) from error
        raise TrainerError(
            f"{name}: {error}",
            advice="see that the prepare pod can reach the server, and AWS_ENDPOINT_URL is right",
            reason=FailureReason.SOURCE_UNAVAILABLE,
        ) from error
    except ValueError as error:  # an endpoint that is no URL
        raise UserInputError(
            f"{name}: {error}", advice="correct AWS_ENDPOINT_URL in the Secret of secretRef", reason=reason
        ) from error
