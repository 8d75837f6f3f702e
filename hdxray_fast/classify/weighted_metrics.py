"""The metrics of one class under many sets of weights at once, by what was called present."""

from __future__ import annotations

import numpy as np

from .calibration import calibration_bins

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
        self.starts = self._starts(self.score)  # of ties
        self.bins, self.gaps = self._starts(calibration_bins(self.score)), self.score - self.truth

    @staticmethod
    def _starts(ordered: np.ndarray) -> np.ndarray:
        """Where each run of equal numbers begins."""
        return np.flatnonzero(np.append(True, np.diff(ordered) != 0)) if len(ordered) else np.zeros(0, int)

    def measure(self, weights: np.ndarray) -> np.ndarray:
        """``[draws, len(MEASURED)]`` for weights ``[draws, N]``; NaN where positives or negatives have no weight."""
        weights = weights[:, self.order]
        found = np.full((len(weights), len(MEASURED)), np.nan)
        if not len(self.order):
            return found
        positive = weights * self.truth
        positives, total = positive.sum(axis=1), weights.sum(axis=1)
        some = (positives > 0) & (total > positives)
        if not some.all():
            weights, positive, positives, total = (part[some] for part in (weights, positive, positives, total))
        negatives = total - positives
        if not some.any():
            return found
        steps, all_steps = positive, weights  # as the threshold falls
        if len(self.starts) < len(self.order):
            steps, all_steps = (np.add.reduceat(part, self.starts, axis=1) for part in (positive, weights))
        true, called = np.cumsum(steps, axis=1), np.cumsum(all_steps, axis=1)
        precision = true / np.maximum(called, np.finfo(np.float64).tiny)
        above = np.einsum("bn,bn->b", all_steps - steps, true - steps / 2)
        by = {
            "auroc": above / (positives * negatives),
            "auprc": np.einsum("bn,bn->b", steps, precision) / positives,
            "calibration_error": np.abs(np.add.reduceat(weights * self.gaps, self.bins, axis=1)).sum(axis=1) / total,
        }
        if self.called is not None:
            right, called = positive @ self.called, weights @ self.called
            by["sensitivity"] = right / positives
            by["specificity"] = 1 - (called - right) / negatives
            by["balanced_accuracy"] = (by["sensitivity"] + by["specificity"]) / 2
            by["f1"] = 2 * right / (called + positives)
        for number, name in enumerate(MEASURED):
            if name in by:
                found[some, number] = by[name]
        return found
