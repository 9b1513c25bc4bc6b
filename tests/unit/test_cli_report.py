"""What the command line says of figures: no more than they show."""

from __future__ import annotations

import pytest

from finetune_api.status import Interval
from finetune_operator.cli.report import certainty


@pytest.mark.parametrize(
    ("low", "high", "examples", "words"),
    [
        (0.2, 0.4, 10, "lower by 0.20 to 0.40 (95 % interval), so it is not by chance."),
        (-0.1, 0.4, 10, "lower by -0.10 to 0.40 (95 % interval), so it may be by chance; more held-out examples tell."),
        (-0.4, -0.2, 10, "higher by 0.20 to 0.40 (95 % interval): training made it worse."),
        (0.2, 0.4, 9, "but 9 held-out examples are too few to trust that; hold out at least 10."),
        (-0.4, -0.2, 3, "but 3 held-out examples are too few to trust that; hold out at least 10."),
    ],
)
def test_an_interval_is_as_certain_as_its_examples(low: float, high: float, examples: int, words: str) -> None:
    assert certainty(Interval(low=low, high=high), examples).endswith(words)
