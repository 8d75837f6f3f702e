"""How good predictions are, per class, with intervals over patients; the counting itself is scikit-learn's.

`selection.py` ranks models on the validation set by the same two functions, without intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..data.bootstrap import bootstrap_counts, interval
from ..errors import ArgumentError, MissingDependencyError

METRICS = ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error")
CALIBRATION_BINS = 15  # equal widths, as Guo et al., https://arxiv.org/abs/1706.04599


def evaluate_predictions(
    labels: np.ndarray,  # [N, C] 1, 0 or NaN
    probabilities: np.ndarray,  # [N, C] in [0, 1]
    classes: Sequence[str],
    patients: Sequence[str],
    thresholds: Sequence[float],
    bootstraps: int = 1000,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> dict:
    """All metrics of a test set.

    Args:
        labels: ``[N, C]``; NaN rows of a class are left out of it.
        probabilities: ``[N, C]``.
        classes: ``C`` names.
        patients: ``N`` ids; intervals draw patients, not images, since images of one patient are alike.
        thresholds: ``C`` decision thresholds for F1 and balanced accuracy, chosen on other data
            (:func:`best_threshold`).
        bootstraps: draws for the 95 % percentile intervals; 0 for none.
        seed: of the draws.
        weights: ``N`` weights of the images, at least 0 (for a sample that was not drawn evenly); left out, all equal.

    Returns:
        ``{"classes": {name: {"positive", "negative", "threshold", metric: {"value", "low", "high"}}}, "mean": ...}``,
        JSON-able. A metric that is not defined (a class without positives or negatives) is ``None``; means are over
        the classes that have one.

    Raises:
        ArgumentError: shapes differ, or probabilities are not finite numbers in [0, 1].
    """
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 2 or labels.shape[1] != len(classes):
        raise ArgumentError(
            f"probabilities: got shape {list(probabilities.shape)}, labels have {list(labels.shape)} and there are "
            f"{len(classes)} classes"
        )
    if len(patients) != len(labels) or len(thresholds) != len(classes):
        raise ArgumentError("patients: one is needed per row, and thresholds: one per class")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ArgumentError("probabilities: accepted are finite numbers from 0 to 1")
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(labels),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ArgumentError(f"weights: accepted is a finite number of at least 0 for each of {len(labels)} images")
    draws = bootstrap_counts(patients, bootstraps, seed)
    report: dict = {"classes": {}, "bootstraps": bootstraps, "images": len(labels), "patients": len(set(patients))}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for column, name in enumerate(classes):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column].astype(int), probabilities[known, column]
        row: dict = {
            "positive": int(truth.sum()),
            "negative": int((1 - truth).sum()),
            "threshold": float(thresholds[column]),
        }
        given = None if weights is None else weights[known]
        drawn = Resampled(truth, score, thresholds[column]).measure(
            draws[:, known] if given is None else draws[:, known] * given
        )
        for number, metric in enumerate(METRICS):
            samples[metric].append(drawn[:, number])
            value = _defined(_measure(metric, thresholds[column]), truth, score, given)
            row[metric] = _with_interval(value, drawn[:, number])
        report["classes"][name] = row
    report["mean"] = {}
    for metric in METRICS:
        values = [row[metric]["value"] for row in report["classes"].values() if row[metric] is not None]
        stacked = np.stack(samples[metric]) if samples[metric] else np.zeros((0, 0))
        some = ~np.isnan(stacked).all(axis=0)  # a draw counts with the classes that it defines
        drawn = np.nanmean(stacked[:, some], axis=0) if some.any() else np.zeros(0)
        report["mean"][metric] = _with_interval(float(np.mean(values)) if values else np.nan, drawn)
    return report


class Resampled:
    """The metrics of one class under many sets of image weights: sorted once, then sums, which scikit-learn would redo.

    Args:
        truth: ``[N]`` 0 or 1.
        score: ``[N]`` in [0, 1].
        threshold: decides for F1 and balanced accuracy.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, threshold: float) -> None:
        order = np.argsort(-score, kind="stable")
        self.order, self.truth, self.score = order, truth[order].astype(np.float64), score[order]
        self.ends = np.flatnonzero(np.append(np.diff(self.score) != 0, True)) if len(order) else order  # of ties
        self.called = int((score >= threshold).sum())  # the first of the sorted ones

    def measure(self, weights: np.ndarray) -> np.ndarray:
        """``[draws, len(METRICS)]`` for weights ``[draws, N]``; NaN where positives or negatives have no weight."""
        rows = [self._one(drawn) for drawn in weights[:, self.order]]
        return np.array(rows, np.float64).reshape(-1, len(METRICS))

    def _one(self, weights: np.ndarray) -> list[float]:
        positive = weights * self.truth
        hits, alarms = np.cumsum(positive), np.cumsum(weights - positive)
        positives, negatives = (hits[-1], alarms[-1]) if len(weights) else (0.0, 0.0)
        if positives <= 0 or negatives <= 0:
            return [np.nan] * len(METRICS)
        true, false = (np.concatenate([[0.0], sums[self.ends]]) for sums in (hits, alarms))  # as the threshold falls
        auroc = (np.diff(false) * (true[1:] + true[:-1])).sum() / (2 * positives * negatives)
        precision = true[1:] / np.maximum(true[1:] + false[1:], np.finfo(np.float64).tiny)
        auprc = (np.diff(true) * precision).sum() / positives
        found, wrong = (hits[self.called - 1], alarms[self.called - 1]) if self.called else (0.0, 0.0)
        f1 = 2 * found / (found + wrong + positives)
        balanced = (found / positives + 1 - wrong / negatives) / 2
        return [auroc, auprc, f1, balanced, calibration_error(self.truth, self.score, weights)]


