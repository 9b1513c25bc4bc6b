"""GPU time as arithmetic: whenever one looks, and however often, the same time is counted, once."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.cost import MOST_KINDS, CostStatus, GpuUse
from finetune_operator.metering import STALE_SECONDS, Hold, charged_late, estimated, hours, metered, moment
from finetune_operator.prices import Price, Prices
from finetune_operator.times import stamp

START = 1_767_225_600
PRICE = Price("nvidia.com/gpu", Decimal("2.50"))
LONG = 100_000


def hold(start: int, end: int | None, gpus: int = 1, price: Price = PRICE) -> Hold:
    return Hold(price, gpus, START + start, START + start, None if end is None else START + end)


@st.composite
def attempts(draw: st.DrawFn) -> list[Hold]:
    """Pods one after the other, as retries and suspensions make them; the last one may still run."""
    result, at = [], 0
    for _ in range(draw(st.integers(1, 5))):
        start = at + draw(st.integers(0, 5000))
        at = start + draw(st.integers(0, 5000))
        result.append(hold(start, at, draw(st.integers(1, 8))))
    return result


def known(holds: list[Hold], at: int) -> list[Hold]:
    """What can be seen at a moment: pods that are there by then, and of their ends those that have come."""
    there = [each for each in holds if each.made <= at]
    return [
        Hold(
            each.price, each.gpus, each.made, each.start, each.end if each.end is not None and each.end <= at else None
        )
        for each in there
    ]


@given(attempts(), st.lists(st.integers(0, 60_000), max_size=8))
def test_any_looks_count_the_same_as_one_at_the_end(holds: list[Hold], looks: list[int]) -> None:
    cost: CostStatus | None = None
    before = 0
    for look in (*sorted(looks), LONG):
        cost = metered(cost, known(holds, START + look), START + look, "EUR")
        used = cost.gpu_seconds if cost else 0
        assert used >= before, "it never decreases"
        before = used
    whole = sum((each.end - each.start) * each.gpus for each in holds if each.end and each.start)
    assert before == whole, "what every attempt held adds up, and the pauses between them do not"
    if cost and whole:
        assert cost.spent("EUR") == Decimal(whole) * Decimal("2.50") / 3600
        assert cost.gpus == 0


@given(attempts(), st.integers(0, LONG), st.integers(0, LONG))
def test_a_clock_that_is_put_back_takes_nothing_away(holds: list[Hold], one: int, other: int) -> None:
    first = metered(None, known(holds, START + one), START + one, "EUR")
    again = metered(first, known(holds, START + one), START + other, "EUR")
    assert (again.gpu_seconds if again else 0) >= (first.gpu_seconds if first else 0)


@given(attempts(), st.integers(0, 60_000))
def test_an_operator_that_was_away_counts_from_what_is_there(holds: list[Hold], last_look: int) -> None:
    """It looked once, went away, and comes back when everything is over."""
    away = metered(None, known(holds, START + last_look), START + last_look, "EUR")
    late = metered(away, holds, START + LONG, "EUR")
    assert (late.gpu_seconds if late else 0) == sum((h.end - h.start) * h.gpus for h in holds if h.end and h.start)


def test_suspension_stops_the_clock() -> None:
    held = metered(None, [hold(0, None, 4)], START + 100, "EUR")
    assert held is not None
    assert (held.gpus, held.gpu_seconds) == (4, 400)
    gone = metered(held, [], START + 110, "EUR")
    assert gone is not None
    assert (gone.gpus, gone.gpu_seconds) == (0, 440)
    assert metered(gone, [], START + LONG, "EUR") == gone


@pytest.mark.parametrize(
    ("gone", "successor", "resumed", "counted"),
    [
        (STALE_SECONDS * 10, 300, 0, 300),  # evicted while nobody looked: its successor was made when it had ended
        (STALE_SECONDS * 10, 5000, 40, 5000),  # the same after a queue had let it go: that was before
        (STALE_SECONDS * 10, 5000, 5000, 0),  # a queue held it in between: nobody knows how long
        (STALE_SECONDS * 10, 300, 300, 300),
        (STALE_SECONDS * 10, None, 0, 0),  # nobody knows when
        (20, None, 0, 20),  # just now
    ],
)
def test_a_pod_that_vanished_is_counted_as_far_as_anything_tells(
    gone: int, successor: int | None, resumed: int, counted: int
) -> None:
    before = metered(None, [hold(0, None, 2)], START + 50, "EUR")
    let_go = START + 50 + resumed if resumed > 50 else START + resumed
    there = [] if successor is None else [Hold(PRICE, 2, START + 50 + successor, None, resumed=let_go)]
    after = metered(before, there, START + 50 + gone, "EUR")
    assert after is not None
    assert after.gpu_seconds == 2 * (50 + counted)


def test_a_pod_that_has_no_node_yet_costs_nothing() -> None:
    assert metered(None, [Hold(PRICE, 8, START, None)], START + 600, "EUR") is None


def test_each_price_has_its_own_row_and_a_late_price_counts_for_what_had_none() -> None:
    unpriced, dearer = Price("nvidia.com/gpu"), Price("nvidia.com/gpu", Decimal(4))
    cost = metered(None, [hold(0, None, 1, unpriced)], START + 3600, None)
    assert cost is not None
    assert (cost.gpu_hours, cost.amount, cost.currency) == ("1.00", None, None)
    cost = charged_late(cost, Prices("EUR", {"default": Decimal("2.50")}))
    cost = metered(cost, [hold(0, None)], START + 7200, "EUR")
    cost = metered(cost, [hold(0, 9000, 1, dearer)], START + 9000, "EUR")
    assert cost is not None
    assert [(use.gpu_seconds, use.price, use.currency) for use in cost.usage] == [
        (7200, "2.50", "EUR"),
        (1800, "4", "EUR"),
    ]
    assert (cost.gpu_hours, cost.amount, cost.currency) == ("2.50", "7.00", "EUR")


def test_a_late_price_is_that_of_the_nodes_that_were_selected_and_of_no_others() -> None:
    prices = Prices(None, {})
    cost = None
    for place, product in enumerate(("H100", "A100")):
        price = prices.of("nvidia.com/gpu", {"os": "linux", "product": product})
        cost = metered(cost, [hold(place * 3600, (place + 1) * 3600, 1, price)], START + (place + 1) * 3600, None)
    late = charged_late(cost, Prices("EUR", {"H100": Decimal(4)}))
    assert late is not None
    assert [(use.gpu, use.price, use.node_labels) for use in late.usage] == [
        ("H100", "4", []),
        ("nvidia.com/gpu", None, ["linux", "A100"]),
    ]
    assert (late.gpu_hours, late.amount, late.unpriced_gpu_hours) == ("2.00", "4.00", "1.00")
    assert charged_late(late, Prices("EUR", {"H100": Decimal(9)})) == late, "what was charged stays"
    assert charged_late(cost, prices) == cost


def test_hours_in_another_currency_are_charged_by_the_present_price() -> None:
    """For a run with a budget would be held for want of a price, for ever."""
    cost = charged_late(metered(None, [hold(0, 3600)], START + 3600, "EUR"), Prices("USD", {"default": Decimal(3)}))
    assert cost is not None
    assert (cost.amount, cost.currency, cost.unpriced_gpu_hours) == ("3.00", "USD", None)
    assert charged_late(cost, Prices()) == cost


def test_hours_without_a_price_are_said_beside_an_amount() -> None:
    other = Price("other.com/gpu")
    cost = metered(None, [hold(0, 3600), hold(0, 1800, 1, other)], START + 3600, "EUR")
    assert cost is not None
    assert (cost.gpu_hours, cost.amount, cost.unpriced_gpu_hours) == ("1.50", "2.50", "0.50")


def test_rows_are_bounded_and_lose_no_time() -> None:
    cost = CostStatus(
        usage=[GpuUse(gpu="g", price=str(n), currency="EUR", gpu_seconds=1) for n in range(MOST_KINDS)],
        time=stamp(datetime.fromtimestamp(START, UTC)),
    )
    after = metered(cost, [hold(0, None)], START + 10, "EUR")
    assert after is not None
    assert len(after.usage) == MOST_KINDS
    assert after.gpu_seconds == MOST_KINDS + 10


def test_figures_for_people() -> None:
    estimate = estimated(5400, 8, PRICE, "EUR")
    assert (estimate.gpu_hours, estimate.amount, estimate.currency) == ("12.00", "30.00", "EUR")
    assert estimated(60, 1, Price("x"), "EUR").amount is None
    assert hours(18) == "0.01"
    assert moment(stamp(datetime.fromtimestamp(START, UTC))) == START


def test_the_price_of_a_pod_is_that_of_the_nodes_it_selects() -> None:
    table = {"default": Decimal(1), "nvidia.com/gpu": Decimal(2), "NVIDIA-H100": Decimal(4), "a3-high": Decimal(5)}
    prices = Prices("EUR", table)
    product, instance = {"nvidia.com/gpu.product": "NVIDIA-H100"}, {"node.kubernetes.io/instance-type": "a3-high"}
    assert prices.of("nvidia.com/gpu", {}) == Price("nvidia.com/gpu", Decimal(2))
    assert prices.of("amd.com/gpu", {"pool": "x"}) == Price("amd.com/gpu", Decimal(1))
    assert prices.of("nvidia.com/gpu", product) == Price("NVIDIA-H100", Decimal(4))
    assert prices.of("nvidia.com/gpu", {**product, **instance}).gpu == "a3-high", "the first label in their order"
    assert Prices().of("nvidia.com/gpu", product) == Price("nvidia.com/gpu", labels=("NVIDIA-H100",))
