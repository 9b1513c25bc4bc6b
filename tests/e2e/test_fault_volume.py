"""A volume that is full: while the data is prepared, and while a checkpoint is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.conditions import FailureReason as Reason
from tests.cluster.environment import Cluster
from tests.cluster.processes import run, wait_until
from tests.e2e.manifests import travel_job, with_epochs
from tests.e2e.product import Job, Product, Tenant, condition, failure, run_of, tenancy

SMALL, LARGER = "48m", "192m"  # bytes of the volume: a run of the tiny model takes about 25 MB


@pytest.fixture
def small_volume(node_cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A real file system of its own for the claim `models`."""
    if not node_cluster.is_local:
        pytest.skip("a volume is filled on the built-in node only")
    folder = tmp_path / "models"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", folder)
    yield folder
    run("umount", "--lazy", folder)


@pytest.fixture
def tenant(node_cluster: Cluster, inputs: Path, small_volume: Path, tmp_path: Path, nodes: int) -> Iterator[Tenant]:
    with tenancy(node_cluster, f"full-volume-{nodes}", inputs, tmp_path) as tenant:
        yield tenant


def fill(folder: Path, leaving: int) -> Path:
    """A file of somebody else that leaves so many bytes."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leaving)
    return ballast


def is_full(stage: str) -> Callable[[Job], bool]:
    def check(job: Job) -> bool:
        told = failure(job)
        return (told.get("reason"), told.get("stage")) == (Reason.STORAGE_FULL, stage)

    return check


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_full_volume_is_waited_for_and_nothing_is_lost(
    product: Product, tenant: Tenant, small_volume: Path, nodes: int
) -> None:
    ballast = fill(small_volume, leaving=2**20)
    job = with_epochs(travel_job("travel", serving={"replicas": 0}), 6)
    job["spec"]["compute"]["nodes"] = nodes
    tenant.apply(job)
    expect_told(tenant.wait_for("travel", is_full("Prepare"), 300, "a full volume in Prepare"), "Prepare")
    ballast.unlink()

    # Seen on the volume itself: until the status has it, a tiny model is through.
    wait_until(
        lambda: any(whole(small_volume).values()),
        600,
        "a first checkpoint",
        lambda: tenant.kubectl.explain(tenant.name),
    )
    fill(small_volume, leaving=2**20)
    full = tenant.wait_for("travel", is_full("Train"), 300, "a full volume in Train")
    expect_told(full, "Train")
    found = whole(small_volume)
    [half] = [step for step in found if not found[step]]
    saved = max(step for step in found if found[step])
    assert half > saved, "the checkpoint that did not fit is there in part"
    before = tenant.kubectl.json("get", "job", "travel-r1-train", namespace=tenant.name)

    run("mount", "-o", f"remount,size={LARGER}", small_volume)
    ready = tenant.wait_ready("travel")
    after = tenant.kubectl.json("get", "job", "travel-r1-train", namespace=tenant.name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "its Job waited and keeps its place"
    assert after["status"].get("failed", 0) == 0, "waiting for room is no failure"
    logs = tenant.kubectl("logs", "-l", "finetune-operator.io/stage=Train", "--tail=-1", namespace=tenant.name)
    resumed = {int(step) for step in re.findall(r"resumed_from_step=(\d+)", logs)}
    assert {saved} <= resumed <= {0, saved}, "the half checkpoint was not gone on from"
    assert run_of(ready)["evaluation"]["tuned"]["loss"] < run_of(ready)["evaluation"]["base"]["loss"]


def whole(volume: Path) -> dict[int, bool]:
    """The checkpoints on the volume, by step: whether each was finished."""
    folders = volume.glob("**/checkpoints/checkpoint-*[0-9]")
    return {int(path.name.split("-")[-1]): (path / "manifest.json").exists() for path in folders}


def expect_told(job: Job, stage: str) -> None:
    told = failure(job)
    assert told["waiting"] is True
    assert re.search(r"No space left on device: .*'/artifacts/", told["message"]), told
    assert "enlarge the output claim" in told["advice"]
    assert condition(job, "Reconciling") == "True", f"{stage} goes on by itself"
    assert condition(job, "Stalled") == "False"
