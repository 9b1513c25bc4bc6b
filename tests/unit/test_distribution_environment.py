"""What a pod sets, and what of it makes no sense."""

from __future__ import annotations

import pytest

from finetune_api.distribution import DistributionSpec, Strategy
from finetune_trainer.distribution.environment import Gang, Place, gang, place, wanted
from finetune_trainer.errors import UserInputError

NODES = {"FINETUNE_NODES": "4", "FINETUNE_NODE_RANK": "3", "FINETUNE_RENDEZVOUS": "travel-r1-train-0.travel:29500"}


def test_one_node() -> None:
    assert gang(0, 1, {}) == Gang(1)
    assert gang(8, 1, {}).size == 8
    assert gang(0, 1, {"FINETUNE_PROCESSES": "2"}).size == 2
    assert gang(8, 1, {"FINETUNE_PROCESSES": "2"}).size == 8


def test_several_nodes() -> None:
    assert gang(8, 1, NODES) == Gang(8, 4, 3, "travel-r1-train-0.travel", 29500)
    assert gang(8, 1, NODES).size == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FINETUNE_NODES": "0"}, "FINETUNE_NODES is '0'"),
        ({"FINETUNE_NODES": "many"}, "FINETUNE_NODES is 'many'"),
        ({"FINETUNE_NODE_RANK": "4"}, "FINETUNE_NODE_RANK is 4"),
        ({"FINETUNE_NODE_RANK": "-1"}, "FINETUNE_NODE_RANK is '-1'"),
        ({"FINETUNE_RENDEZVOUS": ""}, "FINETUNE_RENDEZVOUS is ''"),
        ({"FINETUNE_RENDEZVOUS": "host"}, "FINETUNE_RENDEZVOUS is 'host'"),
        ({"FINETUNE_RENDEZVOUS": "host:99999"}, "FINETUNE_RENDEZVOUS is 'host:99999'"),
        ({"FINETUNE_PROCESSES": "0"}, "FINETUNE_PROCESSES is '0'"),
    ],
)
def test_nonsense(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserInputError) as caught:
        gang(0, 1, {**NODES, **change})
    assert message in caught.value.message
    assert caught.value.advice


def test_a_process_of_a_gang() -> None:
    assert place({}) == Place()
    assert place({"RANK": "3", "WORLD_SIZE": "4"}) == Place()  # of a launcher that is not ours
    names = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "FINETUNE_GANG": "/tmp/x"}
    assert place(names) == Place(3, 4, 1, 2)
    assert not place(names).first


def test_the_present_wish_stands_before_the_snapshot() -> None:
    snapshot = DistributionSpec(strategy=Strategy.DDP)
    assert wanted(snapshot, {}) == snapshot
    assert wanted(snapshot, {"FINETUNE_DISTRIBUTION": '{"strategy": "ZeRO2"}'}).strategy is Strategy.ZERO2
    with pytest.raises(UserInputError, match="FINETUNE_DISTRIBUTION"):
        wanted(snapshot, {"FINETUNE_DISTRIBUTION": "ZeRO2"})
