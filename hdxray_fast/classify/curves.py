"""ROC, precision-recall and calibration of one class as points, with what chance leaves open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.bootstrap import PatientDraws
from ..errors import MissingDependencyError
from ..extras import install
from .intervals import share_interval
from .resampled import Ranked

BAND_STEPS = 101  # false positive rates at which a band is told
BAND_DRAWS = 200  # of patients; its ends are the 5th from either side
MOST_BINS = 10  # of a calibration
IMAGES_OF_A_BIN = 10  # fewer leave each bin to chance
MOST_POINTS = 400  # of a curve; more are not seen


@dataclass(frozen=True)
class ClassCurves:
    """Curves of a class.

    Attributes:
        roc: ``[2, K]``, false and true positive rates.
        band: ``[3, BAND_STEPS]``, false positive rates, and the middle 95 % of the true ones over draws of patients at
            each; ``None`` where there are too few patients.
        recall: ``[2, K]``, recall and precision.
        bins: of the calibration, a row each: mean probability, observed frequency, its 95 % interval over patients.
    """

    roc: np.ndarray
    band: np.ndarray | None
    recall: np.ndarray
    bins: np.ndarray


def class_curves(
    truth: np.ndarray,  # [N] 0 or 1, both there
    score: np.ndarray,  # [N] in [0, 1]
    rows: np.ndarray,  # [N] rows of the draws' images
    draws: PatientDraws,
    band: bool = True,
) -> ClassCurves:
    """The curves of a class's images; ``draws`` are of the patients of all images."""
    try:
        from sklearn.metrics import precision_recall_curve, roc_curve
    except ImportError as error:
        raise MissingDependencyError(f"curves need scikit-learn: {install('classify')}") from error
    false, true, _ = roc_curve(truth, score)
    precision, recall, _ = precision_recall_curve(truth, score)
    return ClassCurves(
        _thinned(np.stack([false, true])),
        _band(truth, score, draws.member[rows], draws) if band and len(draws) else None,
        _thinned(np.stack([recall, precision])),
        _bins_with_intervals(truth, score, draws.member[rows]),
    )


def calibration_points(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, observed frequency and number of images of each of a few bins of equally many images."""
    bins = _equal_bins(score)
    counts = np.bincount(bins)
    return np.bincount(bins, score) / counts, np.bincount(bins, truth) / counts, counts


def _equal_bins(score: np.ndarray) -> np.ndarray:
    """The bin of each image ``[N]``, none of them empty; images of one probability share one."""
    count = int(np.clip(len(score) // IMAGES_OF_A_BIN, 2, MOST_BINS))
    edges = np.unique(np.quantile(score, np.linspace(0, 1, count + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, score, side="left"), return_inverse=True)[1]


def _bins_with_intervals(truth: np.ndarray, score: np.ndarray, member: np.ndarray) -> np.ndarray:
    predicted, observed, _ = calibration_points(truth, score)
    bins = _equal_bins(score)
    ends = [
        share_interval(truth[bins == one] > 0, np.ones((bins == one).sum()), member[bins == one])
        for one in range(len(predicted))
    ]
    return np.column_stack([predicted, observed, np.asarray(ends)])


def _band(truth: np.ndarray, score: np.ndarray, member: np.ndarray, draws: PatientDraws) -> np.ndarray | None:
    ranked = Ranked(truth, score, 0.5)
    steps = np.linspace(0, 1, BAND_STEPS)
    found = []
    for part in draws.parts():
        for drawn in part[: max(0, BAND_DRAWS - len(found))]:
            gained, passed = ranked.steps(drawn[member][ranked.order])
            true, every = np.cumsum(gained), np.cumsum(passed)
            positives, negatives = true[-1], every[-1] - true[-1]
            if positives > 0 and negatives > 0:
                false = np.append(0.0, (every - true) / negatives)
                at = np.searchsorted(false, steps + 1e-12, side="right") - 1  # no point between two is made up
                found.append(np.append(0.0, true / positives)[at])
    return np.stack([steps, *np.percentile(found, (2.5, 97.5), axis=0)]) if found else None


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most ``MOST_POINTS`` columns, evenly along the curve, its ends among them."""
    if points.shape[1] <= MOST_POINTS:
        return points
    way = np.append(0.0, np.cumsum(np.abs(np.diff(points)).sum(0)))
    at = np.searchsorted(way, np.linspace(0, way[-1], MOST_POINTS))
    return points[:, np.unique(np.minimum(at, points.shape[1] - 1))]
