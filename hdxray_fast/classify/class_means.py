"""Means of metrics over classes: over those with enough patients, in the draws that define all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..terminal import counted
from .intervals import Gaps, Interval, mean_interval, with_interval


@dataclass(frozen=True)
class Carried:
    """What a class with enough patients lends to the means.

    Attributes:
        ends: its intervals by metric; empty without draws.
        drawn: ``[B]`` by metric; NaN where a draw does not define it.
        gaps: of its calibration error.
    """

    ends: Mapping[str, Interval | None]
    drawn: Mapping[str, np.ndarray]
    gaps: Gaps


def add_means(report: dict, metrics: Sequence[str], carried: Mapping[str, Carried]) -> None:
    """Add ``mean``, and with ``mean_over`` over which classes it is.

    Args:
        report: has ``classes``.
        metrics: names.
        carried: of the classes with enough patients; if there is none, means are over all that are defined.
    """
    rows = report["classes"]
    over, each = (
        list(carried) or [name for name, row in rows.items() if row[metrics[0]] is not None],
        [*carried.values()],
    )
    drawn = {metric: np.stack([one.drawn[metric] for one in each]) for metric in each[0].drawn} if each else {}
    whole = np.isfinite([*drawn.values()]).all(axis=(0, 1)) if each else np.zeros(0, bool)  # draws with all classes
    report["mean"] = {}
    for metric in metrics:
        values = [rows[name][metric]["value"] for name in over]
        ends = [one.ends.get(metric) for one in each]
        reach = None
        if ends and all(ends) and whole.sum() > 1:
            reach = (
                Gaps.mean([one.gaps for one in each]).interval()
                if metric == "calibration_error"
                else mean_interval(values, ends, drawn[metric][:, whole])
            )
        report["mean"][metric] = with_interval(float(np.mean(values)) if values else np.nan, reach)
    marks = {rows[name]["few"] for name in over}
    few = "" if "" in marks or not over else "few" if each else "too few"  # one with enough lends its patients
    left_out = [name for name in rows if name not in over]
    report["mean_over"] = {"classes": over, "left_out": left_out, "draws": int(whole.sum()), "few": few}


def describe_mean(over: Mapping) -> str:
    """Over how many classes a mean is and without which, of a report's ``mean_over``; blank if over all."""
    if not over["left_out"]:
        return ""
    if not over["classes"]:
        return "there is no mean: no class has images with the finding and without it"
    return f"the mean is over {counted(len(over['classes']), 'class')}, without {', '.join(over['left_out'])}"
