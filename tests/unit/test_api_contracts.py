"""What other programs rely on: the run's hash, the termination message, the snapshot."""

from __future__ import annotations

import json
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import MaxLen
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from finetune_api.conditions import FailureReason, Stage
from finetune_api.job import SNAPSHOT_INPUTS, FineTuneJob, content_hash, run_hash, training_inputs
from finetune_api.reports import MAX_MESSAGE_BYTES, ModelSummary, StageFailure, Summary, parse_summary
from finetune_api.run_config import RunConfig
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Checkpoint, DatasetStatus, EvaluationStatus, Problem, ResolvedValues

SMALL: dict[str, Any] = {
    "baseModel": {"source": "hf://Qwen/Qwen3-0.6B"},
    "dataset": {"train": {"source": "pvc://datasets/travel.jsonl"}},
    "output": {"claimName": "models"},
}
FULL: dict[str, Any] = {
    **SMALL,
    "task": "Completion",
    "baseModel": {"source": "hf://Qwen/Qwen3-0.6B", "revision": "a" * 40, "secretRef": {"name": "hf"}},
    "dataset": {
        "train": {"configMapRef": {"name": "data", "key": "train.jsonl"}},
        "validation": {"fraction": 0.2},
        "maxLostPercent": 0,
    },
    "method": {"type": "LoRA", "rank": 8, "targetModules": ["q_proj", "v_proj"]},
    "hyperparameters": {"epochs": 3, "learningRateMultiplier": "1.8"},
    "rerunToken": "may",
}


