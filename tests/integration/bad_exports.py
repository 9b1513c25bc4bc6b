"""Exports that cannot be meant: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad


def _to(name: str, to: str) -> Bad:
    return Bad(
        f"an export to {name}",
        f"output: {{exports: [{{name: a, to: {to!r}}}]}}",
        "spec.output.exports[0]",
        "to: write oci://HOST/REPOSITORY, oci://HOST/REPOSITORY:TAG or s3://BUCKET/PREFIX",
    )


EXPORT_RULES = (
    _to("another protocol", "https://registry.example.com/team/travel"),
    _to("a host alone", "oci://registry.example.com"),
    _to("a repository in capitals", "oci://registry.example.com/Team/travel"),
    _to("a registry with a password", "oci://user:secret@registry.example.com/team/travel"),
    _to("a digest", "oci://registry.example.com/team/travel@sha256:0123"),
    _to("a bucket without a prefix", "s3://models"),
    _to("a folder above the prefix", "s3://models/../secrets"),
    _to("a prefix with a blank", "s3://models/a b"),
    _to("a prefix with a line", "s3://models/a\\n"),
    Bad(
        "a Secret for the claim",
        "output: {exports: [{name: a, secretRef: {name: keys}}]}",
        "spec.output.exports[0]",
        "secretRef: an export that stays on the claim needs no Secret; remove it or give a destination in to",
    ),
    Bad(
        "a graph in bfloat16",
        "output: {exports: [{name: a, format: ONNX, precision: BFloat16}]}",
        "spec.output.exports[0]",
        "precision: only a Safetensors export has it, graphs are in float32; remove it",
    ),
    Bad(
        "a tracking server with a password",
        "tracking: {mlflow: {uri: 'https://user:secret@mlflow.example.com'}}",
        "spec.tracking.mlflow",
        "tracking.mlflow.uri: write https://HOST/PATH, without user, password or query",
    ),
    Bad(
        "a tracking server by file",
        "tracking: {mlflow: {uri: 'file:///runs'}}",
        "spec.tracking.mlflow",
        "tracking.mlflow.uri: write https://HOST/PATH",
    ),
    Bad(
        "a tracker without a key",
        "tracking: {wandb: {}}",
        "spec.tracking.wandb",
        "tracking.wandb: Online needs a key; put WANDB_API_KEY into a Secret and name it in secretRef, or set mode",
    ),
    Bad(
        "two exports with one tag",
        "output: {exports: [{name: a, to: 'oci://r/t:latest'}, {name: b, to: 'oci://r/t:latest'}]}",
        "spec.output",
        "output.exports: two exports would have the same tag; give each its own, or leave the tag out",
    ),
)
