"""s3:// destinations: a folder of objects with its manifest.json written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import boto3
from boto3.s3.transfer import S3UploadFailedError, TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)

from finetune_api.conditions import FailureReason
from finetune_trainer import artifacts
from finetune_trainer.errors import TrainerError
from finetune_trainer.packaging.credentials import CA, refused, trusted
from finetune_trainer.sources.s3 import CREDENTIALS, DENIED

log = logging.getLogger(__name__)

PART = 64 * 2**20  # bytes of a part; S3 takes 10,000 of them, so files of up to 640 GiB
DIGEST = "sha256"  # of an object, in its metadata: tells what an interrupted push has sent
MISSING = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """`prefix` ends with a slash: all objects below it are the export's."""

    client: Any
    bucket: str
    prefix: str
    replace: bool

    @classmethod
    def open(cls, uri: str, secret: Mapping[str, str], *, replace: bool) -> Self:
        """A client with the Secret's keys; none is asked for before something is done."""
        name, _, key = uri.removeprefix("s3://").partition("/")
        with _explained(uri):
            session = boto3.session.Session(
                aws_access_key_id=secret.get("AWS_ACCESS_KEY_ID"),
                aws_secret_access_key=secret.get("AWS_SECRET_ACCESS_KEY"),
                aws_session_token=secret.get("AWS_SESSION_TOKEN"),
                region_name=secret.get("AWS_REGION") or secret.get("AWS_DEFAULT_REGION") or "us-east-1",
            )
            client = session.client(
                "s3",
                endpoint_url=secret.get("AWS_ENDPOINT_URL_S3") or secret.get("AWS_ENDPOINT_URL"),
                verify=_authorities(secret, uri),
                config=Config(
                    s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10
                ),
            )
        return cls(client, name, f"{key}/", replace)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix.rstrip('/')}"

    def holds(self, digest: str) -> bool:
        with _explained(self.uri):
            manifest = self._manifest()
            return manifest is not None and hashlib.sha256(manifest).hexdigest() == digest and self._is_whole(manifest)

    def push(self, folder: Path, annotations: dict[str, str]) -> str:
        manifest = (folder / artifacts.MANIFEST).read_bytes()
        wanted: dict[str, Any] = json.loads(manifest)["files"]
        with _explained(self.uri):
            there = self._manifest()
            if there == manifest and self._is_whole(manifest):
                return hashlib.sha256(manifest).hexdigest()
            self._make_room(there if there != manifest else None, set(wanted))
            self._end_uploads()
            sizes = self._sizes()
            for name, entry in sorted(wanted.items()):
                if not self._was_sent(name, entry, sizes):
                    self._send(folder / name, name, entry)
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + artifacts.MANIFEST, Body=manifest)
        return hashlib.sha256(manifest).hexdigest()

    def _manifest(self) -> bytes | None:
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + artifacts.MANIFEST)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in MISSING:
                return None
            raise
        content: bytes = answer["Body"].read()
        return content

    def _sizes(self) -> dict[str, int]:
        """Bytes of each object, by its name below the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {
            entry["Key"].removeprefix(self.prefix): int(entry["Size"])
            for page in pages
            for entry in page.get("Contents", [])
        }

    def _is_whole(self, manifest: bytes) -> bool:
        sizes = self._sizes()
        files: dict[str, Any] = json.loads(manifest)["files"]
        return all(sizes.get(name) == entry["size"] for name, entry in files.items())

    def _make_room(self, other: bytes | None, wanted: set[str]) -> None:
        """What an interrupted push of ours has left may stay; anything else is in the way."""
        strange = sorted(self._sizes().keys() - wanted - {artifacts.MANIFEST})
        if other is None and not strange:
            return
        if not self.replace:
            what = "another export" if other is not None else f"{strange[0]}, which is not of this export,"
            raise refused(
                f"{self.uri} holds {what} already",
                "give another prefix in to, or set conflictPolicy to Replace",
            )
        # The manifest goes first: whoever looks meanwhile finds nothing whole, not a mixture.
        for name in (artifacts.MANIFEST, *strange):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def _end_uploads(self) -> None:
        """Parts of an upload that was killed are invisible and cost money; who may not list them leaves them."""
        with contextlib.suppress(ClientError):
            found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix)
            for upload in found.get("Uploads", []):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _was_sent(self, name: str, entry: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
        if sizes.get(name) != entry["size"]:
            return False
        head = self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)
        return bool(head.get("Metadata", {}).get(DIGEST) == entry["sha256"])

    def _send(self, path: Path, name: str, entry: Mapping[str, Any]) -> None:
        log.info("sends %s (%s bytes) to %s", name, f"{entry['size']:,}", self.uri)
        self.client.upload_file(
            str(path),
            self.bucket,
            self.prefix + name,
            ExtraArgs={"Metadata": {DIGEST: entry["sha256"]}},
            Config=TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4),
        )


def _authorities(secret: Mapping[str, str], uri: str) -> str | None:
    """botocore wants a file. It replaces the image's authorities, which a server with one of its own does not need."""
    if CA not in secret:
        return secret.get("AWS_CA_BUNDLE")
    trusted(secret, uri)
    handle, path = tempfile.mkstemp(suffix=".crt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(secret[CA])
    return path


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise refused(
            f"{uri}: there are no S3 credentials", f"name a Secret with {CREDENTIALS} in secretRef"
        ) from error
    except (ClientError, S3UploadFailedError) as error:
        raise _answered(uri, error) from error
    except SSLError as error:
        raise refused(
            f"{uri}: the server's certificate is not trusted: {error}",
            f"put the certificate of its authority into {CA} of the Secret",
        ) from error
    except BotoCoreError as error:
        if isinstance(error, NoRegionError | ParamValidationError):
            raise refused(f"{uri}: {error}", f"complete the Secret of secretRef ({CREDENTIALS})") from error
        raise _unavailable(f"{uri}: {error}") from error
    except ValueError as error:  # an endpoint that is no URL
        raise refused(f"{uri}: {error}", "correct AWS_ENDPOINT_URL in the Secret of secretRef") from error


def _answered(uri: str, error: Exception) -> TrainerError:
    """What the server said, also where the transfer has wrapped it in a text of its own."""
    cause = error if isinstance(error, ClientError) else error.__context__
    details = cause.response if isinstance(cause, ClientError) else {}
    code = str(details.get("Error", {}).get("Code", ""))
    if code in DENIED:
        return refused(f"{uri}: access was refused ({code})", f"check the keys ({CREDENTIALS}) and what they may write")
    if code == "NoSuchBucket" or code in MISSING:
        return refused(f"{uri}: there is no such bucket", "create the bucket, or correct its name in to")
    status = int(details.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    if 400 <= status < 500 and code not in ("SlowDown", "RequestTimeout", "429"):
        return refused(f"{uri}: {error}", "correct the destination in to, or the keys of its Secret")
    return _unavailable(f"{uri}: {error}")


def _unavailable(message: str) -> TrainerError:
    return TrainerError(
        message,
        advice="it is tried again; see that the package pod can reach the server, and AWS_ENDPOINT_URL is right",
        reason=FailureReason.DESTINATION_UNAVAILABLE,
    )
