"""The frame that all pages share: escaping, pictures, structure."""

from __future__ import annotations

import pytest
from tests.html_page import Page

from finetune_trainer.pages import charts, page, text

CHARTS = """
{% extends "frame.html" %}
{% import "charts.html" as charts %}
{% block title %}{{ title }}{% endblock %}
{% block lead %}<h1>{{ title }}</h1>{% endblock %}
{% block content %}
<section id="a"><h2>Figures</h2>
{{ charts.tiles([("tokens", 1200 | spaced, title)]) }}
{{ charts.chart(lengths, "lengths") }}
{{ charts.chart(losses, "losses") }}
{{ charts.shares([(title, 3), ("b", 1)], 4, "Label", "Examples", "How often") }}
<p>{{ title | shown }}</p>
</section>
{% endblock %}
"""
HOSTILE = "<script>alert(1)</script>\"' onload=x \u202egnp.exe\x1b[31m{{ 7*7 }}"


def rendered(title: str) -> Page:
    lengths = charts.histogram({12: 3, 40: 1, 900: 2}, title=title, summary=title, unit="tokens", of="examples")
    losses = charts.curves({title: [(1, 2.0), (2, 1.0)]}, title="Loss", summary="s", x_label="step", y_label="loss")
    template = page.environment().from_string(CHARTS)
    return Page(template.render(title=title, lengths=lengths, losses=losses, sections=[("a", title)]))


@pytest.mark.parametrize("title", ["A plain title", HOSTILE])
def test_a_page_is_well_formed_and_holds_nothing_foreign(title: str) -> None:
    found = rendered(title)
    assert found.problems == []
    assert found.headings == [1, 2]
    assert ("html", {"lang": "en"}) in found.tags
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in found.tags)
    assert found.count("svg") == 3  # two pictures and the line of a legend


def test_what_cannot_be_seen_is_shown_and_what_is_code_is_text() -> None:
    said = text.shown(HOSTILE)
    assert "<script>" not in said
    assert "&lt;script&gt;" in said
    assert "U+202E" in said
    assert "Right-to-left override" in said
    assert "U+001B" in said
    assert "\u202e" not in said
    assert "\x1b" not in said
    assert text.shown("a\nb\t\u0627") == '<bdi class="text">a\nb\t\u0627</bdi>'


def test_a_long_text_is_cut_and_says_so() -> None:
    said = text.shown("x" * 100_000, 1000)
    assert len(said) < 1200
    assert "99,000 more characters" in said


def test_every_value_is_in_one_bar() -> None:
    counts = {value: value % 5 + 1 for value in range(3, 2000, 7)}
    chart = charts.histogram(counts, title="t", summary="s", unit="tokens", of="examples", limits={"cut": 512})
    assert sum(bar.count for bar in chart.bars) == sum(counts.values())
    assert len(chart.bars) <= charts.BINS
    assert chart.bars[0].low == 3
    assert chart.bars[-1].high >= max(counts)
    assert all(chart.left <= bar.x and bar.x + bar.width <= chart.right for bar in chart.bars)
    assert all(bar.high + 1 == after.low for bar, after in zip(chart.bars, chart.bars[1:], strict=False))
    assert [mark.label for mark in chart.marks] == ["cut"]


def test_one_value_is_a_picture_too() -> None:
    chart = charts.histogram({0: 1}, title="t", summary="s", unit="tokens", of="examples")
    assert [bar.count for bar in chart.bars] == [1]


def test_a_curve_leaves_out_what_is_not_finite() -> None:
    chart = charts.curves(
        {"train": [(1, 2.0), (2, float("nan")), (3, 1.0)], "none": [(1, float("inf"))]},
        title="t",
        summary="s",
        x_label="x",
        y_label="y",
    )
    assert chart is not None
    assert [line.name for line in chart.lines] == ["train"]
    assert len(chart.lines[0].points.split()) == 2
    assert charts.curves({"a": []}, title="t", summary="s", x_label="x", y_label="y") is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (3, 1234567), (0.001, 0.0042), (-5, 5), (2, 2)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert 1 <= len(marks) <= 8
    assert all(low <= at <= high for at in marks)


def test_a_name_that_is_not_given_is_a_mistake() -> None:
    with pytest.raises(Exception, match="undefined"):
        page.environment().from_string("{{ nothing }}").render()
