"""The metrics of one class under many sets of weights at once, by what was called present; and DeLong for clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import CALIBRATION_BINS

RANKED = ("auroc", "auprc", "calibration_error")  # of probabilities
DECIDED = ("sensitivity", "specificity", "balanced_accuracy", "f1")  # of what was called present
MEASURED = ("auroc", "auprc", "sensitivity", "specificity", "balanced_accuracy", "f1", "calibration_error")


class WeightedMetrics:
    """``MEASURED`` of one class.

    Args:
        truth: ``[N]`` 0 or 1.
        score: ``[N]`` in [0, 1].
        called: ``[N]`` bool, called present; ``None`` if not known: what rests on it is NaN.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, called: np.ndarray | None) -> None:
        self.order = np.argsort(-score, kind="stable")
        self.truth, self.score = truth[self.order].astype(np.float64), score[self.order]
        self.called = None if called is None else called[self.order].astype(np.float64)
        ends = np.append(np.diff(self.score) != 0, True) if len(score) else np.zeros(0, bool)
        self.ends = np.flatnonzero(ends)  # of ties
        bins = np.minimum((self.score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        self.gaps = np.zeros((len(score), CALIBRATION_BINS))
        self.gaps[np.arange(len(score)), bins] = self.score - self.truth

    def measure(self, weights: np.ndarray) -> np.ndarray:
        """``[draws, len(MEASURED)]`` for weights ``[draws, N]``; NaN where positives or negatives have no weight."""
        weights = weights[:, self.order]
        found = np.full((len(weights), len(MEASURED)), np.nan)
        if not len(self.order):
            return found
        positive = weights * self.truth
        hits = np.cumsum(positive, axis=1)[:, self.ends]
        alarms = np.cumsum(weights - positive, axis=1)[:, self.ends]
        positives, negatives = hits[:, -1], alarms[:, -1]
        some = (positives > 0) & (negatives > 0)
        if not some.any():
            return found
        true, false = hits[some], alarms[some]
        positives, negatives, total = positives[some], negatives[some], weights[some].sum(axis=1)
        true_steps, false_steps = np.diff(true, axis=1, prepend=0), np.diff(false, axis=1, prepend=0)
        tiny = np.finfo(np.float64).tiny
        by = {
            "auroc": (false_steps * (true - true_steps / 2)).sum(axis=1) / (positives * negatives),
            "auprc": (true_steps * true / np.maximum(true + false, tiny)).sum(axis=1) / positives,
            "calibration_error": np.abs(weights[some] @ self.gaps).sum(axis=1) / total,
        }
        if self.called is not None:
            right, called = positive[some] @ self.called, weights[some] @ self.called
            by["sensitivity"] = right / positives
            by["specificity"] = 1 - (called - right) / negatives
            by["balanced_accuracy"] = (by["sensitivity"] + by["specificity"]) / 2
            by["f1"] = 2 * right / (called + positives)
        for number, name in enumerate(MEASURED):
            if name in by:
                found[some, number] = by[name]
        return found


def delong_parts(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Structural components of the AUROC (DeLong 1988), ``[N]``: of a positive the share of negatives below it, of a
    negative that of positives above it; ties count half.

    Args:
        truth: ``[N]`` 0 or 1.
        score: ``[N]``.
    """
    parts = np.zeros(len(truth))
    positive = truth == 1
    for own, other, sign in ((positive, ~positive, 1), (~positive, positive, -1)):
        there = np.sort(sign * score[other])
        below = np.searchsorted(there, sign * score[own], "left") + np.searchsorted(there, sign * score[own], "right")
        parts[own] = below / (2 * len(there))
    return parts


def delong_error(truth: np.ndarray, parts: np.ndarray, patients: Sequence[str]) -> float:
    """Standard error of an AUROC, or of a difference of two, over patients with several images (Obuchowski 1997).

    Args:
        truth: ``[N]`` 0 or 1, both there.
        parts: ``[N]`` of :func:`delong_parts`, or the difference of two models' (or a mean over runs).
        patients: ``N`` ids.

    Returns:
        The standard error; NaN with a single patient of a kind.
    """
    _, member = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    positive, patient_count = truth == 1, int(member.max()) + 1
    sums, kinds = [], []
    for rows in (positive, ~positive):
        deviation = (parts[rows] - parts[rows].mean()) / rows.sum()
        sums.append(np.bincount(member[rows], deviation, patient_count))
        kinds.append(len(np.unique(member[rows])))
    if min(kinds) < 2:
        return float("nan")
    own = sum(kind / (kind - 1) * (values**2).sum() for kind, values in zip(kinds, sums, strict=True))
    both = 2 * patient_count / (patient_count - 1) * (sums[0] * sums[1]).sum()
    return float(max(own + both, 0.0) ** 0.5)
