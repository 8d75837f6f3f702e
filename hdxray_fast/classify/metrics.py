"""How good predictions are, per class, with intervals over patients; the counting itself is scikit-learn's.

`selection.py` ranks models on the validation set by the same two functions, without intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..data.bootstrap import bootstrap_counts, interval
from ..errors import ArgumentError, ConfigError, MissingDependencyError
from .calibration import calibration_by_chance, calibration_error
from .exclusive import OF_A_CLASS, OF_ALL, RANKING, Decisions, describe_decisions
from .interval_text import interval_text
from .operating_points import OperatingPoints, describe_points, point_names, read_prevalence

METRICS = ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error")


def evaluate_predictions(
    labels: np.ndarray,  # [N, C] 1, 0 or NaN
    probabilities: np.ndarray,  # [N, C] in [0, 1]
    classes: Sequence[str],
    patients: Sequence[str],
    thresholds: Sequence[float],
    bootstraps: int = 1000,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    multiclass: bool = False,
    prevalence: str | float | None = None,
) -> dict:
    """All metrics of a test set.

    Of classes that exclude each other the most probable is the decision: beside AUROC and AUPRC, which rank, all that
    is told is of this decision, and thresholds are looked at nowhere.

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
        multiclass: exactly one class of each image holds.
        prevalence: of the classes where they will be looked for, for predictive values: a share, or
            ``"Edema=0.05, ..."``; not of exclusive classes.

    Returns:
        ``{"classes": {name: {"positive", "negative", "threshold", metric: {"value", "low", "high"}}}, "mean": ...}``,
        JSON-able. A metric that is not defined (a class without positives or negatives) is ``None``; means are over
        the classes that have one. A class also has ``calibration_by_chance`` (:func:`.calibration_by_chance`) and
        ``operating_points`` (:class:`.OperatingPoints`). With ``multiclass`` its metrics are ``RANKING`` and
        ``OF_A_CLASS``, and ``"decisions"`` holds ``OF_ALL``, ``calibration_by_chance``, and ``confusion [C, C]``:
        images (or weights) by the class that holds and the one decided.

    Raises:
        ArgumentError: shapes differ, or probabilities are not finite numbers in [0, 1].
        ConfigError: ``prevalence`` is none, names no class, or classes exclude each other.
    """
    if multiclass and prevalence is not None:
        raise ConfigError("prevalence: predictive values are of classes with a threshold; these exclude each other")
    shares = read_prevalence(prevalence, classes)
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 2 or labels.shape[1] != len(classes):
        raise ArgumentError(
            f"probabilities: got shape {list(probabilities.shape)}, labels have {list(labels.shape)} and there are "
            f"{len(classes)} classes"
        )
    if len(patients) != len(labels) or (len(thresholds) != len(classes) and not multiclass):
        raise ArgumentError("patients: one is needed per row, and thresholds: one per class")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ArgumentError("probabilities: accepted are finite numbers from 0 to 1")
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(labels),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ArgumentError(f"weights: accepted is a finite number of at least 0 for each of {len(labels)} images")
    draws = bootstrap_counts(patients, bootstraps, seed)
    report: dict = {"classes": {}, "bootstraps": bootstraps, "images": len(labels), "patients": len(set(patients))}
    metrics = RANKING if multiclass else METRICS
    samples: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for column, name in enumerate(classes):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column].astype(int), probabilities[known, column]
        row: dict = {
            "positive": int(truth.sum()),
            "negative": int((1 - truth).sum()),
        }
        threshold = 0.5 if multiclass else float(thresholds[column])
        given = None if weights is None else weights[known]
        counts = draws[:, known] if given is None else draws[:, known] * given
        drawn = Resampled(truth, score, threshold).measure(counts)
        for number, metric in enumerate(METRICS):
            if metric in metrics:
                samples[metric].append(drawn[:, number])
                value = _defined(_measure(metric, threshold), truth, score, given)
                row[metric] = _with_interval(value, drawn[:, number])
        if not multiclass:
            row["threshold"] = threshold
            defined = row["calibration_error"] is not None
            row["calibration_by_chance"] = calibration_by_chance(score, given, seed=seed) if defined else None
            share = shares.get(name)
            points = OperatingPoints(truth, score, threshold, share)
            value = points.measure(np.ones((1, len(truth))) if given is None else given[None])[0]
            drawn = points.measure(counts)
            told = {key: _with_interval(value[at], drawn[:, at]) for at, key in enumerate(point_names(share))}
            row["operating_points"] = {**told, "prevalence": share}
        report["classes"][name] = row
    report["mean"] = {}
    for metric in metrics:
        values = [row[metric]["value"] for row in report["classes"].values() if row[metric] is not None]
        stacked = np.stack(samples[metric]) if samples[metric] else np.zeros((0, 0))
        some = ~np.isnan(stacked).all(axis=0)  # a draw counts with the classes that it defines
        drawn = np.nanmean(stacked[:, some], axis=0) if some.any() else np.zeros(0)
        report["mean"][metric] = _with_interval(float(np.mean(values)) if values else np.nan, drawn)
    if multiclass:
        _add_decisions(report, Decisions.of(labels, probabilities), list(classes), draws, weights)
    return report


def _add_decisions(
    report: dict, found: Decisions, classes: list[str], draws: np.ndarray, weights: np.ndarray | None
) -> None:
    """What exclusive classes have beside ``RANKING``: under ``decisions``, in each class, and in the mean."""
    given = np.ones(len(found.rows)) if weights is None else weights[found.rows]
    counts = draws[:, found.rows] * given
    (value,), (of_class,) = found.measure(given[None])
    drawn, class_drawn = found.measure(counts) if len(counts) else (np.zeros((0, len(OF_ALL))), None)
    told: dict = {name: _with_interval(value[at], drawn[:, at]) for at, name in enumerate(OF_ALL)}
    told["calibration_by_chance"] = calibration_by_chance(found.confidence, given) if len(given) else None
    report["decisions"] = {**told, "classes": classes, "confusion": found.confusion(given).tolist()}
    for column, name in enumerate(classes):
        for at, metric in enumerate(OF_A_CLASS):
            sample = np.zeros(0) if class_drawn is None else class_drawn[:, column, at]
            report["classes"][name][metric] = _with_interval(of_class[column, at], sample)
    report["mean"] |= {"f1": told["macro_f1"], "recall": told["mean_recall"]}


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
    metrics = (*RANKING, *OF_A_CLASS) if "decisions" in report else METRICS
    chance = "decisions" not in report
    width = max(map(len, names))
    head = f"{'':{width}}  {'pos':>6} {'neg':>6}  " + "  ".join(f"{metric.replace('_', ' '):>22}" for metric in metrics)
    lines = [head + ("  by chance" if chance else "")]
    for name in names:
        row = report["classes"].get(name) or report["mean"]
        support = f"{row['positive']:>6} {row['negative']:>6}" if "positive" in row else " " * 13
        line = f"{name:{width}}  {support}  " + "  ".join(f"{interval_text(row[metric]):>22}" for metric in metrics)
        by_chance = row.get("calibration_by_chance")
        lines.append(line + (f"  {by_chance['value']:>9.3f}" if by_chance else ""))
    if not chance:
        return "\n".join([*lines, *describe_decisions(report["decisions"])])
    if any(row["calibration_by_chance"] for row in report["classes"].values()):
        lines.append("by chance: the calibration error that perfectly calibrated probabilities show on such cases")
    if any(
        row["calibration_error"] and row["calibration_error"]["low"] is not None for row in report["classes"].values()
    ):
        lines.append(
            "calibration error: draws of patients lie above it, so its interval leans upward and may leave it out"
        )
    return "\n".join([*lines, *describe_points(report["classes"])])


def _sklearn():
    try:
        import sklearn.metrics
    except ImportError as error:
        raise MissingDependencyError("evaluation needs scikit-learn: pip install 'hdxray-fast[classify]'") from error
    return sklearn.metrics
