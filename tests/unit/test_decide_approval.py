"""promotion.mode Manual: a run that passed its gate answers when somebody says so, and not before."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.simulator import Cluster, Manifest, good_summary, make_job, succeed

DIGEST = "ab" * 32  # of every model of the simulator
MANUAL = {"mode": "Manual"}


def approved(run: int, digest: str = DIGEST[:12]) -> dict[str, Any]:
    return {"promotion": {**MANUAL, "approved": {"run": run, "digest": digest}}}


def results(cluster: Cluster) -> list[tuple[int, str]]:
    return [(record.number, record.result.value) for record in cluster.job.status.runs]


def test_a_first_run_waits_and_says_what_to_write() -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run()
    assert "Deployment/travel-serve" not in cluster.created
    assert cluster.condition("Ready") == ("False", "AwaitingApproval")
    assert cluster.condition("Promoted") == ("False", "AwaitingApproval")
    assert [cluster.condition(kind)[0] for kind in ("Reconciling", "Stalled")] == ["False", "False"]
    message = cluster.job.status.conditions[0].message
    assert 'promotion.approved to {run: 1, digest: "abababababab"}' in message
    assert results(cluster) == [(1, "AwaitingApproval")]
    assert cluster.events()[-1] == "AwaitingApproval"


def test_what_it_says_can_be_put_into_a_file_as_it_stands() -> None:
    """Without quotes YAML takes this digest for a number."""

    def answer(pod: Manifest) -> tuple[int, str]:
        code, message = succeed(pod)
        return code, message.replace(DIGEST, "123456789012" + DIGEST[12:])

    cluster = Cluster(make_job(promotion=MANUAL), answer=answer).run()
    said = re.search(r"promotion.approved to (\{.*\})", cluster.job.status.conditions[0].message)
    assert said
    cluster.change(promotion={**MANUAL, "approved": yaml.safe_load(said[1])}).run()
    assert results(cluster) == [(1, "Promoted")]


def test_an_approved_run_answers_and_nothing_is_trained() -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run()
    jobs = [name for name in cluster.created if name.startswith("Job/")]
    cluster.change(**approved(1)).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert results(cluster) == [(1, "Promoted")]
    assert [name for name in cluster.created if name.startswith("Job/")] == jobs
    assert cluster.events()[-2:] == ["Promoted", "Serving"]


def test_the_run_before_answers_until_the_approval() -> None:
    cluster = Cluster(make_job()).run().change(rerunToken="again", promotion=MANUAL).run()
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1
    assert cluster.condition("Ready") == ("True", "Serving")
    assert results(cluster) == [(1, "Promoted"), (2, "AwaitingApproval")]
    cluster.change(**approved(2)).run()
    assert cluster.job.status.endpoint.run == 2


@pytest.mark.parametrize(
    ("approval", "words"),
    [
        (approved(2), "run 2, which is not there yet (the newest is 1)"),
        (approved(1, "cd" * 6), "run 1, but the digest cdcdcdcdcdcd is not that of its model, which is 'abababababab'"),
    ],
    ids=["another run", "another model"],
)
def test_an_approval_of_something_else_is_none_and_says_so(approval: dict[str, Any], words: str) -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run().change(**approval).run()
    assert results(cluster) == [(1, "AwaitingApproval")]
    assert f"promotion.approved names {words}: it approves nothing." in message(cluster)
    assert 'set promotion.approved to {run: 1, digest: "abababababab"}' in message(cluster)


def test_an_approval_in_vain_is_told_also_of_an_earlier_run_and_a_heeded_one_is_not() -> None:
    cluster = Cluster(make_job()).run().change(rerunToken="a", promotion=MANUAL).run()
    cluster.answer = lambda pod: (0, _worse(pod))
    cluster.change(rerunToken="b", **approved(2, "cd" * 6)).run()
    assert results(cluster) == [(1, "Promoted"), (2, "AwaitingApproval"), (3, "GateFailed")]
    assert "names run 2, but the digest" in message(cluster)
    cluster.change(**approved(3)).run()
    assert "names run 3, which did not pass its gate: it approves nothing" in message(cluster)
    cluster.change(**approved(2)).run()
    assert results(cluster)[1] == (2, "Promoted")
    assert "approves nothing" not in message(cluster)


def message(cluster: Cluster) -> str:
    return next(c.message for c in cluster.job.status.conditions if c.type == "Ready")


def test_an_approval_that_is_taken_back_does_not_take_the_model_away() -> None:
    cluster = Cluster(make_job(**approved(1))).run().change(promotion=MANUAL).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert results(cluster) == [(1, "Promoted")]


def test_an_earlier_run_may_be_approved_while_a_later_one_trains() -> None:
    cluster = (
        Cluster(make_job(promotion=MANUAL))
        .run()
        .change(rerunToken="again")
        .run(until=lambda c: c.condition("Ready")[1] == "Training")
    )
    cluster.change(**approved(1)).run()
    assert results(cluster) == [(1, "Promoted"), (2, "AwaitingApproval")]
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 1


def test_the_mode_automatic_lets_go_what_waited() -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run().change(promotion={"mode": "Automatic"}).run()
    assert results(cluster) == [(1, "Promoted")]
    assert cluster.condition("Ready") == ("True", "Serving")


def test_what_was_let_go_by_the_mode_answers_no_sooner_than_what_was_approved() -> None:
    """Runs 1 and 2 waited, run 3 was approved and answers; then everything may answer, and a next run trains."""
    cluster = Cluster(make_job(promotion=MANUAL)).run()
    for token in ("b", "c"):
        cluster.change(rerunToken=token).run()
    cluster.change(**approved(3)).run()
    assert cluster.job.status.endpoint is not None
    cluster.change(promotion={"mode": "Automatic"}).run()
    assert results(cluster) == [(1, "Promoted"), (2, "Promoted"), (3, "Promoted")]
    cluster.change(rerunToken="d").run(until=lambda c: c.condition("Ready")[1] == "Training")
    assert cluster.job.status.endpoint.run == 3


def test_the_run_in_hand_that_the_mode_lets_go_answers_until_the_next_is_promoted() -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run().change(rerunToken="b").run()
    cluster.change(**approved(1)).run()
    cluster.change(promotion={"mode": "Automatic"}).run()
    assert cluster.job.status.endpoint is not None
    assert cluster.job.status.endpoint.run == 2
    cluster.change(rerunToken="c").run(until=lambda c: c.condition("Ready")[1] == "Training")
    assert cluster.job.status.endpoint.run == 2


def test_no_approval_helps_a_run_that_failed_its_gate() -> None:
    cluster = Cluster(make_job(**approved(1)), answer=lambda pod: (0, _worse(pod))).run()
    assert cluster.condition("Ready") == ("False", "GateFailed")
    assert results(cluster) == [(1, "GateFailed")]


def test_a_revert_to_a_run_that_waits_trains_nothing() -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run().change(rerunToken="again").run()
    jobs = len([name for name in cluster.created if name.startswith("Job/")])
    cluster.change(rerunToken=None).run()
    assert len([name for name in cluster.created if name.startswith("Job/")]) == jobs
    assert cluster.condition("Ready") == ("False", "AwaitingApproval")


def _worse(pod: dict[str, Any]) -> str:
    labels = pod["metadata"]["labels"]
    stage, run = labels["finetune-operator.io/stage"], int(labels["finetune-operator.io/run"])
    return good_summary(stage, run, tuned=3.0)


def test_an_earlier_run_that_waits_is_told_while_a_later_one_trains_and_after_it_failed_its_gate() -> None:
    how = 'Run 1 waits for approval: set promotion.approved to {run: 1, digest: "abababababab"}.'
    cluster = Cluster(make_job(promotion=MANUAL)).run()
    cluster.answer = lambda pod: (0, _worse(pod))
    cluster.change(rerunToken="b").run(until=lambda c: c.condition("Ready")[1] == "Training")
    assert message(cluster) == f"Run 2 is training. {how}"
    cluster.run()
    assert cluster.condition("Ready") == ("False", "GateFailed")
    assert message(cluster).endswith(f"at least 0 % wanted. {how}")
    cluster.change(**approved(1)).run()
    assert results(cluster) == [(1, "Promoted"), (2, "GateFailed")]
    assert "waits for approval" not in message(cluster)


def test_what_waits_behind_the_run_that_answers_is_not_told() -> None:
    cluster = Cluster(make_job(promotion=MANUAL)).run().change(rerunToken="b").run().change(**approved(2)).run()
    assert results(cluster) == [(1, "AwaitingApproval"), (2, "Promoted")]
    assert message(cluster) == "Run 2 answers as 'travel'."


def test_what_waits_of_a_commit_that_was_taken_back_is_not_told() -> None:
    cluster = Cluster(make_job()).run().change(rerunToken="b", promotion=MANUAL).run()
    cluster.change(rerunToken=None).run()
    assert results(cluster) == [(1, "Promoted"), (2, "AwaitingApproval")]
    assert message(cluster) == "Run 1 answers as 'travel'."