def spec(**parts: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate({**SMALL, **parts})


def test_the_hash_of_a_run_never_changes() -> None:
    """A released operator has written these hashes; another value would train every job of every user anew."""
    assert run_hash(spec()) == "0c9a5e2172435891"
    assert run_hash(FineTuneJobSpec.model_validate(FULL)) == "80ec5ebcccde612e"


def test_only_what_was_given_is_hashed() -> None:
    """So a field that a later version adds, with a default, leaves older jobs as they are."""
    assert training_inputs(spec()) == {
        "baseModel": {"source": "hf://Qwen/Qwen3-0.6B"},
        "dataset": {"train": {"source": "pvc://datasets/travel.jsonl"}},
    }


DEFAULTS: list[dict[str, Any]] = [
    {"task": "Chat"},
    {"method": {"type": "LoRA"}},
    {"hyperparameters": {}},
    {"hyperparameters": {"epochs": "auto", "seed": 42, "packing": "auto"}},
    {"dataset": {**SMALL["dataset"], "maxLostPercent": 5, "validation": {"fraction": 0.1}}},
]
ELSEWHERE: list[dict[str, Any]] = [
    {"compute": {"gpus": 0, "resources": {"limits": {"memory": "8Gi"}}}},
    {"serving": {"replicas": 0, "run": 1}},
    {"evaluation": {"gate": {"rules": [{"metric": "loss", "max": "1"}]}}},
    {"output": {"claimName": "other"}},
    {"baseModel": {**SMALL["baseModel"], "secretRef": {"name": "token"}}},
    {"dataset": {**SMALL["dataset"], "secretRef": {"name": "token"}}},
]
INPUTS: list[dict[str, Any]] = [
    {"task": "Completion"},
    {"method": {"type": "Full"}},
    {"method": {"rank": 8}},
    {"hyperparameters": {"epochs": 2}},
    {"hyperparameters": {"seed": 7}},
    {"baseModel": {"source": "hf://Qwen/Qwen3-1.7B"}},
    {"baseModel": {**SMALL["baseModel"], "revision": "b" * 40}},
    {"dataset": {"train": {"source": "pvc://datasets/other.jsonl"}}},
    {"dataset": {**SMALL["dataset"], "validation": {"fraction": 0.2}}},
    {"rerunToken": "again"},
]


@pytest.mark.parametrize("parts", DEFAULTS + ELSEWHERE)
def test_what_training_does_not_depend_on_leaves_the_hash(parts: dict[str, Any]) -> None:
    assert run_hash(spec(**parts)) == run_hash(spec())


@pytest.mark.parametrize("parts", INPUTS)
def test_what_training_depends_on_changes_the_hash(parts: dict[str, Any]) -> None:
    assert run_hash(spec(**parts)) != run_hash(spec())


def test_the_snapshot_has_every_input() -> None:
    """What the hash covers, the trainer must get: otherwise it would be an input that nobody uses."""
    assert set(SNAPSHOT_INPUTS) <= RunConfig.model_fields.keys()
    for parts in INPUTS[:-1]:
        assert training_inputs(spec(**parts)).keys() <= {to_camel(name) for name in SNAPSHOT_INPUTS}


def test_a_token_alone_leaves_the_contents() -> None:
    assert content_hash(spec(rerunToken="again")) == content_hash(spec()) == run_hash(spec())
    assert len({content_hash(spec(**parts)) for parts in INPUTS}) == len(INPUTS)


def test_every_input_has_a_hash_of_its_own() -> None:
    assert len({run_hash(spec(**parts)) for parts in INPUTS}) == len(INPUTS)


ANY_TEXT = st.text(max_size=6000)


@given(ANY_TEXT, ANY_TEXT, st.lists(ANY_TEXT, max_size=8), st.lists(st.text(max_size=512), max_size=10))
def test_a_summary_always_fits_and_can_be_read_again(
    message: str, advice: str, notes: list[str], problems: list[str]
) -> None:
    summary = Summary(
        stage=Stage.PREPARE,
        ok=False,
        run=1,
        failure=StageFailure(reason=FailureReason.DATASET_INVALID, message=message, advice=advice),
        dataset=DatasetStatus(
            problems=[Problem(check="c" * 253, count=1, lines=[10**9] * 20, message=text) for text in problems]
        ),
        notes=notes,
    )
    text = summary.to_message()
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    again = parse_summary(text)
    assert again is not None
    assert again.failure is not None
    assert again.failure.reason is FailureReason.DATASET_INVALID


@pytest.mark.parametrize("character", ["\x00", "\x1f", "💥", "ü", '"', "\\", "\n"])
def test_characters_that_grow_in_json_still_fit(character: str) -> None:
    failure = StageFailure(reason=FailureReason.SYSTEM_FAULT, message=character * 9000, advice=character * 9000)
    summary = Summary(stage=Stage.TRAIN, ok=False, failure=failure, notes=[character * 9000] * 9)
    assert len(summary.to_message().encode()) <= MAX_MESSAGE_BYTES


def largest(annotation: Any, field: FieldInfo | None = None, character: str = "x") -> Any:
    """The largest value of a type: every field filled, every text and list as long as allowed, every number long."""
    bounds = {type(each).__name__: each for each in (field.metadata if field else ())}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return largest(next(a for a in arguments if a is not NoneType), field, character)
    if origin is Annotated:
        return largest(arguments[0], FieldInfo.from_annotation(annotation), character)
    if origin is list:
        return [largest(arguments[0], None, character)] * bounds.get("MaxLen", MaxLen(200)).max_length
    if origin is Literal:
        return max(arguments, key=len)
    if issubclass(annotation, BaseModel):
        parts = annotation.model_fields.items()
        return annotation.model_construct(**{name: largest(f.annotation, f, character) for name, f in parts})
    if issubclass(annotation, Enum):
        return max(annotation, key=lambda member: len(str(member.value)))
    if annotation is bool:
        return False
    if issubclass(annotation, int):
        return 2**63 - 1
    if annotation is float:
        return -1.2345678901234567e-289
    assert annotation is str, annotation
    return character * bounds.get("MaxLen", MaxLen(6000)).max_length


PATH = f"{'n' * 63}/{'j' * 253}/runs/999-01234567/model"


@pytest.mark.parametrize("character", ["x", "ü", "\x00", "💥", '"'])
@pytest.mark.parametrize(
    "without", [(), *[(name,) for name in sorted(Summary.model_fields.keys() - {"stage", "ok", "run"})]]
)
def test_the_largest_summary_fits_with_whatever_a_later_version_adds(character: str, without: tuple[str, ...]) -> None:
    full = largest(Summary, None, character)
    fields = Summary.model_fields
    summary = full.model_copy(update={name: fields[name].get_default() for name in without})
    text = summary.to_message()
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    again = parse_summary(text)
    assert again is not None
    assert (again.stage, again.ok, again.run) == (summary.stage, summary.ok, summary.run)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE])
