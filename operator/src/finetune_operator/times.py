"""Moments as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_time(text: str | None, default: datetime) -> datetime:
    """RFC 3339 as Kubernetes writes it, or the default where there is none or it is unreadable."""
    if not text:
        return default
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return default
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def stamp(moment: datetime) -> str:
    """The moment in whole seconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
