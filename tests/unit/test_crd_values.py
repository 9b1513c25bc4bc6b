"""Values that the types take, refuse and fill in, beside those that a real API server is asked about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.fields import is_multiplier
from finetune_api.placement import Resources, Toleration
from finetune_api.spec import Hyperparameters, MethodSpec

AUTO_FIELDS = {
    "epochs": (1, 100),
    "batchSize": (1, 256),
    "maxLength": (16, 131072),
    "evaluationSteps": (1, 100000),
    "checkpointSteps": (1, 100000),
}


@pytest.mark.parametrize(("field", "low", "high"), [(name, *bounds) for name, bounds in AUTO_FIELDS.items()])
def test_auto_or_a_whole_number_within_bounds(field: str, low: int, high: int) -> None:
    for value in ("auto", low, high):
        assert Hyperparameters.model_validate({field: value}).to_wire()[field] == value
    for value in ("Auto", "", str(low), low - 1, high + 1, low + 0.5, True, [low]):
        with pytest.raises(ValidationError):
            Hyperparameters.model_validate({field: value})


@pytest.mark.parametrize("value", ["auto", 1, 9999, "1.8", "0.5", "10", "0001", "9999.999999", "0.000001"])
def test_multiplier_is_taken(value: Any) -> None:
    assert Hyperparameters.model_validate({"learningRateMultiplier": value}).learning_rate_multiplier == value


@pytest.mark.parametrize(
    "value", [0, -1, 10000, 1.8, True, "0", "0.0", "00.000", "-1", "1,8", ".5", "5.", "1e3", "12345"]
)
def test_multiplier_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        Hyperparameters.model_validate({"learningRateMultiplier": value})


@given(st.from_regex(r"[0-9]{1,4}([.][0-9]{1,6})?", fullmatch=True).filter(str.isascii))
def test_multiplier_is_every_decimal_above_0(text: str) -> None:
    assert is_multiplier(text) == (float(text) > 0)


@pytest.mark.parametrize(
    ("request_", "limit", "fits"),
    [
        ("1", "1", True),
        ("1000m", "1", True),
        ("1001m", "1", False),
        (2, "1500m", False),
        ("0.5", "500m", True),
        ("1Ki", "1k", False),
        ("1k", "1Ki", True),
        ("1Gi", "1G", False),
        ("1023Mi", "1Gi", True),
        ("1025Mi", "1Gi", False),
        ("1Ti", "1P", True),
    ],
)
def test_a_request_must_not_be_above_its_limit(request_: str | int, limit: str, fits: bool) -> None:
    value = {"requests": {"memory": request_}, "limits": {"memory": limit}}
    if fits:
        Resources.model_validate(value)
    else:
        with pytest.raises(ValidationError, match=r"requests\.memory is above its limit"):
            Resources.model_validate(value)


def test_numbers_become_text_so_that_pods_get_one_form() -> None:
    assert Resources.model_validate({"limits": {"cpu": 4}}).to_wire() == {"limits": {"cpu": "4"}}


def test_null_means_the_default() -> None:
    assert Hyperparameters.model_validate({"epochs": None, "seed": None}) == Hyperparameters()
    assert MethodSpec.model_validate({"rank": None}) == MethodSpec()


def test_messages_of_all_broken_rules_are_told() -> None:
    with pytest.raises(ValidationError) as refusal:
        Toleration.model_validate({"operator": "Equal", "effect": "NoSchedule", "tolerationSeconds": 3})
    assert "only a NoExecute taint has it" in str(refusal.value)
    assert "give the taint's key" in str(refusal.value)
