"""Whether a training fits, and what would: the remedies are computed, not written down."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.test_prepare_resolve import EIGHT_B, SHAPE, config, sizes

from finetune_api.conditions import FailureReason
from finetune_api.spec import MethodSpec
from finetune_api.tasks import MethodType
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape
from finetune_trainer.resolve import resolve

GIB = 2**30


def by_method(method: MethodSpec) -> ModelShape:
    trainable = EIGHT_B.trainable if method.type.adapter else EIGHT_B.parameters
    quantised = 7_000_000_000 if method.type is MethodType.QLORA else 0
    largest = 58_720_256 if quantised else 0
    return replace(
        EIGHT_B, method=method, trainable=trainable, quantised=quantised, largest=largest, by_method=by_method
    )


def notes(method: MethodType, gib: float | None, length: int = 2048, **more: Any) -> list[str]:
    spec = MethodSpec(type=method)
    memory = None if gib is None else int(gib * GIB)
    wanted = config(1, method=spec, **more).model_copy(update={"gpu_memory_bytes": memory})
    return resolve(wanted, sizes(1000, longest=length), by_method(spec), length, "r", 8).notes


def test_what_fits_is_not_spoken_of() -> None:
    assert notes(MethodType.LORA, 40) == []


def test_what_may_not_fit_is_noted() -> None:
    [note] = notes(MethodType.LORA, 17)
    assert "has 17.0 GiB: it may run out of memory" in note
    assert "weights 15." in note
    assert "method.type QLoRA (" in note


def test_what_certainly_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(UserInputError, match=r"compute\.gpuMemory: training is expected to need") as caught:
        notes(MethodType.LORA, 12)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert "method.type QLoRA (" in caught.value.advice
    assert "compute.gpus 4 with distribution.strategy ZeRO3 (" in caught.value.advice
    assert "maxLength" not in caught.value.advice  # the weights alone are too much
    assert "compute.gpuMemory of 2" in caught.value.advice


def test_a_shorter_length_is_found_where_it_suffices() -> None:
    with pytest.raises(UserInputError) as caught:
        notes(MethodType.LORA, 24, length=65_536)
    [length] = re.findall(r"maxLength (\d+) \(", caught.value.advice)
    assert 0 < int(length) < 65_536
    assert int(length) % 128 == 0
    assert notes(MethodType.LORA, 24, length=int(length)) == []


def test_full_training_of_a_large_model_is_offered_adapters() -> None:
    with pytest.raises(UserInputError) as caught:
        notes(MethodType.FULL, 40)
    assert "method.type LoRA (" in caught.value.advice
    assert "method.type QLoRA (" in caught.value.advice


def test_unknown_memory_is_a_note_with_the_field() -> None:
    [note] = notes(MethodType.LORA, None)
    assert "set compute.gpuMemory" in note


def test_a_pod_on_the_cpu_is_never_refused() -> None:
    [note] = resolve(config(memory=GIB // 2), sizes(100), SHAPE, 256, "r", 2).notes
    assert "it may run out of memory" in note
    assert "compute.resources.limits.memory of" in note
