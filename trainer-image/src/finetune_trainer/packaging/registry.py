"""oci:// destinations: an image of the model's files, which any registry keeps and a Kubernetes image volume mounts.

One layer a file, each a plain tar of it, made the same every time: what two runs share (a tokenizer, a base) is kept
and sent once. https://github.com/opencontainers/distribution-spec and image-spec, versions 1.1.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from finetune_trainer.packaging.credentials import refused
from finetune_trainer.packaging.layers import Layer
from finetune_trainer.packaging.registry_client import Client, split

log = logging.getLogger(__name__)

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
# Files are for no processor, but a node pulls only what is made for its own.
ARCHITECTURES = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Registry:
    """A tag of a repository."""

    client: Client
    tag: str
    uri: str
    replace: bool

    @classmethod
    def open(cls, uri: str, secret: Mapping[str, str], *, replace: bool) -> Self:
        _, _, tag = split(uri)
        return cls(Client.open(uri, secret), tag, uri, replace)

    def holds(self, digest: str) -> bool:
        return self.client.digest_of(self.tag) == digest

    def push(self, folder: Path, annotations: dict[str, str]) -> str:
        layers = [Layer.of(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        blobs = dict(_documents(layers, annotations))
        index = blobs.pop(INDEX)[0]
        digest = _digest(index)
        there = self.client.digest_of(self.tag)
        if there == digest:
            return digest
        if there is not None and not self.replace:
            raise refused(
                f"{self.uri} is another image already ({there[:19]})",
                "give another tag in to, or set conflictPolicy to Replace",
            )
        for layer in layers:
            if not self.client.has_blob(layer.digest):
                log.info("sends %s (%s bytes) to %s", layer.name, f"{layer.size:,}", self.uri)
                self.client.send_blob(layer.digest, layer.size, layer.chunks)
        for config in blobs[CONFIG]:
            if not self.client.has_blob(_digest(config)):
                self.client.send_blob(_digest(config), len(config), lambda content=config: iter((content,)))  # type: ignore[misc]
        for manifest in blobs[MANIFEST]:
            self.client.send_manifest(_digest(manifest), MANIFEST, manifest)
        self.client.send_manifest(self.tag, INDEX, index)  # last: what the tag names is whole
        return digest


def _documents(layers: list[Layer], annotations: Mapping[str, str]) -> Iterator[tuple[str, list[bytes]]]:
    """The configuration and the manifest for each architecture, and the index of both, by media type."""
    configs = [_config(layers, architecture) for architecture in ARCHITECTURES]
    manifests = [_manifest(config, layers, annotations) for config in configs]
    entries = [
        {**_descriptor(MANIFEST, _digest(manifest), len(manifest)), "platform": {"architecture": name, "os": "linux"}}
        for name, manifest in zip(ARCHITECTURES, manifests, strict=True)
    ]
    yield CONFIG, configs
    yield MANIFEST, manifests
    yield INDEX, [_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, "annotations": annotations})]


def _config(layers: list[Layer], architecture: str) -> bytes:
    root = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    return _json({"architecture": architecture, "os": "linux", "config": {}, "rootfs": root})


def _manifest(config: bytes, layers: list[Layer], annotations: Mapping[str, str]) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(CONFIG, _digest(config), len(config)),
            "layers": [_descriptor(LAYER, layer.digest, layer.size) for layer in layers],
            "annotations": annotations,
        }
    )


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
