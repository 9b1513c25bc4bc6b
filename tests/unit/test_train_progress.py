"""Numbers that are not finite end training at once, and by name."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.errors import LossNotFiniteError
from finetune_trainer.training.progress import check_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "logs",
    [{"loss": NAN, "grad_norm": 1.0}, {"loss": INF}, {"loss": 1.0, "grad_norm": NAN}, {"eval_loss": -INF}],
)
def test_a_number_that_is_not_finite(logs: dict[str, Any]) -> None:
    with pytest.raises(LossNotFiniteError, match="at step 7") as caught:
        check_finite(logs, 7)
    assert "learningRateMultiplier" in caught.value.advice


def test_other_numbers_do_not_matter() -> None:
    check_finite({"loss": 1.5, "grad_norm": 0, "entropy": NAN, "note": "text"}, 1)
