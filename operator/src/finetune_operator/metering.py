"""GPU time out of what pods say of themselves, as arithmetic.

The meter stands at a moment (`CostStatus.time`); what pods held between that and now is added. So nothing is counted
twice, the order and number of looks change nothing, and an operator that was away reads from the pods what they did
meanwhile. Only a pod that came and vanished unseen is not counted. Whole seconds, as Kubernetes has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

from finetune_api.cost import MOST_KINDS, CostStatus, CostSum, GpuUse
from finetune_operator.prices import Price, Prices
from finetune_operator.times import stamp

CENT = Decimal("0.01")
# A meter that is wrong by more is read in any case, although that costs a write.
STALE_SECONDS = 900
# A pod that ended so shortly before the meter's moment may have been told late: what it held then is not missing.
LATE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Hold:
    """GPUs of one pod, in Unix seconds. `made`: when the pod was created; `start`: None before a node has it; `end`:
    None while it holds them; `resumed`: when its Job was let go last, by a queue or whoever held it; 0: nobody did."""

    price: Price
    gpus: int
    made: int
    start: int | None
    end: int | None = None
    resumed: int = 0

    def seconds(self, since: int, until: int) -> int:
        """GPU seconds within a span."""
        if self.start is None:
            return 0
        end = until if self.end is None else min(self.end, until)
        return max(0, end - max(self.start, since)) * self.gpus

    def is_held(self, now: int) -> bool:
        """Whether the GPUs are held at this moment."""
        return self.start is not None and self.start <= now and self.end is None

    def was_held(self, then: int) -> bool:
        """Whether they were held then, as far as one could tell at that time."""
        ended = self.end is not None and self.end < then - LATE_SECONDS
        return self.start is not None and self.start <= then and not ended


def metered(
    cost: CostStatus | None, holds: Sequence[Hold], now: int, currency: str | None, held_back: int = 0
) -> CostStatus | None:
    """The meter at `now`, after one that stood at an earlier moment. None: no GPU was ever held. `held_back`: since
    when the run's Job makes no pods, because a queue or somebody has suspended it; 0: it may."""
    before = cost or CostStatus()
    since = moment(before.time)
    if not holds and not before.gpus:
        return cost
    until = max(now, since)  # a clock that was put back takes nothing away
    used: Used = {_row(use): use.gpu_seconds for use in before.usage}
    for price, seconds in (
        *_vanished(before, holds, until, held_back),
        *((hold.price, hold.seconds(since, until)) for hold in holds),
    ):
        _add(used, price, seconds, currency)
    held = sum(hold.gpus for hold in holds if hold.is_held(until))
    usage = _usage(used)
    if (usage, held) == (before.usage, before.gpus):
        return cost  # nothing was held meanwhile
    return summed(
        before.model_copy(update={"usage": usage, "gpus": held, "time": stamp(datetime.fromtimestamp(until, UTC))}),
        currency,
    )


def charged_late(cost: CostStatus | None, prices: Prices) -> CostStatus | None:
    """The meter with a price for what had none when it was used, or one of another currency, as soon as there is one:
    also while nothing is held, for a run that is held for want of a price would wait for ever."""
    if cost is None or all(_has_price(use, prices) for use in cost.usage):
        return cost
    used: Used = {}
    for use in cost.usage:
        price = None if _has_price(use, prices) else prices.by(use.gpu, use.node_labels)
        key = _row(use) if price is None or price.amount is None else _priced(price, prices.currency)
        used[key] = used.get(key, 0) + use.gpu_seconds
    usage = _usage(used)
    return cost if usage == cost.usage else summed(cost.model_copy(update={"usage": usage}), prices.currency)


def _has_price(use: GpuUse, prices: Prices) -> bool:
    return use.price is not None and use.currency == prices.currency


def summed(cost: CostStatus, currency: str | None) -> CostStatus:
    """The meter with its sums, for people: rounded, while the usage stays exact."""
    priced = [use for use in cost.usage if use.price is not None and use.currency == currency]
    unpriced = cost.gpu_seconds - sum(use.gpu_seconds for use in priced)
    update = {
        "gpu_hours": hours(cost.gpu_seconds),
        "amount": money(cost.spent(currency)) if priced else None,
        "currency": currency if priced else None,
        "unpriced_gpu_hours": hours(unpriced) if currency and unpriced else None,
    }
    return cost.model_copy(update=update)


def estimated(train_seconds: int, gpus: int, price: Price, currency: str | None) -> CostSum:
    """What a training of so many seconds on so many GPUs will use."""
    amount = None if price.amount is None else price.amount * train_seconds * gpus / 3600
    return CostSum(
        gpu_hours=hours(train_seconds * gpus),
        amount=None if amount is None else money(amount),
        currency=None if amount is None else currency,
    )


def hours(gpu_seconds: int | Decimal) -> str:
    """3661 -> 1.02"""
    return money(Decimal(gpu_seconds) / 3600)


def money(amount: Decimal) -> str:
    """Two digits behind the point."""
    return str(amount.quantize(CENT, ROUND_HALF_UP))


def moment(time: str | None) -> int:
    """Unix seconds of a time as Kubernetes writes it; 0 without one."""
    return int(datetime.fromisoformat(time).timestamp()) if time else 0


def _vanished(before: CostStatus, holds: Sequence[Hold], now: int, held_back: int) -> list[tuple[Price, int]]:
    """What pods held that are not there any more, since the meter was read: an eviction deletes the object.

    They went when their Job was suspended, or when the next pod was made, unless that waited in a queue meanwhile. Else
    they went just now where the meter was read a short while ago; where nobody has looked for long, nothing is known,
    and nothing is counted."""
    since = moment(before.time)
    missing = before.gpus - sum(hold.gpus for hold in holds if hold.was_held(since))
    if missing <= 0:
        return []
    next_one = min((hold for hold in holds if hold.made > since), key=lambda hold: hold.made, default=None)
    until = next_one.made if next_one else held_back if held_back > since else now
    known = next_one.resumed <= since if next_one else held_back > since
    if not known and until - since > STALE_SECONDS:
        return []
    return [(next_one.price if next_one else _price(before), missing * (until - since))]


def _price(cost: CostStatus) -> Price:
    """Of what was used last."""
    last = cost.usage[-1] if cost.usage else GpuUse(gpu="")
    return Price(last.gpu, None if last.price is None else Decimal(last.price), tuple(last.node_labels))


Row = tuple[str, str | None, str | None, tuple[str, ...]]  # GPU, price, currency, labels of what has no price
Used = dict[Row, int]


def _row(use: GpuUse) -> Row:
    return use.gpu, use.price, use.currency, tuple(use.node_labels)


def _priced(price: Price, currency: str | None) -> Row:
    return price.gpu, f"{price.amount:f}", currency, ()


def _usage(used: Used) -> list[GpuUse]:
    return [
        GpuUse(gpu=gpu, price=price, currency=currency, node_labels=list(labels), gpu_seconds=seconds)
        for (gpu, price, currency, labels), seconds in used.items()
    ]


def _add(used: Used, price: Price, seconds: int, currency: str | None) -> None:
    """Books the time."""
    key: Row = (price.gpu, None, None, price.labels) if price.amount is None else _priced(price, currency)
    if not seconds:
        return
    if key not in used and len(used) >= MOST_KINDS:
        key = list(used)[-1]  # a status has its bounds; few runs live through so many changes of price and node
    used[key] = used.get(key, 0) + seconds
