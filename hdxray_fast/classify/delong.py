"""DeLong's structural components of the AUROC, and its standard error over patients with several images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def delong_parts(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Structural components of the AUROC (DeLong 1988), ``[N]``: of a positive the share of negatives below it, of a
    negative that of positives above it; ties count half.

    Args:
        truth: ``[N]`` 0 or 1.
        score: ``[N]``.
        weights: ``[N]`` of the images, above 0; left out, all equal.
    """
    parts = np.zeros(len(truth))
    weights = np.ones(len(truth)) if weights is None else weights
    positive = truth == 1
    for own, other, sign in ((positive, ~positive, 1), (~positive, positive, -1)):
        there = sign * score[other]
        order = np.argsort(there, kind="stable")
        there, below = there[order], np.append(0.0, np.cumsum(weights[other][order]))
        left, right = (np.searchsorted(there, sign * score[own], side) for side in ("left", "right"))
        parts[own] = (below[left] + below[right]) / (2 * below[-1])
    return parts


def delong_error(
    truth: np.ndarray, parts: np.ndarray, patients: Sequence[str], weights: np.ndarray | None = None
) -> float:
    """Standard error of an AUROC, or of a difference of two, over patients with several images (Obuchowski 1997).

    Args:
        truth: ``[N]`` 0 or 1, both there.
        parts: ``[N]`` of :func:`delong_parts`, or the difference of two models' (or a mean over runs).
        patients: ``N`` ids.
        weights: ``[N]`` of the images, above 0; left out, all equal.

    Returns:
        The standard error; NaN with a single patient of a kind.
    """
    _, member = np.unique(np.asarray(patients), return_inverse=True)
    weights = np.ones(len(truth)) if weights is None else weights
    positive, patient_count = truth == 1, int(member.max()) + 1
    sums, kinds = [], []
    for rows in (positive, ~positive):
        own = weights[rows]
        deviation = own * (parts[rows] - np.average(parts[rows], weights=own)) / own.sum()
        sums.append(np.bincount(member[rows], deviation, patient_count))
        kinds.append(len(np.unique(member[rows])))
    if min(kinds) < 2:
        return float("nan")
    own = sum(kind / (kind - 1) * (values**2).sum() for kind, values in zip(kinds, sums, strict=True))
    both = 2 * patient_count / (patient_count - 1) * (sums[0] * sums[1]).sum()
    return float(max(own + both, 0.0) ** 0.5)