def best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold with the best F1 (``probability >= threshold`` is positive); 0.5 where one kind is missing.

    Args:
        labels: ``[N]`` 1, 0 or NaN, of validation images.
        probabilities: ``[N]``.

    Raises:
        ArgumentError: a probability is not finite.
    """
    known = ~np.isnan(labels)
    truth, score = labels[known].astype(int), probabilities[known]
    if not np.isfinite(score).all():
        raise ArgumentError("probabilities: accepted are finite numbers from 0 to 1")
    if not truth.any() or truth.all():
        return 0.5
    precision, recall, thresholds = _sklearn().precision_recall_curve(truth, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[int(np.argmax(f1[:-1]))])


def calibration_error(truth: np.ndarray, score: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """Expected calibration error over bins of equal width: mean gap between predicted and observed frequency."""
    weights = np.ones(len(truth)) if sample_weight is None else sample_weight
    bins = np.minimum((score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights * (score - truth), CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def _measure(metric: str, threshold: float) -> Callable[..., float]:
    library = _sklearn()
    decided = {"f1": library.f1_score, "balanced_accuracy": library.balanced_accuracy_score}
    if metric in decided:
        return lambda truth, score, sample_weight=None: decided[metric](
            truth, (score >= threshold).astype(int), sample_weight=sample_weight
        )
    return {
        "auroc": library.roc_auc_score,
        "auprc": library.average_precision_score,
        "calibration_error": calibration_error,
    }[metric]


def _defined(
    measure: Callable[..., float], truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The metric, or NaN where positives or negatives are missing."""
    if weights is not None:
        drawn = weights > 0
        truth, score, weights = truth[drawn], score[drawn], weights[drawn]
    if truth.size == 0 or truth.min() == truth.max():
        return np.nan
    return float(measure(truth, score, sample_weight=weights))


def _with_interval(value: float, drawn: np.ndarray) -> dict | None:
    """Value and 95 % percentile interval; None for a metric that is not defined."""
    if np.isnan(value):
        return None
    drawn = drawn[~np.isnan(drawn)]
    low, high = interval(drawn) if drawn.size else (None, None)
    return {"value": float(value), "low": low, "high": high}


def format_metrics(report: dict) -> str:
    """A report of :func:`evaluate_predictions` as a table for a terminal."""
    names = [*report["classes"], "mean"]
    width = max(map(len, names))
    head = f"{'':{width}}  {'pos':>6} {'neg':>6}  " + "  ".join(f"{metric.replace('_', ' '):>22}" for metric in METRICS)
    lines = [head]
    for name in names:
        row = report["classes"].get(name) or report["mean"]
        support = f"{row['positive']:>6} {row['negative']:>6}" if "positive" in row else " " * 13
        lines.append(f"{name:{width}}  {support}  " + "  ".join(f"{_cell(row[metric]):>22}" for metric in METRICS))
    if any(
        row["calibration_error"] and row["calibration_error"]["low"] is not None for row in report["classes"].values()
    ):
        lines.append(
            "calibration error: draws of patients lie above it, so its interval leans upward and may leave it out"
        )
    return "\n".join(lines)


def _cell(value: dict | None) -> str:
    if value is None:
        return "N/A"
    interval = "" if value["low"] is None else f" ({value['low']:.3f}-{value['high']:.3f})"
    return f"{value['value']:.3f}{interval}"


def _sklearn():
    try:
        import sklearn.metrics
    except ImportError as error:
        raise MissingDependencyError("evaluation needs scikit-learn: pip install 'hdxray-fast[classify]'") from error
    return sklearn.metrics
