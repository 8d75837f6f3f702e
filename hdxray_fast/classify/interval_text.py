"""Numbers as tables and captions write them: a metric with its interval, a probability beside its threshold."""

from __future__ import annotations

from ..data.paired import FEW, FEWEST

_FEW = f"*: fewer than {FEW} patients with the finding or without it"
_TOO_FEW = f"too few: fewer than {FEWEST} patients with the finding or without it, no interval"


def legend(text: str) -> list[str]:
    """What the marks mean that stand in a text of :func:`interval_text`; nothing where there are none."""
    return ["; ".join(marks)] if (marks := [_FEW] * (")*" in text) + [_TOO_FEW] * ("(too few)" in text)) else []


def beside_threshold(value: float, threshold: float | None) -> str:
    """``0.62 (threshold 0.51)``, with as many digits as it takes to tell one from the other; ``0.62`` without one."""
    if threshold is None:
        return f"{value:.2f}"
    digits = next((n for n in range(2, 17) if f"{value:.{n}f}" != f"{threshold:.{n}f}"), 2)
    return f"{value:.{digits}f} (threshold {threshold:.{digits}f})"


def interval_text(value: dict | None, few: str = "") -> str:
    """``0.812 (0.741-0.873)``; without an interval the value alone, and ``N/A`` of what is not defined.

    Args:
        value: ``{"value", "low", "high"}``.
        few: ``"too few"`` cases for an interval, which is said in its place; ``"few"``, which is marked by ``*``.
    """
    if value is None:
        return "N/A"
    if value["low"] is None:
        return f"{value['value']:.3f}" + (f" ({few})" if few == "too few" else "")
    return f"{value['value']:.3f} ({value['low']:.3f}-{value['high']:.3f})" + ("*" if few == "few" else "")
