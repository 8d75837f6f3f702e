"""A ratio held against its bar: met, missed, not known, or within its noise.

Of rows as record.py keeps them and of nothing else, so that any Python can read them.
"""

from __future__ import annotations

from typing import Any


def ratio_quartiles(ours: dict[str, Any], rival: dict[str, Any]) -> tuple[float, float] | None:
    """How low and how high the ratio rival / ours lies by the quartiles of both.

    Args:
        ours, rival: ``median``, ``q25``, ``q75`` and ``rounds``, or ``failed``.

    Returns:
        The rival's lower quartile by the upper one of ours, and the reverse. None where one has no two samples.
    """
    if min(figure.get("rounds", 0) for figure in (ours, rival)) < 2 or not ours["q25"]:
        return None
    return rival["q25"] / ours["q75"], rival["q75"] / ours["q25"]


def within_noise(ours: dict[str, Any], rival: dict[str, Any], bar: float | None) -> bool | None:
    """Whether the bar lies between the ratio's quartiles: it is then neither met nor missed. None: not known."""
    quartiles = ratio_quartiles(ours, rival)
    return None if bar is None or quartiles is None else quartiles[0] < bar <= quartiles[1]


def verdict(row: dict[str, Any]) -> str:
    """What became of a row's bar, in words: met, missed, not known, or within its noise (with the quartiles)."""
    if within_noise(row["ours"], row["rival"], row["bar"]):
        low, high = ratio_quartiles(row["ours"], row["rival"])
        return f"within its noise: {low:.3f} to {high:.3f}"
    return {True: "met", False: "missed", None: "not known"}[row["bar_met"]]
