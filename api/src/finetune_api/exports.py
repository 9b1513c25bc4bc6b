"""What is made of a promoted model beside serving it: formats, and where they go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, Named, Rule
from finetune_api.dataset import SecretRef

MOST_EXPORTS = 6  # of one job: their results have to fit into a termination message
EXPORT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
# HOST[:PORT]/REPOSITORY[:TAG], as the OCI distribution specification has the last two. RE2 and Python's re alike.
_PART = "[a-z0-9]+([._-][a-z0-9]+)*"
OCI = f"^oci([+]http)?://[A-Za-z0-9.-]+(:[0-9]+)?/{_PART}(/{_PART})*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?$"
S3 = "^s3://[a-z0-9][-.a-z0-9]+/[A-Za-z0-9_][-A-Za-z0-9._/]*$"


class ExportFormat(Named):
    SAFETENSORS = "Safetensors"
    ONNX = "ONNX"
    QUANTIZED_ONNX = "QuantizedONNX"


class ExportPrecision(Named):
    AUTO = "auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class ConflictPolicy(Named):
    REFUSE = "Refuse"
    REPLACE = "Replace"


def _is_destination(text: str) -> bool:
    return bool(re.fullmatch(OCI, text) or (re.fullmatch(S3, text) and ".." not in text))


class ExportSpec(ApiModel):
    """One export of each promoted run."""

    name: str = Field(
        min_length=1,
        max_length=32,
        pattern=EXPORT_NAME,
        description="Names it in the status, on the claim and at its destination.",
    )
    format: ExportFormat = Field(
        default=ExportFormat.SAFETENSORS,
        description="Safetensors: a whole model in Hugging Face format, with the adapter merged into the unquantised "
        "base. ONNX: graphs for onnxruntime in float32, proven to answer as PyTorch does. QuantizedONNX: the same with "
        "weights of 8 bits, for small devices, with the difference measured.",
    )
    precision: ExportPrecision = Field(
        default=ExportPrecision.AUTO,
        description="Type of the weights of a Safetensors export; auto: as the base model came.",
    )
    to: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Where it goes: oci://HOST/REPOSITORY or oci://HOST/REPOSITORY:TAG (a registry; oci+http:// where "
        "it has no TLS), or s3://BUCKET/PREFIX. Without a TAG it is NAME-rRUN-HASH, and an S3 export lies in a folder "
        "of that name below the prefix. Absent: the export stays on the claim, in the run's folder exports/NAME.",
    )
    conflict_policy: ConflictPolicy = Field(
        default=ConflictPolicy.REFUSE,
        description="When the tag or folder holds something else. Refuse: it is left as it is, and the status says "
        "so. Replace: it is overwritten, which is meant for tags like latest.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys the package pod sees for this export alone. For oci:// .dockerconfigjson (a "
        "Secret of type kubernetes.io/dockerconfigjson), or username and password; for s3:// AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; for both ca.crt, of a private authority.",
    )
    rules: ClassVar = (
        Rule(
            f"!has(self.to) || self.to.matches('{OCI}') || (self.to.matches('{S3}') && !self.to.contains('..'))",
            "to: write oci://HOST/REPOSITORY, oci://HOST/REPOSITORY:TAG or s3://BUCKET/PREFIX; a repository is in "
            "lower case, a prefix of letters, digits and . _ - /",
            lambda export: export.to is None or _is_destination(export.to),
        ),
        Rule(
            "has(self.to) || !has(self.secretRef)",
            "secretRef: an export that stays on the claim needs no Secret; remove it or give a destination in to",
            lambda export: export.to is not None or export.secret_ref is None,
        ),
        Rule(
            "self.precision == 'auto' || self.format == 'Safetensors'",
            "precision: only a Safetensors export has it, graphs are in float32; remove it",
            lambda export: export.precision is ExportPrecision.AUTO or export.format is ExportFormat.SAFETENSORS,
        ),
    )

    @property
    def settings(self) -> dict[str, object]:
        """What the export is, without what equals its default and without the Secret: another password is not
        another export."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"secret_ref"})


def _distinct_names(exports: Sequence[ExportSpec]) -> Sequence[ExportSpec]:
    """As the API server has it, where the name is the key of the list."""
    names = [export.name for export in exports]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two exports are called {twice}; give each a name of its own")
    return exports


Exports = Annotated[
    list[ExportSpec],
    AfterValidator(_distinct_names),
    Field(
        max_length=MOST_EXPORTS,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


def one_export_a_tag(exports: Sequence[ExportSpec]) -> bool:
    """Whether no two exports want the same tag. Without a tag of its own each has another one."""
    tagged = [export.to for export in exports if export.to and has_tag(export.to)]
    return len(set(tagged)) == len(tagged)


ONE_EXPORT_A_TAG = Rule(
    "self.exports.all(x, !has(x.to) || !x.to.matches('^oci.*/.*:[^/]*$') || "
    "self.exports.filter(y, has(y.to) && y.to == x.to).size() == 1)",
    "output.exports: two exports would have the same tag; give each its own, or leave the tag out",
    lambda output: one_export_a_tag(output.exports),
)


def has_tag(to: str) -> bool:
    """Whether an oci:// destination names its tag."""
    return to.startswith("oci") and ":" in to.rpartition("/")[2]


def label(export: ExportSpec, run: int, run_hash: str) -> str:
    """What tells an export from that of any other run: a tag, or a folder below the prefix. At most 128 characters."""
    return f"{export.name}-r{run}-{run_hash[:8]}"


def destination(export: ExportSpec, run: int, run_hash: str) -> str:
    """The whole name at the destination; empty for an export that stays on the claim."""
    if export.to is None:
        return ""
    if export.to.startswith("s3://"):
        return f"{export.to.rstrip('/')}/{label(export, run, run_hash)}"
    return export.to if has_tag(export.to) else f"{export.to}:{label(export, run, run_hash)}"


def secret_prefix(name: str) -> str:
    """Begins the environment variables of an export's Secret, so that each export sees only its own."""
    return f"EXPORT_{name.upper().replace('-', '_')}__"
