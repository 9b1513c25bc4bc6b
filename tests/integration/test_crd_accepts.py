"""What the real API server takes, keeps and shows of a FineTuneJob."""

from __future__ import annotations

import copy
import json
import types
import typing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from tests.cluster.control_plane import ControlPlane
from tests.integration.bad_manifests import GOOD, merged
from tests.integration.conftest import CRD, CRD_NAME, ROOT, JobApi

from finetune_api import API_VERSION
from finetune_api.crd import custom_resource_definition
from finetune_api.job import FineTuneJob, run_hash
from finetune_api.schema import Schema
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.control.api_client import Api, ApiError, load_configuration
from finetune_operator.control.resources import FINE_TUNE_JOB
from finetune_operator.times import stamp

OURS = {"v1", API_VERSION}  # the rest is for other tools: Kustomize, Argo CD, Flux


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    if all(document.get("apiVersion") in OURS for document in documents(path))
]


def jobs() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.relative_to(ROOT)}")
        for path in EXAMPLES
        for document in documents(path)
        if document["kind"] == "FineTuneJob"
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_example_is_accepted(job_api: JobApi, path: Path) -> None:
    job_api.plane.kubectl("apply", "--dry-run=server", "-f", path)


@pytest.mark.parametrize("job", jobs())
def test_defaults_of_api_server_and_laptop_are_the_same(job_api: JobApi, job: dict[str, Any]) -> None:
    namespaced = merged(job, {"metadata": {"namespace": "default"}})
    answer = job_api.create(namespaced)
    assert answer.code == 201, answer.message
    stored, written = FineTuneJob.model_validate(answer.body), FineTuneJob.model_validate(namespaced)
    assert stored.spec == written.spec
    assert run_hash(stored.spec) == run_hash(written.spec)
    # All that the laptop would have filled in, the API server has: nothing of it is left to the reader.
    assert _strings(stored.spec.to_wire()) == _strings(answer.body["spec"])


def test_smallest_job_gets_every_default(job_api: JobApi) -> None:
    spec = job_api.create(GOOD).body["spec"]
    assert spec["hyperparameters"]["epochs"] == "auto"
    assert spec["dataset"]["validation"] == {"fraction": 0.1}
    assert spec["evaluation"]["gate"] == {"rules": [{"metric": "loss", "minImprovement": "0%"}]}
    assert spec["serving"]["replicas"] == 1


def test_empty_values_mean_the_default(job_api: JobApi) -> None:
    empty = merged(GOOD, {"spec": {}})
    empty["spec"] |= {"method": {}, "evaluation": {"gate": None}, "hyperparameters": {"epochs": None}}
    answer = job_api.create(empty)
    assert answer.code == 201, answer.message
    assert FineTuneJob.model_validate(empty).spec == FineTuneJob.model_validate(answer.body).spec


def test_explain_knows_every_field(job_api: JobApi) -> None:
    for part, model in (("spec", FineTuneJobSpec), ("status", FineTuneJobStatus)):
        shown = job_api.plane.kubectl("explain", f"finetunejobs.{part}", "--recursive")
        words = {line.split()[0] for line in shown.splitlines() if line.strip()}
        assert set(field_names(model)) <= words


def test_explain_describes_every_field(job_api: JobApi) -> None:
    text = job_api.plane.kubectl("explain", "finetunejobs.spec.dataset.validation.fraction")
    assert "Share of the training examples that is held out" in text


@pytest.mark.parametrize("server_side", [False, True], ids=["client-side", "server-side"])
def test_apply_again_changes_nothing(job_api: JobApi, server_side: bool) -> None:
    kubectl = job_api.plane.kubectl
    job = merged(GOOD, {"metadata": {"name": f"again-{'server' if server_side else 'client'}"}})
    kubectl.apply(job, server_side=server_side)
    # The status' default is shown from the first moment and stored with the first change, of the operator mostly.
    shown = kubectl.get("finetunejobs.finetune-operator.io", job["metadata"]["name"], namespace="default")
    kubectl("patch", "ftj", shown["metadata"]["name"], "-n", "default", "--subresource=status", "--type=merge", "-p",
            json.dumps({"status": {"percent": "0%"}}))  # fmt: skip
    first = kubectl.get("finetunejobs.finetune-operator.io", job["metadata"]["name"], namespace="default")
    said = kubectl.apply(job, server_side=server_side)
    second = kubectl.get("finetunejobs.finetune-operator.io", job["metadata"]["name"], namespace="default")
    assert first == second
    assert "serverside-applied" in said if server_side else "unchanged" in said


