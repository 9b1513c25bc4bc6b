"""What trackers are told of a finished run: every model that was measured, and all that was measured of it."""

from __future__ import annotations

import re

from finetune_api.reports import EvaluateReport
from finetune_trainer.tracking.story import _results

SCORES = {"loss": 1.5, "perplexity": 4.5}
# What MLflow takes for a name.
NAME = re.compile(r"[\w./ :-]+")


def test_everything_that_was_measured_is_told() -> None:
    benchmark = {"task": "gsm8k", "metric": "exact_match,strict-match", "base": 0.25, "tuned": 0.5}
    report = EvaluateReport.model_validate(
        {
            "evaluation": {
                "examples": 20,
                **dict.fromkeys(("base", "fewShot", "retrieval", "previous", "tuned"), SCORES),
                "checks": [
                    {"name": "short", "asked": 4, "base": 0.0, "tuned": 0.75},
                    {"name": "never-asked", "asked": 0, "tuned": 0.0},
                ],
                "benchmarks": [benchmark],
                "judge": {"asked": 4, "wins": 3, "losses": 1, "share": 0.75},
            }
        }
    )
    found = dict(_results(report))
    assert found.keys() >= {f"{name}/loss" for name in ("base", "few_shot", "retrieval", "previous", "tuned")}
    assert (found["base/check/short"], found["tuned/check/short"]) == (0.0, 0.75)
    assert (found["base/benchmark/gsm8k/exact_match-strict-match"], found["tuned/judge/share"]) == (0.25, 0.75)
    assert not any("never-asked" in name for name in found)
    assert all(NAME.fullmatch(name) for name in found)
