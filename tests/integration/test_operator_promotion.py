"""Who answers, on a real API server with its controllers: by a word of somebody, and after commits and reverts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from tests.cluster.control_plane import ControlPlane
from tests.integration.test_operator_lifecycle import stage_selector
from tests.integration.test_operator_restored import restore
from tests.operator_process import (
    GROUP,
    PATIENCE,
    Kubelet,
    condition,
    job_manifest,
    make_namespace,
    running_operator,
    status_of,
)
from tests.simulator import Cluster, good_summary, make_job
from tests.single_life import look

DIGEST = "ab" * 32  # of what the tests' pods say that they have made


def test_a_run_answers_when_it_is_approved_and_not_again_after_it_was_taken_back(
    plane: ControlPlane, tmp_path: Path
) -> None:
    namespace, kubelet = make_namespace(plane, "promotion"), Kubelet(plane, "promotion")
    job = job_manifest("travel", namespace, promotion={"mode": "Manual"})

    def commit(**spec: Any) -> None:
        job["spec"] |= spec
        plane.kubectl.apply(job, server_side=True)

    def finish(run: int, *stages: str) -> None:
        for stage in stages:
            kubelet.end(f"{stage_selector(stage)},{GROUP}/run={run}", good_summary(stage, run))

    def answers(run: int) -> None:
        kubelet.run(f"{stage_selector('Serve')},{GROUP}/run={run}")
        ready(f"Run {run} answers")

    def ready(words: str) -> None:
        def says() -> bool:
            found = status_of(plane, namespace, "travel").get("conditions") or []
            return any(words in each["message"] for each in found if each["type"] == "Ready")

        plane.kubectl.wait_until(says, PATIENCE, words, namespace)

    variables = {"FINETUNE_WATCH_NAMESPACES": namespace, "FINETUNE_SETTLE_SECONDS": "0"}
    with running_operator(plane, tmp_path, **variables) as operator:
        operator.wait_for_log("resync=done")
        commit(promotion={"mode": "Manual", "approved": {"run": 1, "digest": "cd" * 6}})
        finish(1, "Prepare", "Train", "Evaluate")
        ready("promotion.approved names run 1, but the digest cdcdcdcdcdcd is not that of its model")
        assert condition(status_of(plane, namespace, "travel"), "Ready") == ("False", "AwaitingApproval")
        commit(promotion={"mode": "Manual", "approved": {"run": 1, "digest": DIGEST}})
        answers(1)

        commit(promotion={"mode": "Automatic"}, hyperparameters={"epochs": 2})
        finish(2, "Prepare", "Train", "Evaluate")
        answers(2)
        commit(hyperparameters={})
        answers(1)
        commit(hyperparameters={"epochs": 3})
        finish(3, "Prepare")
        ready("Run 3 is training. Run 1 keeps serving.")
        assert status_of(plane, namespace, "travel")["endpoint"]["run"] == 1


def test_an_earlier_run_is_approved_by_the_words_that_the_status_has(plane: ControlPlane) -> None:
    """Of three, the first answers, the second waits, and the third failed its gate."""
    namespace = make_namespace(plane, "approval")

    def third_is_worse(pod: dict[str, Any]) -> tuple[int, str]:
        run, stage = (pod["metadata"]["labels"][f"{GROUP}/{key}"] for key in ("run", "stage"))
        return 0, good_summary(stage, int(run), tuned=3.0 if run == "3" else 1.0)

    before = Cluster(make_job(), answer=third_is_worse).run().change(rerunToken="b", promotion={"mode": "Manual"}).run()
    restore(plane, namespace, before.change(rerunToken="c").run())

    def look_after(approved: str) -> str:
        """What Ready says when this is merged into the spec."""
        patch = json.dumps({"spec": {"promotion": {"approved": yaml.safe_load(approved)}}})
        plane.kubectl("patch", "finetunejob", "travel", "--type=merge", "-p", patch, namespace=namespace)
        look(plane, namespace)
        conditions = status_of(plane, namespace, "travel")["conditions"]
        return str(next(each["message"] for each in conditions if each["type"] == "Ready"))

    said = look_after('{run: 2, digest: "cdcdcdcdcdcd"}')
    assert "promotion.approved names run 2, but the digest cdcdcdcdcdcd is not that of its model" in said
    wanted = re.search(r"Run 2 waits for approval: set promotion.approved to (\{.*?\})", said)
    assert wanted, said
    assert "Run 2 is being rolled out" in look_after(wanted[1])
    results = [record["result"] for record in status_of(plane, namespace, "travel")["runs"]]
    assert results == ["Promoted", "Promoted", "GateFailed"]