def test_every_status_field_survives(job_api: JobApi) -> None:
    job = merged(GOOD, {"metadata": {"name": "maximal"}})
    assert job_api.create(job, dry_run=False).code == 201
    status = full(FineTuneJobStatus)
    FineTuneJobStatus.model_validate(status)  # or the example is not one
    path = f"{job_api.collection('default')}/maximal"
    answer = job_api.send("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json")
    assert answer.code == 200, answer.message
    assert answer.body["status"] == status
    assert FineTuneJobStatus.model_validate(answer.body["status"]).to_wire() == status


async def test_a_status_with_a_field_that_the_definition_lacks_is_refused_with_the_remedy(
    control_plane: ControlPlane, job_api: JobApi
) -> None:
    assert job_api.create(merged(GOOD, {"metadata": {"name": "of-tomorrow"}}), dry_run=False).code == 201
    api = Api(await load_configuration(str(control_plane.kubeconfig)), concurrency=1, timeout=20)
    try:
        stored = await api.get(FINE_TUNE_JOB, "default", "of-tomorrow")
        with pytest.raises(ApiError, match=r"status\.mood.*kubectl apply --server-side -f crds") as refusal:
            await api.replace_status(FINE_TUNE_JOB, {**stored, "status": {"mood": "good"}})
    finally:
        await api.close()
    assert (refusal.value.status, refusal.value.reason) == (422, "SchemaOutdated")


