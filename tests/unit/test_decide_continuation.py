"""Going on from another job's model: what is waited for, what is refused, and what is remembered once it began."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.simulator import Cluster, good_summary, make_job, succeed

from finetune_api.conditions import RunResult
from finetune_api.job import FineTuneJob
from finetune_api.lineage import MOST_ANCESTORS, Ancestor
from finetune_api.status import FineTuneJobStatus
from finetune_operator.builders.run_config_map import RUN_JSON
from finetune_operator.origin import origin

RESOLVED = {
    **dict.fromkeys(["epochs", "batchSize", "microBatchSize", "gradientAccumulation", "maxLength", "totalSteps"], 1),
    **dict.fromkeys(["warmupSteps", "evaluationSteps", "checkpointSteps"], 1),
    **{"learningRate": 1e-4, "packing": False, "precision": "bfloat16"},
}
STRICT = {"gate": {"rules": [{"metric": "loss", "max": "0.5"}]}}


def on(name: str, **more: Any) -> dict[str, Any]:
    return {"baseModel": {"fineTuneJob": {"name": name, **more}}}


def tuned(name: str = "chat", **spec: Any) -> FineTuneJob:
    """A job whose run 1 is promoted, or at its end at least."""
    return Cluster(make_job(name, uid=f"{name}-uid", **spec)).run().job


def cluster(*others: FineTuneJob, name: str = "polite", **spec: Any) -> Cluster:
    made = Cluster(make_job(name, **spec))
    made.others = {other.metadata.name: other for other in others}
    return made


def failure(made: Cluster) -> tuple[str, bool, str]:
    run = made.job.status.run
    assert run is not None
    assert run.failure is not None
    return run.failure.reason, run.failure.waiting, run.failure.message


def once(made: Cluster) -> Cluster:
    made.execute(made.plan())
    return made


def test_a_chain_of_jobs_is_followed_no_further_than_a_model_may_be_built() -> None:
    """Each look reads a job, in each pass of each job of the chain: whoever may make jobs must not make that long."""
    looked: list[str] = []

    def look(name: str) -> FineTuneJob:
        looked.append(name)
        return make_job(name, **on(f"job-{len(looked)}"))

    origin(make_job("polite", **on("job-0")), look)
    assert len(looked) == MOST_ANCESTORS + 1


def test_it_begins_by_itself_when_the_other_one_is_promoted() -> None:
    made = once(cluster(**on("chat")))
    assert failure(made) == (
        "BaseNotPromoted",
        True,
        "baseModel.fineTuneJob: there is no FineTuneJob 'chat' in this namespace.",
    )
    made.others["chat"] = make_job("chat", uid="chat-uid")
    assert failure(once(made))[2] == "baseModel.fineTuneJob: chat has no promoted run yet."
    assert made.created == []
    assert made.condition("Reconciling") == ("True", "BaseNotPromoted")
    made.others["chat"] = tuned()
    made.run()
    run, model = made.job.status.run, made.job.status.model
    assert run is not None
    assert run.failure is None
    assert run.continued_from is not None
    assert run.continued_from.mode == "Continue"
    assert model is not None
    chat = made.others["chat"].status.model
    assert chat is not None
    assert model.lineage == [Ancestor(job="chat", run=1, sha256=chat.sha256, mode="Continue")]
    assert (model.base_name, model.source) == ("tiny-base", chat.source)
    assert made.condition("Ready") == ("True", "Serving")


def test_what_was_found_once_stays() -> None:
    """A newer run of the other job, or its end, changes nothing; the snapshot tells a control plane that forgot."""
    made = once(cluster(tuned(), **on("chat")))
    snapshot = json.loads(made.objects["ConfigMap", "polite-r1"]["data"][RUN_JSON])
    assert snapshot["continuedFrom"]["model"]["run"] == 1
    made.others.clear()
    made.write_status(FineTuneJobStatus())
    made.run()
    assert made.job.status.run is not None
    assert made.job.status.run.continued_from is not None
    assert made.job.status.model is not None
    assert made.job.status.runs[0].continued_from == made.job.status.run.continued_from
    assert made.plan().apply == ()


@pytest.mark.parametrize(
    ("mode", "method", "found"),
    [
        ("auto", {"type": "LoRA"}, "Continue"),
        ("auto", {"type": "QLoRA"}, "Continue"),
        ("auto", {"type": "LoRA", "rank": 8}, "Stack"),
        ("auto", {"type": "Full"}, "Stack"),
        ("auto", {"type": "DoRA"}, "Stack"),
        ("Stack", {"type": "LoRA"}, "Stack"),
    ],
)
def test_the_mode(mode: str, method: dict[str, Any], found: str) -> None:
    made = once(cluster(tuned(), **on("chat", mode=mode), method=method))
    run = made.job.status.run
    assert run is not None
    assert run.continued_from is not None
    assert run.continued_from.mode == found
    config = json.loads(made.objects["ConfigMap", "polite-r1"]["data"][RUN_JSON])
    assert config["baseName"] == ("tiny-base" if found == "Continue" else "chat-r1")
    assert config["tunedName"] == "polite"


def test_another_claim_is_mounted_read_only_for_prepare() -> None:
    made = once(cluster(tuned(output={"claimName": "elsewhere"}), **on("chat")))
    pod = made.objects["Job", "polite-r1-prepare"]["spec"]["template"]["spec"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    }
    assert claims == {"models", "elsewhere"}
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["/sources/pvc/elsewhere"] is True
    made.run()
    for stage in ("train", "evaluate"):
        pod = made.objects["Job", f"polite-r1-{stage}"]["spec"]["template"]["spec"]
        assert "elsewhere" not in str(pod["volumes"])


def test_what_is_refused_and_why() -> None:
    failed = tuned(evaluation=STRICT)
    assert failed.status.runs[0].result is RunResult.GATE_FAILED
    other_task = tuned(task="Classification")
    cases = [
        (failed, on("chat", run=1), "run 1 of chat did not pass its gate; none is promoted"),
        (other_task, on("chat"), "was tuned for Classification, which Chat cannot go on from"),
    ]
    for other, spec, message in cases:
        made = once(cluster(other, **spec))
        reason, waiting, text = failure(made)
        assert (reason, waiting) == ("SpecInvalid", False)
        assert message in text
        assert made.created == []
        assert made.condition("Stalled") == ("True", "SpecInvalid")


def test_a_refusal_is_judged_anew() -> None:
    made = once(cluster(tuned(evaluation=STRICT), **on("chat", run=1)))
    assert failure(made)[0] == "SpecInvalid"
    made.others["chat"] = tuned()
    made.run()
    assert made.condition("Ready") == ("True", "Serving")
    assert [record.result for record in made.job.status.runs] == [RunResult.PROMOTED]


def test_a_run_that_is_still_to_come_is_waited_for() -> None:
    made = once(cluster(tuned(), **on("chat", run=7)))
    assert failure(made)[:2] == ("BaseNotPromoted", True)


def test_jobs_that_wait_for_each_other() -> None:
    first, second = make_job("a", **on("b")), make_job("b", **on("polite"))
    made = once(cluster(first, second, **on("a")))
    reason, waiting, text = failure(made)
    assert (reason, waiting) == ("SpecInvalid", False)
    assert "polite -> a -> b -> polite" in text


def test_an_earlier_run_of_its_own() -> None:
    made = Cluster(make_job("polite")).run()
    made.change(**on("polite")).run()
    run, model = made.job.status.run, made.job.status.model
    assert run is not None
    assert run.continued_from is not None
    assert (run.number, run.continued_from.model.run) == (2, 1)
    assert model is not None
    assert model.name == "polite"
    alone = once(Cluster(make_job("polite", **on("polite"))))
    assert failure(alone)[:2] == ("SpecInvalid", False)
    assert "A run goes on only from an earlier one" in failure(alone)[2]


def test_the_rank_of_a_server_is_the_adapters() -> None:
    def answer(pod: dict[str, Any]) -> tuple[int, str]:
        labels = pod["metadata"]["labels"]
        if labels["finetune-operator.io/stage"] != "Prepare":
            return succeed(pod)
        summary = json.loads(good_summary("Prepare", 1))
        summary["resolved"] = {**RESOLVED, "loraRank": 64}
        return 0, json.dumps(summary)

    made = cluster(tuned(), **on("chat"), compute={"gpus": 1})
    made.answer = answer
    made.run()
    args = made.objects["Deployment", "polite-serve"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--max-lora-rank") + 1] == "64"


def test_a_server_computes_as_the_model_was_measured() -> None:
    """Prepare expects bfloat16 of a GPU; Train has found one that has none."""

    def answer(pod: dict[str, Any]) -> tuple[int, str]:
        code, message = succeed(pod)
        summary = json.loads(message)
        if summary["stage"] in ("Prepare", "Train"):
            precision = "bfloat16" if summary["stage"] == "Prepare" else "float32"
            summary["resolved"] = {**RESOLVED, "precision": precision}
        return code, json.dumps(summary)

    made = Cluster(make_job(compute={"gpus": 1}), answer=answer).run()
    assert made.job.status.model is not None
    assert made.job.status.model.precision == "float32"
    (server,) = (each for each in made.objects.values() if each["kind"] == "Deployment")
    arguments = server["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--dtype") + 1] == "float32"
