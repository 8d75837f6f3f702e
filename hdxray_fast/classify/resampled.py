"""One class's metrics under many sets of image weights: sorted once, then sums, which scikit-learn would redo."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Ranked:
    """The images of a class, in falling order of their scores.

    Args:
        truth: ``[N]`` 0 or 1.
        score: ``[N]`` in [0, 1].
        threshold: ``score >= threshold`` is called present.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, threshold: float) -> None:
        self.order = np.argsort(-score, kind="stable")
        self.truth, score = truth[self.order].astype(np.float64), score[self.order]
        self.called = int((score >= threshold).sum())  # the first of the sorted ones
        starts = np.flatnonzero(np.append(True, np.diff(score) != 0)) if len(score) else self.order  # of ties
        held = np.add.reduceat(self.truth, starts) > 0 if len(score) else starts
        alone = ~held[1:] & ~held[:-1] if len(score) else starts  # negatives after negatives: no need to part them
        self.starts = np.delete(starts, 1 + np.flatnonzero(alone))

    def steps(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight of the positives, and of all, that each step of a falling threshold adds; of sorted ``[N]``."""
        if not len(weights):
            return np.zeros(1), np.zeros(1)
        return np.add.reduceat(weights * self.truth, self.starts), np.add.reduceat(weights, self.starts)

    def decided(self, weights: np.ndarray) -> tuple[float, float]:
        """Weight of the positives, and of all, that are called present; of sorted ``[N]``."""
        called = weights[: self.called]
        return float(called @ self.truth[: self.called]), float(called.sum())


class Resampled(Ranked):
    """``MEASURED`` of each draw; arguments as for :class:`Ranked`."""

    MEASURED = ("auroc", "auprc", "f1", "balanced_accuracy")

    def measure(self, weights: Iterable[np.ndarray]) -> np.ndarray:
        """``[draws, len(MEASURED)]`` for weights ``[N]`` of each; NaN without positives or negatives."""
        rows = [self._one(drawn[self.order]) for drawn in weights]
        return np.array(rows, np.float64).reshape(-1, len(self.MEASURED))

    def _one(self, weights: np.ndarray) -> list[float]:
        gained, passed = self.steps(weights)
        true, every = np.cumsum(gained), np.cumsum(passed)
        positives, negatives = true[-1], every[-1] - true[-1]
        if positives <= 0 or negatives <= 0:
            return [np.nan] * len(self.MEASURED)
        auroc = ((passed - gained) * (true - gained / 2)).sum() / (positives * negatives)
        auprc = (gained * true / np.maximum(every, np.finfo(np.float64).tiny)).sum() / positives
        found, called = self.decided(weights)
        f1 = 2 * found / (called + positives)
        balanced = (found / positives + 1 - (called - found) / negatives) / 2
        return [auroc, auprc, f1, balanced]