def test_columns_show_the_job(job_api: JobApi) -> None:
    job = merged(GOOD, {"metadata": {"name": "columns"}})
    assert job_api.create(job, dry_run=False).code == 201
    status = {
        **{"stage": "Serve", "modelName": "qwen3-0.6b", "percent": "100%"},
        "run": {
            **{"number": 2, "hash": "a", "trigger": "SpecChanged", "gate": {"verdict": "Passed"}},
            "failure": {"reason": "NotReady", "message": "", "waiting": True, "since": _ago(hours=3)},
        },
        "conditions": [
            {
                **{"type": "Ready", "status": "True", "reason": "Serving"},
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    path = f"{job_api.collection('default')}/columns/status"
    answer = job_api.send("PATCH", path, {"status": status}, "application/merge-patch+json")
    assert answer.code == 200, answer.message
    shown = job_api.plane.kubectl("get", "finetunejobs.finetune-operator.io", "columns").splitlines()
    assert shown[0].split() == ["NAME", "TASK", "MODEL", "STAGE", "PROGRESS", "RUN", "GATE", "READY", "REASON", "AGE"]
    assert shown[1].split()[:-1] == ["columns", "Chat", "qwen3-0.6b", "Serve", "100%", "2", "Passed", "True", "Serving"]
    wide = job_api.plane.kubectl("get", "finetunejobs.finetune-operator.io", "columns", "-o", "wide").splitlines()
    assert wide[0].split()[9:12] == ["AGE", "SINCE", "TRIGGER"]
    assert wide[1].split()[10:12] == ["3h", "SpecChanged"]


def _ago(**time: float) -> str:
    return stamp(datetime.now(UTC) - timedelta(**time))


def test_status_is_written_by_the_subresource_only(job_api: JobApi) -> None:
    answer = job_api.create(merged(GOOD, {"metadata": {"name": "boaster"}, "status": {"stage": "Serve"}}))
    assert answer.code == 201
    assert answer.body["status"]["observedGeneration"] == 0  # the default: nobody has looked yet
    assert "stage" not in answer.body["status"]


def test_client_side_apply_of_the_definition_works(job_api: JobApi) -> None:
    # kubectl keeps the whole text in an annotation, which must stay below 262,144 bytes. Under another name,
    # because the shared definition is applied on the server's side.
    text = CRD.read_text().replace("finetune-operator.io", "client-side.example.com")
    text = text.replace("finetunejob", "othertunejob").replace("- ftj", "- otj")
    assert "created" in job_api.plane.kubectl.apply(text)
    assert "unchanged" in job_api.plane.kubectl.apply(text)
    job_api.plane.kubectl("delete", "crd", "othertunejobs.client-side.example.com", "--wait=false")


def test_a_job_stored_before_a_rule_can_still_be_changed(control_plane: ControlPlane, job_api: JobApi) -> None:
    """A tighter release must not lock up what is stored: labels, and fields that break no rule, stay editable."""
    kubectl = control_plane.kubectl
    lenient = without_rules(custom_resource_definition())
    kubectl.apply(lenient, server_side=True)
    job = merged(GOOD, {"metadata": {"name": "older"}})
    job["spec"] = merged(
        GOOD["spec"], {"method": {"type": "Full", "rank": 8}, "serving": {"engine": "VLLM"}, "compute": {"gpus": 0}}
    )

    def stored() -> bool:
        return job_api.create(job, dry_run=False).code in (201, 409)

    try:
        kubectl.wait_until(stored, 30, "the API server to forget the rules")
    finally:
        kubectl("apply", "--server-side", "-f", CRD)
    kubectl.wait_until(
        lambda: job_api.create(merged(job, {"metadata": {"name": "newer"}})).code == 422, 30, "the rules"
    )
    path = f"{job_api.collection('default')}/older"
    for patch in (
        {"metadata": {"labels": {"team": "a"}}},
        {"spec": {"hyperparameters": {"seed": 7}}},
        {"spec": {"serving": {"replicas": 2}}},
    ):
        answer = job_api.send("PATCH", path, patch, "application/merge-patch+json")
        assert answer.code == 200, answer.message
    answer = job_api.send("PATCH", path, {"spec": {"method": {"rank": 9}}}, "application/merge-patch+json")
    assert answer.code == 422
    assert "method.rank: Full has no adapter" in answer.message


def test_definition_is_established_without_complaint(job_api: JobApi) -> None:
    found = job_api.plane.kubectl.get("crd", CRD_NAME)
    assert found is not None
    wrong = [c for c in found["status"]["conditions"] if c["type"] == "NonStructuralSchema" or c["status"] != "True"]
    assert not wrong


def _strings(node: Any) -> Any:
    """The same with quantities as text: 2 and "2" are one."""
    if isinstance(node, dict):
        return {
            key: {name: str(value) for name, value in item.items()} if key in ("requests", "limits") else _strings(item)
            for key, item in node.items()
        }
    return [_strings(item) for item in node] if isinstance(node, list) else node


def field_names(model: type[BaseModel]) -> typing.Iterator[str]:
    """The names of a model's fields and of those inside, as the API has them."""
    for field in model.model_fields.values():
        yield field.alias or ""
        for inner in models_in(field.annotation):
            yield from field_names(inner)


def models_in(annotation: Any) -> typing.Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        if not isinstance(argument, types.NoneType):
            yield from models_in(argument)


def full(model: type[BaseModel]) -> dict[str, Any]:
    """An object with every field of the schema set."""
    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert model is FineTuneJobStatus
    return typing.cast(dict[str, Any], value_of(schema["properties"]["status"]))


def value_of(schema: Schema) -> Any:
    """A value that the schema accepts, with everything in it."""
    if "enum" in schema:
        return schema["enum"][-1]
    kind = schema["type"]
    if kind == "object":
        return {name: value_of(child) for name, child in schema["properties"].items()}
    if kind == "array":
        return [value_of(schema["items"])]
    if kind == "string":
        return "2026-01-01T00:00:00Z" if schema.get("format") == "date-time" else "x"
    return {"integer": 7, "number": 1.5, "boolean": True}[kind]


def without_rules(node: Any) -> Any:
    """The same definition as an earlier, more lenient release would have had it."""
    if isinstance(node, dict):
        return {key: without_rules(value) for key, value in node.items() if key != "x-kubernetes-validations"}
    return [without_rules(item) for item in node] if isinstance(node, list) else copy.copy(node)
