"""compute.nodes: one Job with an index a pod, a name by which they find each other, and all go on when one is lost."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulator import Cluster, Manifest, make_job, succeed

from finetune_api.conditions import FailureReason as Reason
from finetune_operator import names
from finetune_operator.builders.gang import peers_service
from finetune_operator.builders.stage_job import stage_job
from finetune_operator.diagnose.facts import MEMBER

GANG: dict[str, Any] = {"gpus": 1, "nodes": 3}
PEERS = ("Service", "travel-peers")


def job(cluster: Cluster, stage: str) -> Manifest:
    return cluster.objects["Job", f"travel-r1-{stage.lower()}"]


def training(**compute: Any) -> Cluster:
    return Cluster(make_job(compute={**GANG, **compute})).run(until=lambda c: ("Job", "travel-r1-train") in c.objects)


def is_trainer(pod: Manifest) -> bool:
    return bool(pod["metadata"]["labels"]["finetune-operator.io/stage"] == "Train")


def test_train_alone_has_many_pods_and_a_name_for_each() -> None:
    cluster = training()
    spec = job(cluster, "Train")["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert "backoffLimit" not in spec, "one that is lost costs a failure of each"
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (cluster.settings.backoff_limit, 0)
    assert "completionMode" not in job(cluster, "Prepare")["spec"]
    service = cluster.objects[PEERS]["spec"]
    pod = spec["template"]
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == "travel-peers"
    env = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
    assert env["FINETUNE_NODES"]["value"] == "3"
    assert env["FINETUNE_RENDEZVOUS"]["value"] == "travel-r1-train-0.travel-peers.team-a.svc:29500"
    assert MEMBER in env["FINETUNE_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert cluster.run().condition("Ready") == ("True", "Serving")
    assert PEERS not in cluster.objects, "nobody has to be found any more"
    assert "completionMode" not in job(cluster, "Evaluate")["spec"]


def test_one_that_is_lost_restarts_all_and_counts_once() -> None:
    fates = {"0": [1, 0], "1": [137, 0], "2": [1, 0]}

    def answer(pod: Manifest) -> tuple[int, str]:
        code = fates[pod["metadata"]["labels"][MEMBER]].pop(0) if is_trainer(pod) else 0
        return (code, "") if code else succeed(pod)

    cluster = Cluster(make_job(compute=GANG), answer=answer).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert sum(is_trainer(pod) for pod in cluster.pods) == 6
    assert cluster.created.count("Job/travel-r1-train") == 1


def test_a_gang_has_as_many_tries_as_one_pod() -> None:
    def answer(pod: Manifest) -> tuple[int, str]:
        return (1, "") if is_trainer(pod) else succeed(pod)

    cluster = Cluster(make_job(compute=GANG), answer=answer).run()
    tries = cluster.settings.backoff_limit + 1
    assert cluster.condition("Stalled") == ("True", Reason.SYSTEM_FAULT)
    assert sum(is_trainer(pod) for pod in cluster.pods) == 3 * tries
    failure = cluster.job.status.run and cluster.job.status.run.failure
    assert failure
    assert f"It was tried {tries} times." in failure.message


@pytest.mark.parametrize(("code", "reason"), [(10, Reason.SPEC_INVALID), (11, Reason.CUDA_OUT_OF_MEMORY)])
def test_what_one_of_them_cannot_do_ends_all(code: int, reason: Reason) -> None:
    def answer(pod: Manifest) -> tuple[int, str]:
        if not is_trainer(pod):
            return succeed(pod)
        return (code if pod["metadata"]["labels"][MEMBER] == "2" else 1), ""

    cluster = Cluster(make_job(compute=GANG), answer=answer).run()
    assert cluster.condition("Stalled") == ("True", reason)


def test_the_name_is_made_anew_when_somebody_removes_it() -> None:
    cluster = training()
    cluster.run(until=lambda c: sum(is_trainer(pod) for pod in c.pods) == 3)
    del cluster.objects[PEERS]
    assert [manifest["metadata"]["name"] for manifest in cluster.plan().apply] == ["travel-peers"]


def test_pods_that_train_together_are_suspended_together() -> None:
    cluster = training().change(suspend=True).run()
    assert ("Job", "travel-r1-train") not in cluster.objects
    assert cluster.change(suspend=False).run().condition("Ready") == ("True", "Serving")


def test_another_number_of_nodes_makes_no_second_training() -> None:
    """A long name is cut for the index, so the Job of before has another one."""
    name = "a" * 60
    cluster = Cluster(make_job(name, compute={"gpus": 1}))
    cluster.run(until=lambda c: any(is_trainer(pod) and pod["status"]["phase"] == "Running" for pod in c.pods))
    before = [key for key in cluster.objects if key[0] == "Job"]
    cluster.change(compute={"gpus": 1, "nodes": 10}).execute(cluster.plan())
    assert [key for key in cluster.objects if key[0] == "Job"] == before


@pytest.mark.parametrize("name", ["travel", "a" * 253, "1" * 60, "a.b" * 20])
@pytest.mark.parametrize("nodes", [2, 10, 11, 64])
def test_host_names_are_labels(name: str, nodes: int) -> None:
    """https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode"""
    wanted = make_job(name, compute={"nodes": nodes})
    cluster = Cluster(wanted)
    run = cluster.plan().status.run
    assert run is not None
    made = stage_job(wanted, run, names.Stage.TRAIN, cluster.settings)
    assert len(f"{made['metadata']['name']}-{nodes - 1}") <= 63
    service = peers_service(wanted)["metadata"]["name"]
    assert len(service) <= 63
    assert service[0].isalpha()


def test_a_single_pod_knows_nothing_of_peers() -> None:
    cluster = Cluster(make_job(compute={"gpus": 1})).run()
    assert not [key for key in cluster.created if "peers" in key]
    assert names.LABEL_GANG not in job(cluster, "Train")["spec"]["template"]["metadata"]["labels"]
