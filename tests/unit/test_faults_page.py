"""docs/faults.md is whole and names tests that are there."""

from __future__ import annotations

import re

from tests.documented import ROOT

from finetune_api.conditions import FailureReason

PAGE = (ROOT / "docs" / "faults.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| `(tests/[\w/.]+)(?:::(\w+))?` \|", re.MULTILINE)


def test_every_reason_has_a_test() -> None:
    assert {row[0] for row in ROW.findall(PAGE)} == {str(reason) for reason in FailureReason}


def test_the_tests_are_there() -> None:
    for file, test in re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", PAGE):
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_what_the_table_of_bad_jobs_has_is_said_to_be_there() -> None:
    """Each reason whose test is the one with a case a job has its case."""
    table = (ROOT / "tests" / "e2e" / "bad_jobs.py").read_text()
    for reason, _, test in ROW.findall(PAGE):
        if test in ("test_a_bad_job_says_why_and_what_to_do", "test_what_a_namespace_refuses_is_told"):
            assert f"Reason.{FailureReason(reason).name}," in table, reason
