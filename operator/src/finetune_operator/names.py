"""Names and labels of children. Deterministic, so that a second pass finds what the first one made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from finetune_api import GROUP
from finetune_api.conditions import Stage
from finetune_api.lineage import ContinuedFrom
from finetune_api.spec import FineTuneJobSpec

MAX_LENGTH = 63  # of a label value and of a DNS label; a Job's name becomes both on its pods
HASH_LENGTH = 8

MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_JOB = f"{GROUP}/job"
LABEL_RUN = f"{GROUP}/run"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_GANG = f"{GROUP}/gang"  # on pods that train together
ANNOTATION_SPEC_HASH = f"{GROUP}/spec-hash"
ANNOTATION_RUN_HASH = f"{GROUP}/run-hash"
# The run's hash but for the token, on its ConfigMap: tells a rerun from a changed spec.
ANNOTATION_CONTENT_HASH = f"{GROUP}/content-hash"
# Why the run was started, and what its trigger came with, on its ConfigMap: a time of the schedule, say.
ANNOTATION_TRIGGER = f"{GROUP}/trigger"
ANNOTATION_OCCASION = f"{GROUP}/occasion"
# Of what a user may change without a new run (compute, secrets): such a change gives a failed stage another try.
ANNOTATION_INPUTS_HASH = f"{GROUP}/inputs-hash"
# Of the settings that an Evaluate Job measures by: other ones make another Job, not another run.
ANNOTATION_EVALUATION_HASH = f"{GROUP}/evaluation-hash"
# Of what a Package Job makes: something else makes another Job, not another run.
ANNOTATION_PACKAGE_HASH = f"{GROUP}/package-hash"
# Of a server's pod: tells the servers of the present Deployment from those that it replaces, of the same run, too.
ANNOTATION_TEMPLATE_HASH = f"{GROUP}/template-hash"
# What a removal Job was told.
ANNOTATION_REMOVE = f"{GROUP}/remove"
# The run whose data a Job compares with.
ANNOTATION_POLLED_RUN = f"{GROUP}/polled-run"
# The claim that a Job writes to, where the run's own claim is read when the status was lost.
ANNOTATION_CLAIM = f"{GROUP}/claim"

# Kueue's own, on the Jobs that wait in a queue.
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
# Which release made a child: namespace and name of its Lease.
ANNOTATION_OPERATOR = f"{GROUP}/operator"
# Seconds between SIGTERM and SIGKILL of a Job's pods: the rest of its spec is not kept in memory.
ANNOTATION_GRACE = f"{GROUP}/grace-seconds"

CONTAINER = "main"
PORT = 8000


def short_hash(text: str, length: int = HASH_LENGTH) -> str:
    """The first hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def cut(name: str) -> str:
    """The name, or where it is longer than 63 characters its beginning and a hash of all of it."""
    if len(name) <= MAX_LENGTH:
        return name
    return f"{name[: MAX_LENGTH - HASH_LENGTH - 1].rstrip('-.')}-{short_hash(name)}"


def _dns_label(job: str) -> str:
    # A FineTuneJob may have dots in its name, a Service may not; the hash keeps `a.b` and `a-b` apart.
    return job if "." not in job else f"{job.replace('.', '-')}-{short_hash(job)}"


def run_name(job: str, run: int) -> str:
    """The run's ConfigMap."""
    return _suffixed(job, f"-r{run}")


def stage_name(job: str, run: int, stage: Stage, members: int = 1) -> str:
    """The Job of a stage. Where it has many pods, their host names, which are labels, too, have an index behind it."""
    room = len(f"-{members - 1}") if members > 1 else 0
    return _suffixed(job, f"-r{run}-{stage.value.lower()}", MAX_LENGTH - room)


def removal_name(job: str) -> str:
    """The Job that removes files of finished runs."""
    return _suffixed(job, "-remove")


def poll_name(job: str, moment: int) -> str:
    """The Job that looks at the data at this moment, Unix seconds."""
    return _suffixed(job, f"-poll-{moment}")


def poll_moment(name: str) -> int:
    """The moment in the name of such a Job; 0 where there is none."""
    return number(name.rpartition("-")[2]) or 0


def peers_name(job: str) -> str:
    """The Service by which the pods of one training find each other."""
    return _service(_suffixed(job, "-peers"))