def test_what_the_control_plane_needs_survives_the_cutting(stage: Stage) -> None:
    """Whatever explains a stage's result may be cut; what its successor and the gate work with may not."""
    parts: dict[Stage, dict[str, Any]] = {
        Stage.PREPARE: {"dataset": largest(DatasetStatus), "resolved": largest(ResolvedValues), "base_path": PATH},
        Stage.TRAIN: {
            "model": ModelSummary(path=PATH, base_path=PATH, kind="Adapter", sha256="a" * 64),
            "resolved": largest(ResolvedValues),
            "checkpoint": Checkpoint(step=9),
        },
        Stage.EVALUATE: {"evaluation": largest(EvaluationStatus)},
    }
    notes = ["💥" * 2000] * 40
    summary = Summary(stage=stage, ok=True, run=3, hash="0123456789abcdef", notes=notes, **parts[stage])
    text = summary.to_message()
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    again = parse_summary(text)
    assert again is not None
    assert (again.model, again.base_path, again.hash) == (summary.model, summary.base_path, summary.hash)
    if again.dataset and summary.dataset:
        assert again.dataset.train_examples == summary.dataset.train_examples
        assert again.dataset.problems[0].lines
    if summary.evaluation and summary.evaluation.tuned and summary.evaluation.base:
        assert again.evaluation is not None
        for name in ("base", "tuned"):
            found, was = getattr(again.evaluation, name), getattr(summary.evaluation, name)
            for metric in type(was).model_fields.keys() - {"loss_interval"}:
                assert getattr(found, metric) == pytest.approx(getattr(was, metric), rel=1e-4), metric


def test_a_short_summary_is_not_cut() -> None:
    summary = Summary(stage=Stage.TRAIN, ok=True, run=3, steps=40, notes=["The micro batch was halved to 2."])
    assert parse_summary(summary.to_message()) == summary


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        "",
        "Done.",
        "{",
        "[]",
        "null",
        "1",
        '{"stage": "Train"}',
        '{"stage": "Nonsense", "ok": true}',
        "\x00",
        "{}" * 9,
    ],
)
def test_what_is_not_a_summary_is_none(garbage: str | None) -> None:
    assert parse_summary(garbage) is None


TIMES = {
    "2026-01-31T08:00:00Z": True,
    "2026-01-31T08:00:00.123456Z": True,
    "2026-01-31T08:00:00+01:00": True,
    "": False,
    "zzz": False,
    "2026-01-31": False,
    "2026-01-31T08:00:00": False,
    "2026-01-31 08:00:00Z": False,
    "2026-02-30T08:00:00Z": False,
    "2026-01-31T24:00:00Z": False,
    "2026-01-31T08:60:00Z": False,
    "2026-01-31T08:00:00+25:00": False,
    "2026-W05-6T08:00:00Z": False,
    "20260131T080000Z": False,
    "٢٠٢٦-01-31T08:00:00Z": False,
    "2026-01-31T08:00:00Z\n": False,
}


@pytest.mark.parametrize(("time", "taken"), TIMES.items())
def test_a_summary_with_a_time_that_the_api_server_refuses_is_none(time: str, taken: bool) -> None:
    checkpoint = {"stage": "Train", "ok": True, "checkpoint": {"step": 1, "time": time}}
    begun = {"stage": "Prepare", "ok": True, "begunBy": {"trigger": "Schedule", "time": time}}
    assert [parse_summary(json.dumps(each)) is not None for each in (checkpoint, begun)] == [taken, taken]


def test_what_a_newer_trainer_adds_is_ignored() -> None:
    summary = parse_summary('{"stage": "Train", "ok": true, "run": 1, "carbon": 12}')
    assert summary is not None
    assert summary.run == 1


@given(st.text(max_size=300))
def test_no_message_breaks_the_parser(text: str) -> None:
    parse_summary(text)


def test_a_job_reads_its_own_wire_form() -> None:
    job = FineTuneJob.model_validate({"metadata": {"name": "travel"}, "spec": FULL})
    assert FineTuneJob.model_validate(job.to_wire()) == job
    assert job.key == "default/travel"


def test_a_snapshot_without_a_schema_version_we_know_is_refused() -> None:
    with pytest.raises(ValueError, match="schemaVersion"):
        RunConfig.model_validate({"schemaVersion": "v9"})
