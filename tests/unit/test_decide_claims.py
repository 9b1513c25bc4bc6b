"""A run's files lie on one claim from its first stage to its server, whatever becomes of output.claimName."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator import Cluster, Manifest, make_job, succeed

from finetune_api.conditions import Stage
from finetune_api.status import FineTuneJobStatus

NEW = {"claimName": "larger"}


def claim_of(manifest: Manifest) -> str:
    volumes = manifest["spec"]["template"]["spec"]["volumes"]
    return next(v["persistentVolumeClaim"]["claimName"] for v in volumes if v["name"] == "artifacts")


def claims(cluster: Cluster, run: int = 1) -> set[str]:
    return {claim_of(m) for (kind, name), m in cluster.objects.items() if kind == "Job" and f"-r{run}-" in name}


def server_claim(cluster: Cluster) -> str:
    return claim_of(cluster.objects["Deployment", "travel-serve"])


def run_claim(cluster: Cluster) -> str | None:
    assert cluster.job.status.run is not None
    return cluster.job.status.run.claim_name


def training() -> Cluster:
    return Cluster(make_job()).run(until=lambda c: c.job.status.stage == Stage.TRAIN)


def test_a_run_ends_on_the_claim_that_it_began_on() -> None:
    cluster = training().change(output=NEW).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert claims(cluster) == {"models"}
    assert server_claim(cluster) == "models"
    assert cluster.job.status.model is not None
    assert cluster.job.status.model.uri.startswith("pvc://models/")
    assert run_claim(cluster) == "models"


def test_the_new_claim_is_used_from_the_next_run_on_and_the_status_says_so() -> None:
    cluster = Cluster(make_job()).run()
    assert run_claim(cluster) == "models"
    assert "claimName" not in cluster.job.status.conditions[0].message
    created = list(cluster.created)
    cluster.change(output=NEW).run()
    assert cluster.created == created
    assert cluster.condition("Ready") == ("True", "Serving")
    text = "output.claimName 'larger' is used from the next run on; run 1 stays on 'models'."
    assert text in cluster.job.status.conditions[0].message
    cluster.change(rerunToken="again").run(until=lambda c: c.job.status.stage == Stage.EVALUATE)
    assert claims(cluster, 2) == {"larger"}
    assert server_claim(cluster) == "models"
    cluster.run()
    assert (server_claim(cluster), run_claim(cluster)) == ("larger", "larger")
    assert "claimName" not in cluster.job.status.conditions[0].message


def test_a_run_that_is_taken_up_again_is_served_from_its_own_claim() -> None:
    cluster = Cluster(make_job()).run().change(output=NEW, hyperparameters={"epochs": 2}).run()
    assert server_claim(cluster) == "larger"
    cluster.change(hyperparameters={"epochs": "auto"}).run()
    assert cluster.job.status.run is not None
    assert cluster.job.status.run.number == 1
    assert (server_claim(cluster), run_claim(cluster)) == ("models", "models")


def test_a_claim_can_be_corrected_before_anything_was_written_to_it() -> None:
    cluster = Cluster(make_job()).run(until=lambda c: bool(c.pods))
    cluster.change(output=NEW).run()
    assert claims(cluster) == {"larger"}
    assert server_claim(cluster) == "larger"


def test_a_first_stage_that_failed_tries_again_on_another_claim() -> None:
    def full(pod: Manifest) -> tuple[int, str]:
        return (1, "No space left on device") if claim_of({"spec": {"template": pod}}) == "models" else succeed(pod)

    cluster = Cluster(make_job(), answer=full).run()
    assert cluster.condition("Stalled") == ("True", "StorageFull")
    assert run_claim(cluster) == "models"
    cluster.change(output=NEW).run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert claims(cluster) == {"larger"}


def test_a_lost_status_finds_the_claim_again() -> None:
    cluster = training()
    cluster.change(output=NEW)
    cluster.job = cluster.job.model_copy(update={"status": FineTuneJobStatus()})
    cluster.run()
    assert claims(cluster) == {"models"}


def test_a_run_of_an_earlier_version_goes_on_and_records_its_claim() -> None:
    cluster = training()
    run = cluster.job.status.run
    assert run is not None
    earlier = cluster.job.status.model_copy(update={"run": run.model_copy(update={"claim_name": None})})
    cluster.job = cluster.job.model_copy(update={"status": earlier})
    cluster.run()
    assert run_claim(cluster) == "models"
    assert claims(cluster) == {"models"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=12), min_size=1, max_size=4), st.sampled_from([None, 0, 1]))
def test_whenever_the_claim_changes_a_run_has_one(pauses: list[int], writes: int | None) -> None:
    """Also when the operator dies after its first writes of the pass that sees the change."""
    cluster = Cluster(make_job())
    for index, pause in enumerate(pauses):
        for _ in range(pause):
            cluster.execute(cluster.plan())
            for move in cluster.moves()[:1]:
                move()
        cluster.change(output={"claimName": f"claim-{index}"})
        cluster.execute(cluster.plan(), writes)
    cluster.run()
    assert cluster.condition("Ready") == ("True", "Serving")
    assert claims(cluster) == {server_claim(cluster)} == {run_claim(cluster)}