def serve_name(job: str) -> str:
    """The Deployment and the Service."""
    return _service(_suffixed(job, "-serve"))


def _service(name: str) -> str:
    # A Service's name is a DNS label, which must begin with a letter; a FineTuneJob's may begin with a digit.
    return name if name[0].isalpha() else cut(f"s-{name}")


def _suffixed(job: str, suffix: str, length: int = MAX_LENGTH) -> str:
    """Cut so that what tells children apart, the suffix, stays readable."""
    base = _dns_label(job)
    if len(base) + len(suffix) <= length:
        return base + suffix
    room = length - len(suffix) - HASH_LENGTH - 1
    return f"{base[:room].rstrip('-')}-{short_hash(job)}{suffix}"


def labels(job: str, run: int, stage: Stage | None = None, attempt: int | None = None) -> dict[str, str]:
    """Labels of a child and of its pods."""
    result = {MANAGED_BY: "finetune-operator", LABEL_JOB: cut(job), LABEL_RUN: str(run)}
    if stage is not None:
        result[LABEL_STAGE] = stage.value
    if attempt is not None:
        result[LABEL_ATTEMPT] = str(attempt)
    return result


def serve_selector(job: str) -> dict[str, str]:
    """Labels that select the servers of any run: a Deployment's selector can never change."""
    return {LABEL_JOB: cut(job), LABEL_STAGE: Stage.SERVE.value}


def number(value: str | None) -> int | None:
    """The number in a label, or None where there is none."""
    return int(value) if value and value.isascii() and value.isdigit() else None


def run_of(manifest: Mapping[str, object]) -> int | None:
    """The number of the run that a child, or a pod of one, belongs to."""
    return number(label(manifest, LABEL_RUN))


def label(manifest: Mapping[str, object], key: str) -> str | None:
    """A label of an object."""
    return _of(manifest, "labels", key)


def annotation(manifest: Mapping[str, object], key: str) -> str | None:
    """An annotation of an object."""
    return _of(manifest, "annotations", key)


def _of(manifest: Mapping[str, object], part: str, key: str) -> str | None:
    metadata = manifest.get("metadata")
    values = metadata.get(part) if isinstance(metadata, dict) else None
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, str) else None


def base_name(spec: FineTuneJobSpec, continued: ContinuedFrom | None = None) -> str:
    """Short name of the base model: the last segment of its source in lower case, at most 253 characters.

    Of what another run has made it is JOB-rRUN; an adapter that is gone on with lies on the base that it has always
    been on, whose name stays.
    """
    if continued is not None and continued.continues and continued.model.base_name:
        return continued.model.base_name
    if spec.base_model.fine_tune_job is not None:
        run = f"-r{continued.model.run}" if continued else ""
        return f"{spec.base_model.fine_tune_job.name[: 253 - len(run)]}{run}"
    segment = (spec.base_model.source or "").rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", segment).strip("-")[:253] or "base"


def tuned_name(job: str, spec: FineTuneJobSpec, continued: ContinuedFrom | None = None) -> str:
    """Name by which the endpoint answers for the tuned model: the job's, unless the base has it already."""
    return job if job != base_name(spec, continued) else f"{job[:247]}-tuned"


def run_folder(namespace: str, job: str, run: int, run_hash: str) -> str:
    """The run's folder on the artifact volume. The hash keeps a re-created job apart from its predecessor."""
    return f"{runs_folder(namespace, job)}/{folder_of_run(run, run_hash)}"


def runs_folder(namespace: str, job: str) -> str:
    """Where all of a job's runs are."""
    return f"{namespace}/{job}/runs"


def folder_of_run(run: int, run_hash: str) -> str:
    """The last part of a run's folder."""
    return f"{run}-{run_hash[:8]}"


def models_folder(namespace: str) -> str:
    """Base models, shared by the jobs of a namespace."""
    return f"{namespace}/models"


def claim_of(uri: str) -> str:
    """CLAIM of pvc://CLAIM/PATH."""
    return uri.removeprefix("pvc://").split("/", 1)[0]


def path_of(uri: str) -> str:
    """PATH of pvc://CLAIM/PATH."""
    return uri.removeprefix("pvc://").split("/", 1)[-1]
