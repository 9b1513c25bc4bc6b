"""The judge: asked after Evaluate, before the gate, in a pod of its own; and not at all where none is named."""

from __future__ import annotations

import json
from typing import Any

from tests.simulator import Answer, Cluster, Manifest, good_summary, make_job, succeed

from finetune_api.conditions import RunResult, Stage
from finetune_operator import names

JUDGE = {"url": "https://llm.example.com/v1", "model": "judge-70b", "secretRef": {"name": "judge-key"}}
PREFERRED = {"rules": [{"check": "judge", "minShare": "80%"}]}


def judged(answer: Answer = succeed, gate: Any = None, **judge: Any) -> Cluster:
    evaluation = {"judge": {**JUDGE, **judge}, **({"gate": gate} if gate else {})}
    return Cluster(make_job(evaluation=evaluation), answer=answer)


def made(cluster: Cluster, stage: str) -> int:
    return cluster.created.count(f"Job/travel-r1-{stage}")


def stage_of(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][names.LABEL_STAGE])


def test_a_run_is_judged_before_its_gate() -> None:
    cluster = judged(gate=PREFERRED)
    cluster.run(until=lambda c: c.job.status.stage is Stage.JUDGE)
    assert cluster.condition("Evaluated") == ("True", "Measured")
    assert cluster.condition("Judged") == ("Unknown", "Pending")
    assert cluster.condition("Promoted") == ("Unknown", "Pending")
    cluster.run()
    assert cluster.condition("Judged") == ("True", "Judged")
    assert cluster.condition("Ready") == ("True", "Serving")
    run = cluster.job.status.run
    assert run is not None
    assert run.gate is not None
    assert run.gate.reasons == ["judge: prefers the tuned model in 81.2 % of 8 questions, at least 80 % wanted"]
    assert "Judged" in cluster.events()
    assert (made(cluster, "evaluate"), made(cluster, "judge")) == (1, 1)


def test_what_the_judge_does_not_prefer_is_not_promoted() -> None:
    cluster = judged(gate={"rules": [{"check": "judge", "minShare": "90%"}]}).run()
    assert cluster.condition("Ready") == ("False", "GateFailed")
    assert [record.result for record in cluster.job.status.runs] == [RunResult.GATE_FAILED]


def test_without_a_judge_there_is_neither_pod_nor_condition() -> None:
    cluster = Cluster(make_job()).run()
    assert made(cluster, "judge") == 0
    assert "Judged" not in [condition.type for condition in cluster.job.status.conditions]


def test_only_the_pod_of_the_judge_gets_its_secret_and_it_takes_no_gpu() -> None:
    cluster = Cluster(make_job(evaluation={"judge": JUDGE}, compute={"gpus": 1})).run()
    for stage in ("prepare", "train", "evaluate", "judge"):
        (container,) = cluster.objects["Job", f"travel-r1-{stage}"]["spec"]["template"]["spec"]["containers"]
        assert ("judge-key" in json.dumps(container)) == (stage == "judge")
        assert ("nvidia.com/gpu" in json.dumps(container["resources"])) == (stage in ("train", "evaluate"))
    env = {each["name"]: each["value"] for each in container["env"]}
    assert json.loads(env["FINETUNE_EVALUATION"])["judge"] == {"url": JUDGE["url"], "model": "judge-70b"}


def test_another_judge_measures_again_and_another_key_does_not() -> None:
    cluster = judged().run()
    cluster.change(evaluation={"judge": {**JUDGE, "secretRef": {"name": "new-key"}}}).run()
    assert (made(cluster, "evaluate"), made(cluster, "judge")) == (1, 1)
    cluster.change(evaluation={"judge": {**JUDGE, "model": "judge-400b"}})
    cluster.execute(cluster.plan())
    assert cluster.condition("Evaluated") == ("Unknown", "MeasuredAgain")
    assert cluster.condition("Serving") == ("True", "Available")
    cluster.run()
    assert (made(cluster, "evaluate"), made(cluster, "judge")) == (2, 2)
    cluster.change(evaluation=None).run()
    assert made(cluster, "judge") == 2
    assert cluster.condition("Ready") == ("True", "Serving")
    assert cluster.plan().status == cluster.job.status


def test_a_judge_named_later_is_asked_and_the_model_serves_meanwhile() -> None:
    cluster = Cluster(make_job()).run().change(evaluation={"judge": JUDGE})
    cluster.run(until=lambda c: c.job.status.stage is Stage.JUDGE)
    assert cluster.condition("Serving") == ("True", "Available")
    assert [record.result for record in cluster.job.status.runs] == [RunResult.PROMOTED]
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert made(cluster, "train") == 1


def test_a_judge_pod_that_fails_ends_the_run_until_the_judge_is_taken_away() -> None:
    cluster = judged(answer=lambda pod: (13, "") if stage_of(pod) == "Judge" else succeed(pod)).run()
    assert cluster.condition("Stalled") == ("True", "ArtifactInvalid")
    assert cluster.condition("Judged")[0] == "False"
    cluster.change(evaluation=None).run()
    assert cluster.condition("Ready") == ("True", "Serving")


def test_notes_of_measurement_and_judge_are_in_the_status() -> None:
    def noting(pod: Manifest) -> tuple[int, str]:
        stage = stage_of(pod)
        summary = json.loads(good_summary(stage, 1))
        return 0, json.dumps({**summary, "notes": [f"said by {stage}"]})

    run = judged(answer=noting).run().job.status.run
    assert run is not None
    assert run.evaluation is not None
    assert run.notes == ["said by Train"]
    assert run.evaluation.notes == ["said by Judge", "said by Evaluate"]
