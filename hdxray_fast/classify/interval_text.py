"""A metric with its interval, as a table for a terminal writes it."""

from __future__ import annotations


def interval_text(value: dict | None) -> str:
    """``0.812 (0.741-0.873)``; without an interval the value alone, and ``N/A`` of what is not defined."""
    if value is None:
        return "N/A"
    return f"{value['value']:.3f}" + ("" if value["low"] is None else f" ({value['low']:.3f}-{value['high']:.3f})")
