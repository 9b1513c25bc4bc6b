"""Every mistake of the table is refused by the real API server with its message, and on a laptop, too."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.integration.bad_budget import BUDGETS
from tests.integration.bad_continuation import CONTINUATION
from tests.integration.bad_distribution import DISTRIBUTION
from tests.integration.bad_evaluation import EVALUATION
from tests.integration.bad_exports import EXPORT_RULES
from tests.integration.bad_hyperparameters import HYPERPARAMETER_RULES
from tests.integration.bad_manifests import GOOD, OURS, Bad
from tests.integration.bad_placement import PLACEMENT
from tests.integration.bad_schema import THEIRS
from tests.integration.bad_serving import SERVING_RULES
from tests.integration.bad_tasks import TASK_RULES
from tests.integration.bad_triggers import TRIGGER_RULES, TRIGGER_SCHEMA
from tests.integration.conftest import JobApi

from finetune_api.job import FineTuneJob

RULES = (
    *OURS,
    *PLACEMENT,
    *TASK_RULES,
    *EXPORT_RULES,
    *EVALUATION,
    *HYPERPARAMETER_RULES,
    *DISTRIBUTION,
    *BUDGETS,
    *CONTINUATION,
    *SERVING_RULES,
    *TRIGGER_RULES,
)
SCHEMA = (*THEIRS, *TRIGGER_SCHEMA)


def test_what_the_mistakes_are_made_from_is_good(job_api: JobApi) -> None:
    answer = job_api.create(GOOD)
    assert answer.code == 201, answer.message


@pytest.mark.parametrize("bad", [*RULES, *SCHEMA], ids=lambda bad: bad.name)
def test_api_server_names_field_and_remedy(job_api: JobApi, bad: Bad) -> None:
    answer = job_api.create(bad.manifest())
    assert answer.code in (400, 422), answer.body
    assert bad.message in answer.message
    assert bad.field in answer.message


def test_two_mistakes_of_one_rule_of_the_definition_are_both_named(job_api: JobApi) -> None:
    both = "{hyperparameters: {loss: Hinge}, evaluation: {gate: {rules: [{metric: bleu, max: '1'}]}}}"
    answer = job_api.create(Bad("two mistakes", both, "spec", "").manifest())
    assert "toolName, toolValid, toolExact; use one of them. hyperparameters.loss: the task Chat has" in answer.message


@pytest.mark.parametrize("bad", RULES, ids=lambda bad: bad.name)
def test_laptop_says_the_same(bad: Bad) -> None:
    with pytest.raises(ValidationError) as refusal:
        FineTuneJob.model_validate(bad.manifest())
    assert bad.message in str(refusal.value)


@pytest.mark.parametrize("bad", [*RULES, *SCHEMA], ids=lambda bad: bad.name)
def test_laptop_refuses_what_the_api_server_refuses(bad: Bad) -> None:
    with pytest.raises(ValidationError):
        FineTuneJob.model_validate(bad.manifest())


def test_table_is_large_enough_and_names_are_unique() -> None:
    names = [bad.name for bad in (*RULES, *SCHEMA)]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
