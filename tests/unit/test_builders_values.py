"""Names, quantities, requests and ranks: the small decisions inside the manifests."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulator import make_job

from finetune_api.conditions import RunResult, Stage, Trigger
from finetune_api.fields import quantity
from finetune_api.spec import ComputeSpec, Engine, Resources
from finetune_api.status import EndpointStatus, ModelStatus, RunRecord, RunStatus
from finetune_operator import names
from finetune_operator.builders.metadata import digest, owner_reference
from finetune_operator.builders.pod import resources
from finetune_operator.builders.previous import previous_run
from finetune_operator.builders.run_config_map import parse_run_config, run_config, run_config_map
from finetune_operator.builders.server import answers_for_base, engine, serving_gpus, vllm_rank
from finetune_operator.builders.shape import SHAPES
from finetune_operator.builders.stage_job import inputs_hash, stage_job
from finetune_operator.control.permissions import WATCHED_NAMESPACES
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
JOB_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True)
RUN = RunStatus(number=1, hash="0123456789abcdef", trigger=Trigger.CREATED)


@given(JOB_NAMES, st.integers(1, 10**6))
def test_names_of_children_are_valid_whatever_the_job_is_called(job: str, run: int) -> None:
    for name in (names.run_name(job, run), *(names.stage_name(job, run, stage) for stage in Stage)):
        assert len(name) <= 63
        assert LABEL.fullmatch(name), name
    assert len(names.serve_name(job)) <= 63
    assert SERVICE.fullmatch(names.serve_name(job))
    for value in names.labels(job, run, Stage.TRAIN, 1).values():
        assert len(value) <= 63
        assert VALUE.fullmatch(value), value


@given(st.lists(JOB_NAMES, unique=True, max_size=20))
def test_different_jobs_have_different_children(jobs: list[str]) -> None:
    made = [names.stage_name(job, 1, Stage.TRAIN) for job in jobs]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("length", range(40, 70))
def test_different_runs_of_a_long_name_have_different_children(length: int) -> None:
    job = "a" * length
    assert len({names.stage_name(job, run, stage) for run in (1, 2, 11) for stage in Stage}) == 3 * len(Stage)


def test_an_ordinary_name_stays_as_it_is() -> None:
    assert names.run_name("travel", 3) == "travel-r3"
    assert names.stage_name("travel", 3, Stage.TRAIN) == "travel-r3-train"
    assert names.serve_name("travel") == "travel-serve"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("pvc://models/tiny-base", "tiny-base"),
        ("pvc://models/tiny base/", "tiny-base"),
        ("s3://bucket/a/Model_1", "model_1"),
    ],
)
def test_the_base_answers_to_the_last_part_of_its_source(source: str, expected: str) -> None:
    spec = make_job().spec
    base = spec.base_model.model_copy(update={"source": source})
    assert names.base_name(spec.model_copy(update={"base_model": base})) == expected


def test_tuned_and_base_never_share_a_name() -> None:
    job = make_job(name="tiny-base")
    assert names.tuned_name(job.metadata.name, job.spec) == "tiny-base-tuned"


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512), ("2Gi", 2 * 2**30), ("1.5Gi", 3 * 2**29), ("64M", 64_000_000), ("500m", 0)]
)
def test_quantities(text: str, value: int) -> None:
    assert int(quantity(text)) == value


def test_an_unreadable_quantity_says_what_to_write() -> None:
    with pytest.raises(ValueError, match="write for example 2Gi"):
        quantity("2 gigabytes")


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (24, 32), (65, 128), (257, 320), (512, 512)])
def test_a_rank_is_rounded_up_to_one_that_vllm_takes(rank: int, allowed: int) -> None:
    assert vllm_rank(rank) == allowed


ENGINES: list[tuple[dict[str, Any], dict[str, Any], Engine, int]] = [
    ({"gpus": 0}, {}, Engine.NATIVE, 0),
    ({"gpus": 1}, {}, Engine.VLLM, 1),
    ({"gpus": 1}, {"gpus": 0}, Engine.NATIVE, 0),
    ({"gpus": 0}, {"gpus": 1}, Engine.VLLM, 1),
    ({"gpus": 1}, {"engine": "Native"}, Engine.NATIVE, 1),
]


@pytest.mark.parametrize(("compute", "serving", "wanted", "gpus"), ENGINES)
def test_auto_serving_follows_the_gpus(
    compute: dict[str, Any], serving: dict[str, Any], wanted: Engine, gpus: int
) -> None:
    spec = make_job(compute=compute, serving=serving).spec
    assert (engine(spec), serving_gpus(spec)) == (wanted, gpus)


@pytest.mark.parametrize(("gpus", "kind", "answers"), [(0, "Model", True), (1, "Model", False), (1, "Adapter", True)])
def test_who_answers_for_the_base(gpus: int, kind: Any, answers: bool) -> None:
    model = ModelStatus(run=1, uri="pvc://c/p", name="travel", kind=kind)
    assert answers_for_base(make_job(compute={"gpus": gpus}).spec, model) is answers


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {"requests": {"cpu": "500m", "memory": "1Gi"}}),
        ({"limits": {"memory": "64Mi"}}, {"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi"}}),
        ({"requests": {"memory": "2Gi"}}, {"requests": {"memory": "2Gi", "cpu": "500m"}}),
    ],
)
def test_our_requests_are_never_above_the_users_limits(wanted: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resources(Resources.model_validate(wanted), SHAPES[Stage.TRAIN].requests) == expected


def test_owner_references_need_no_right_on_finalizers() -> None:
    """blockOwnerDeletion would, where OwnerReferencesPermissionEnforcement is on (OpenShift); neither is there."""
    assert not owner_reference(make_job()).get("blockOwnerDeletion")
    assert not [each for each in WATCHED_NAMESPACES if each.resource.endswith("/finalizers")]


def test_the_snapshot_can_be_read_back() -> None:
    job = make_job(compute={"gpus": 1, "resources": {"limits": {"memory": "4Gi"}}})
    config = run_config(job, RUN, Settings())
    assert parse_run_config(run_config_map(job, RUN, Settings())) == config
    assert config.memory_limit_bytes == 4 * 2**30
    assert config.paths.run == "team-a/travel/runs/1-01234567"
    assert (config.base_name, config.tuned_name) == ("tiny-base", "travel")


@pytest.mark.parametrize("config_map", [None, {}, {"data": None}, {"data": {"run.json": "{"}}])
def test_a_snapshot_that_cannot_be_read_is_none(config_map: Any) -> None:
    assert parse_run_config(config_map) is None


def test_one_config_map_with_two_files_is_mounted_once() -> None:
    files = {
        "train": {"configMapRef": {"name": "travel-data", "key": "train.jsonl"}},
        "validation": {"configMapRef": {"name": "travel-data", "key": "validation.jsonl"}},
    }
    job = stage_job(make_job(dataset=files), RUN, Stage.PREPARE, Settings())
    mounts = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    paths = [mount["mountPath"] for mount in mounts if mount["mountPath"].startswith("/sources")]
    assert paths == ["/sources/pvc/models", "/sources/configmap/travel-data"]


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_what_may_right_a_failed_stage_is_compute_and_secrets() -> None:
    same = inputs_hash(make_job(), Stage.TRAIN)
    assert inputs_hash(make_job(serving={"replicas": 5}), Stage.TRAIN) == same
    assert inputs_hash(make_job(compute={"gpus": 1}), Stage.TRAIN) != same
    base = {"source": "pvc://models/tiny-base", "secretRef": {"name": "token"}}
    assert inputs_hash(make_job(baseModel=base), Stage.TRAIN) != same


def test_the_secrets_of_exports_are_what_may_right_a_package_alone() -> None:
    export = {"name": "a", "to": "s3://bucket/a", "secretRef": {"name": "keys"}}
    plain, exported = make_job(), make_job(output={"claimName": "models", "exports": [export]})
    assert inputs_hash(plain, Stage.PACKAGE) != inputs_hash(exported, Stage.PACKAGE)
    assert inputs_hash(plain, Stage.TRAIN) == inputs_hash(exported, Stage.TRAIN)


def test_a_field_that_a_later_version_adds_gives_no_failed_job_another_try() -> None:
    class LaterCompute(ComputeSpec):
        later: str = "default"

    def with_compute(value: ComputeSpec) -> str:
        spec = job.spec.model_copy(update={"compute": value})
        return inputs_hash(job.model_copy(update={"spec": spec}), Stage.TRAIN)

    job = make_job(compute={"gpus": 0, "resources": {"limits": {"memory": "4Gi"}}})
    compute = LaterCompute.model_validate(job.spec.compute.to_wire())
    assert with_compute(compute) == inputs_hash(job, Stage.TRAIN)
    assert with_compute(compute.model_copy(update={"later": "another"})) != inputs_hash(job, Stage.TRAIN)


MIB = 2**20


def volumes_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in manifest["spec"]["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE])
def test_scratch_space_is_bounded_and_follows_the_users_limit(stage: Stage) -> None:
    def size(volume: str, **compute: Any) -> float:
        volumes = volumes_of(stage_job(make_job(compute={"gpus": 0, **compute}), RUN, stage, Settings()))
        return quantity(volumes[volume]["emptyDir"]["sizeLimit"])

    assert 1024 * MIB <= size("tmp") <= 16 * 1024 * MIB
    limits = {"limits": {"ephemeral-storage": "40Gi"}}
    assert size("tmp", resources=limits) == 40 * 1024 * MIB
    if stage is not Stage.PREPARE:
        assert 1024 * MIB <= size("shm") <= 4 * 1024 * MIB


def test_prepare_takes_the_users_scratch_space_and_nothing_else_of_compute() -> None:
    amounts = {"requests": {"cpu": "8", "ephemeral-storage": "2Gi"}, "limits": {"memory": "64Gi"}}
    job = stage_job(make_job(compute={"gpus": 0, "resources": amounts}), RUN, Stage.PREPARE, Settings())
    given = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert given == {"requests": {"ephemeral-storage": "2Gi", "cpu": "250m", "memory": "512Mi"}}


def test_the_platforms_mirror_is_known_to_the_stage_that_reaches_out_and_to_no_other() -> None:
    settings = Settings(source_env=(("HF_ENDPOINT", "https://hub.example.com"),))
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
        spec = stage_job(make_job(), RUN, stage, settings)["spec"]["template"]["spec"]
        given = {each["name"]: each["value"] for each in spec["containers"][0]["env"]}
        assert ("HF_ENDPOINT" in given) == (stage is Stage.PREPARE)


def earlier(number: int, claim: str = "models") -> ModelStatus:
    root = f"pvc://{claim}/team-a"
    return ModelStatus(
        run=number,
        uri=f"{root}/travel/runs/{number}-aa/model",
        base_uri=f"{root}/models/tiny@1",
        name="travel",
        kind="Adapter",
    )


def record(number: int, result: RunResult) -> RunRecord:
    return RunRecord(number=number, hash="a", trigger=Trigger.SPEC_CHANGED, result=result, model=earlier(number))


HISTORY = [record(1, RunResult.PROMOTED), record(2, RunResult.GATE_FAILED), record(4, RunResult.PROMOTED)]


@pytest.mark.parametrize(
    ("served", "run", "expected"),
    [(None, 1, None), (None, 3, 1), (4, 5, 4), (1, 5, 1), (4, 4, 1), (None, 5, 4)],
    ids=["the first", "not yet served", "the one in service", "rolled back", "measured again", "nothing served"],
)
def test_the_previous_run_is_the_one_in_service_or_the_last_promoted(
    served: int | None, run: int, expected: int | None
) -> None:
    job = make_job(evaluation={"baselines": ["Previous"]})
    status = job.status.model_copy(update={"model": served and earlier(served), "runs": HISTORY})
    found = previous_run(job.model_copy(update={"status": status}), RUN.model_copy(update={"number": run}), "models")
    assert (found and found.run) == expected
    assert found is None or (found.path, found.base_path, found.claim, found.mounted) == (
        f"team-a/travel/runs/{expected}-aa/model",
        "team-a/models/tiny@1",
        None,
        True,
    )


@pytest.mark.parametrize("serves", [True, False])
def test_a_previous_run_on_another_claim_is_mounted_read_only_while_a_server_proves_that_the_claim_is_there(
    serves: bool,
) -> None:
    job = make_job(evaluation={"baselines": ["Previous"]})
    endpoint = EndpointStatus(url="http://travel", model="travel", base_model="tiny", run=1)
    status = job.status.model_copy(update={"model": earlier(1, "old"), "endpoint": endpoint if serves else None})
    manifest = stage_job(job.model_copy(update={"status": status}), with_run(2), Stage.EVALUATE, Settings())
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    told = json.loads(next(e["value"] for e in container["env"] if e["name"] == "FINETUNE_PREVIOUS"))
    assert (told["run"], told["claim"], told["mounted"]) == (1, "old", serves)
    mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "previous"]
    assert mounts == ([{"name": "previous", "mountPath": "/sources/pvc/old", "readOnly": True}] if serves else [])
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == (["models", "old"] if serves else ["models"])


def with_run(number: int) -> RunStatus:
    return RUN.model_copy(update={"number": number})


def test_who_does_not_ask_for_it_is_told_of_no_previous_run() -> None:
    job = make_job()
    status = job.status.model_copy(update={"model": earlier(1)})
    manifest = stage_job(job.model_copy(update={"status": status}), with_run(2), Stage.EVALUATE, Settings())
    assert "FINETUNE_PREVIOUS" not in json.dumps(manifest)
