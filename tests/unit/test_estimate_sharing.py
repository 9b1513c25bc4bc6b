"""Who holds what when several devices share the work."""

from __future__ import annotations

import pytest

from finetune_trainer.estimate import Needs, Placed, Sharing, on_each

GIB = 2**30
# As a full training of 1 billion parameters in mixed precision: 4 bytes each of weights and gradients, 8 of moments.
NEEDS = Needs(
    trained=4 * GIB,
    gradients=4 * GIB,
    optimizer=8 * GIB,
    activations=2 * GIB,
    output=GIB,
    runtime=GIB,
    block=GIB // 10,
)
BUCKET = 1_000_000_000  # bytes, of bfloat16 gradients on their way


def test_one_device_holds_everything() -> None:
    assert on_each(NEEDS, Sharing.NOTHING, 1) == Placed(20 * GIB)
    assert on_each(NEEDS, Sharing.ZERO3, 1) == Placed(20 * GIB)


@pytest.mark.parametrize(
    ("sharing", "device"),
    [
        (Sharing.NOTHING, 20 * GIB + 4 * GIB),  # buckets
        (Sharing.ZERO1, 4 * GIB + 4 * GIB + 2 * GIB + 4 * GIB + BUCKET),
        (Sharing.ZERO2, 4 * GIB + 1 * GIB + 2 * GIB + 4 * GIB + BUCKET),
        (Sharing.ZERO3, 4 * GIB + 4 * GIB + GIB // 10 + 2_100_000_000),
        (Sharing.FSDP2, 4 * GIB + 4 * GIB + 2 * (GIB // 10)),
    ],
)
def test_each_stage_shares_out_more(sharing: Sharing, device: int) -> None:
    assert on_each(NEEDS, sharing, 4).device == pytest.approx(device, abs=1)
    assert on_each(NEEDS, sharing, 4).host == 0


def test_what_is_offloaded_is_in_the_memory_of_the_machine() -> None:
    second = on_each(NEEDS, Sharing.ZERO2, 2, offload=True)
    assert second == Placed(device=4 * GIB + 4 * GIB + BUCKET, host=12 * GIB)
    third = on_each(NEEDS, Sharing.ZERO3, 2, offload=True)
    assert third.host == 16 * GIB
    assert third.device < second.device
    assert on_each(NEEDS, Sharing.ZERO2, 1, offload=True) == second
