"""What the pictures of a page are made of: places and sizes in the units of an SVG, computed here and drawn by
`charts.html`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 24, 36  # room for the axes
BINS = 24
DASHES = ("", "7 4", "2 4", "9 3 2 3")  # of lines beside their colours: a print is grey, and not everyone sees colours


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of an axis: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `low` to `high` are the values that it counts, both inclusive."""

    x: float
    y: float
    width: float
    height: float
    low: int
    high: int
    count: int


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its points as SVG writes them, and the first and last value for who cannot see it."""

    name: str
    points: str
    dash: str
    last: Tick
    first_value: float
    last_value: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line that stands for a limit."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with two axes. `title` is its heading, `summary` says in a sentence what is to be seen."""

    title: str
    summary: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def histogram(
    counts: Mapping[int, int], *, title: str, summary: str, unit: str, of: str, limits: Mapping[str, int] | None = None
) -> Chart:
    """How often each value occurs: `counts` by whole, non-negative value, at least one of them. `limits` are drawn as
    vertical lines, by name, where they lie within the picture."""
    low, high = min(counts), max(counts)
    step = max(1, math.ceil((high - low + 1) / BINS))
    bins = [0] * ((high - low) // step + 1)
    for value, count in counts.items():
        bins[(value - low) // step] += count
    end = low + step * len(bins)
    x, y = _scale(low, end, LEFT, WIDTH - RIGHT), _scale(0, max(bins), HEIGHT - BOTTOM, TOP)
    bars = [
        Bar(
            x=x(low + step * index) + 0.5,
            y=y(count),
            width=x(low + step) - x(low) - 1,
            height=y(0) - y(count),
            low=low + step * index,
            high=low + step * (index + 1) - 1,
            count=count,
        )
        for index, count in enumerate(bins)
    ]
    marks = [Mark(x(value), name) for name, value in (limits or {}).items() if low <= value <= end]
    return Chart(
        title,
        summary,
        unit,
        of,
        [Tick(x(at), _word(at)) for at in ticks(low, end)],
        [Tick(y(at), _word(at)) for at in ticks(0, max(bins)) if float(at).is_integer()],
        bars=bars,
        marks=marks,
    )


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, summary: str, x_label: str, y_label: str
) -> Chart | None:
    """One line a series of (x, y). Points that are not finite are left out; None when nothing is left to draw."""
    kept = {
        name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items() if points
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return None
    xs = [at for points in kept.values() for at, _ in points]
    ys = [value for points in kept.values() for _, value in points]
    x, y = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT), _scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    lines = [
        Line(
            name,
            " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points),
            DASHES[index % len(DASHES)],
            Tick(x(points[-1][0]), _word(points[-1][1])),
            points[0][1],
            points[-1][1],
        )
        for index, (name, points) in enumerate(kept.items())
    ]
    return Chart(
        title,
        summary,
        x_label,
        y_label,
        [Tick(x(at), _word(at)) for at in ticks(min(xs), max(xs))],
        [Tick(y(at), _word(at)) for at in ticks(min(ys), max(ys))],
        lines=lines,
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from low to high, about `wanted`: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _scale(low: float, high: float, at_low: float, at_high: float) -> Callable[[float], float]:
    """Maps low to at_low and high to at_high. Where both are the same, everything lies at at_low."""
    span = (high - low) or 1.0
    return lambda value: round(at_low + (value - low) / span * (at_high - at_low), 2)


def _word(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.4g}"
