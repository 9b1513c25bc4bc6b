"""Other evaluation settings: what was trained is measured again, and nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.simulator import Cluster, Manifest, good_summary, make_job, succeed

from finetune_api.conditions import RunResult, Stage
from finetune_api.job import evaluation_hash, evaluation_inputs
from finetune_api.spec import EvaluationSpec
from finetune_operator import names

MORE = {"maxExamples": 900}
EVALUATE = "Job/travel-r1-evaluate"


def made(cluster: Cluster, stage: str) -> int:
    return sum(1 for name in cluster.created if name.endswith(f"-{stage}"))


def told(cluster: Cluster, name: str = "travel-r1-evaluate") -> dict[str, Any]:
    """The settings that the Evaluate pod gets."""
    (container,) = cluster.objects["Job", name]["spec"]["template"]["spec"]["containers"]
    return dict(json.loads(next(e["value"] for e in container["env"] if e["name"] == "FINETUNE_EVALUATION")))


def by_settings(pod: Manifest) -> tuple[int, str]:
    """With 900 examples the tuned model looks worse than its base."""
    env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}
    if "900" in env.get("FINETUNE_EVALUATION", ""):
        return 0, good_summary("Evaluate", int(pod["metadata"]["labels"][names.LABEL_RUN]), tuned=3.0)
    return succeed(pod)


def before_its_hash_was_kept(cluster: Cluster) -> Cluster:
    """The objects as an operator leaves them that knows no hash of the settings."""
    run = cluster.job.status.run
    assert run is not None
    assert run.evaluation is not None
    old = run.evaluation.model_copy(update={"settings_hash": None})
    records = [record.model_copy(update={"evaluation": old}) for record in cluster.job.status.runs]
    run = run.model_copy(update={"evaluation": old})
    cluster.write_status(cluster.job.status.model_copy(update={"run": run, "runs": records}))
    job = cluster.objects["Job", "travel-r1-evaluate"]
    job["metadata"]["annotations"].pop(names.ANNOTATION_EVALUATION_HASH)
    return cluster


@pytest.mark.parametrize("change", [MORE, {"baselines": ["FewShot"]}, {"sampleAnswers": 0}, {"maxExamples": 10}])
def test_a_finished_run_is_measured_again_by_other_settings(change: dict[str, Any]) -> None:
    cluster = Cluster(make_job()).run().change(evaluation=change)
    cluster.execute(cluster.plan())
    assert cluster.condition("Ready") == ("False", "Evaluating")
    assert cluster.condition("Evaluated") == ("Unknown", "MeasuredAgain")
    assert cluster.condition("Promoted")[0] == cluster.condition("Serving")[0] == "True"
    cluster.run()
    assert told(cluster) == change
    assert (made(cluster, "train"), made(cluster, "evaluate")) == (1, 2)
    run = cluster.job.status.run
    assert run is not None
    assert run.evaluation is not None
    assert run.evaluation.settings_hash == evaluation_hash(cluster.job.spec.evaluation)
    assert (run.number, run.attempt) == (1, 1)
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.events().count("RunStarted") == 1
    assert cluster.events().count("Evaluated") == 2


def test_the_old_verdict_and_model_stay_until_the_new_verdict() -> None:
    cluster = Cluster(make_job(), answer=by_settings).run().change(evaluation=MORE)

    def served(c: Cluster) -> bool:
        assert c.condition("Serving") == ("True", "Available")
        assert [(r.number, r.result) for r in c.job.status.runs] == [(1, RunResult.PROMOTED)]
        return c.job.status.stage is Stage.EVALUATE and c.condition("Promoted") != ("True", "GatePassed")

    cluster.run(until=served)
    assert cluster.condition("Promoted") == ("True", "PromotedBefore")
    assert cluster.condition("Ready") == ("True", "Serving")


def test_a_new_measurement_may_pass_what_had_failed() -> None:
    cluster = Cluster(make_job(evaluation=MORE), answer=by_settings).run()
    assert cluster.condition("Ready") == ("False", "GateFailed")
    cluster.change(evaluation=None).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert [r.result for r in cluster.job.status.runs] == [RunResult.PROMOTED]
    assert made(cluster, "train") == 1


def test_a_measurement_under_way_begins_again() -> None:
    cluster = Cluster(make_job())
    cluster.run(until=lambda c: c.job.status.stage is Stage.EVALUATE and bool(c.pods) and running(c))
    cluster.change(evaluation=MORE).run()
    assert told(cluster) == MORE
    assert (made(cluster, "train"), made(cluster, "evaluate")) == (1, 2)
    assert cluster.condition("Ready") == ("True", "Serving")


def running(cluster: Cluster) -> bool:
    return any("evaluate" in p["metadata"]["name"] and p["status"]["phase"] == "Running" for p in cluster.pods)


def test_a_measurement_that_fails_takes_nothing_away_and_the_old_settings_bring_it_back() -> None:
    def answer(pod: Manifest) -> tuple[int, str]:
        return (13, "") if by_settings(pod) != succeed(pod) else succeed(pod)

    cluster = Cluster(make_job(), answer=answer).run().change(evaluation=MORE).run()
    assert cluster.condition("Ready") == ("False", "ArtifactInvalid")
    assert cluster.condition("Serving") == ("True", "Available")
    assert [r.result for r in cluster.job.status.runs] == [RunResult.PROMOTED]
    cluster.change(evaluation=None).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.condition("Evaluated") == ("True", "Measured")
    assert ("Job", "travel-r1-evaluate") not in cluster.objects
    assert made(cluster, "evaluate") == 2


def test_failed_settings_are_mended_by_others() -> None:
    cluster = Cluster(
        make_job(evaluation=MORE),
        answer=lambda pod: (13, "") if by_settings(pod)[1] != succeed(pod)[1] else succeed(pod),
    ).run()
    assert cluster.condition("Stalled") == ("True", "ArtifactInvalid")
    cluster.change(evaluation=None).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert made(cluster, "train") == 1


def test_an_earlier_run_is_measured_by_the_present_settings_and_keeps_its_verdict_until_then() -> None:
    cluster = Cluster(make_job()).run().change(hyperparameters={"epochs": 2}).run()
    before = len(cluster.events())
    cluster.change(hyperparameters=None, evaluation=MORE)
    cluster.execute(cluster.plan())
    assert [r.result for r in cluster.job.status.runs] == [RunResult.PROMOTED] * 2
    cluster.run()
    assert (made(cluster, "train"), made(cluster, "evaluate")) == (2, 3)
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1
    assert sorted(cluster.events()[before:]) == ["Evaluated", "RunStarted", "Serving"]


def test_an_upgrade_measures_nothing_again() -> None:
    cluster = before_its_hash_was_kept(Cluster(make_job(evaluation={"sampleAnswers": 2})).run())
    before = list(cluster.created)
    cluster.run()
    assert cluster.created == before
    assert cluster.condition("Ready") == ("True", "Serving")
    cluster.objects.pop(("ConfigMap", "travel-r1"))  # nobody knows any more what it was measured by
    cluster.run()
    assert made(cluster, "evaluate") == 1


def test_settings_that_changed_before_the_upgrade_act_after_it() -> None:
    cluster = before_its_hash_was_kept(Cluster(make_job()).run()).change(evaluation=MORE).run()
    assert told(cluster) == MORE
    assert (made(cluster, "train"), made(cluster, "evaluate")) == (1, 2)


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"baselines": ["Base"], "maxExamples": 500},
        {"gate": {"rules": []}},
        {"fewShotExamples": 5},  # nobody asked for that baseline
    ],
)
def test_what_means_the_same_is_not_measured_again(same: dict[str, Any]) -> None:
    cluster = Cluster(make_job()).run().change(evaluation=same).run()
    assert made(cluster, "evaluate") == 1
    assert cluster.condition("Ready") == ("True", "Serving")


def test_the_hash_of_the_settings_never_changes() -> None:
    """A released operator has written these; another value would measure every model of every user anew."""
    few = EvaluationSpec.model_validate({"baselines": ["FewShot", "Base"], "fewShotExamples": 5, "maxExamples": 900})
    assert evaluation_inputs(EvaluationSpec()) == {}
    assert evaluation_hash(EvaluationSpec()) == "44136fa355b3678a"
    assert evaluation_inputs(few) == {"baselines": ["FewShot"], "fewShotExamples": 5, "maxExamples": 900}
    assert evaluation_hash(EvaluationSpec.model_validate(evaluation_inputs(few))) == evaluation_hash(few)
