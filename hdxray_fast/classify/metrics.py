"""How good predictions are, per class, with intervals over patients; the counting itself is scikit-learn's.

`selection.py` ranks models on the validation set by the same two functions, without intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.bootstrap import PatientDraws
from ..data.paired import FEWEST
from ..errors import ArgumentError, ConfigError, MissingDependencyError
from ..extras import install
from ..terminal import aligned
from .calibration import CALIBRATION_BINS, calibration_bins, calibration_by_chance, calibration_error
from .class_means import Carried, add_means, describe_mean
from .exclusive import OF_A_CLASS, OF_ALL, RANKING, Decisions, describe_decisions
from .interval_text import interval_text, legend
from .intervals import ClassIntervals, Gaps, Interval, interval_of_draws, mean_interval, share_interval, with_interval
from .operating_points import (
    OperatingPoints,
    called_in,
    describe_one_sided,
    describe_points,
    point_names,
    read_prevalence,
)
from .resampled import Resampled

METRICS = ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error")


def evaluate_predictions(
    labels: np.ndarray,  # [N, C] 1, 0 or NaN
    probabilities: np.ndarray,  # [N, C] in [0, 1]
    classes: Sequence[str],
    patients: Sequence[str] | None,
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
        patients: ``N`` ids; intervals draw patients, not images, since images of one patient are alike. ``None``: not
            known, so that every image counts as a patient of its own; the report's counts of patients are ``None``.
        thresholds: ``C`` decision thresholds for F1 and balanced accuracy, chosen on other data
            (:func:`best_threshold`).
        bootstraps: draws of patients for the 95 % intervals (:mod:`.intervals`); 0 for none.
        seed: of the draws.
        weights: ``N`` weights of the images, at least 0 (for a sample that was not drawn evenly); left out, all equal.
        multiclass: exactly one class of each image holds.
        prevalence: of the classes where they will be looked for, for predictive values: a share, or
            ``"Edema=0.05, ..."``; not of exclusive classes.

    Returns:
        ``{"classes": {name: {"positive", "negative", "threshold", metric: {"value", "low", "high"}}}, "mean": ...}``,
        JSON-able. A metric that is not defined (a class without positives or negatives) is ``None``. A class also has
        ``positive_patients``, ``negative_patients`` and ``few``: with fewer than 5 of either it is ``"too few"``, its
        ``low`` and ``high`` are ``None`` and the mean leaves it out; with fewer than 10 it is ``"few"``. Where all
        classes have too few, means are over those that are defined, without interval. ``mean_over`` holds the
        ``classes`` of the means, those ``left_out``, on how many ``draws`` the means' intervals rest (those that
        define every class), and ``few``, if all of the classes have few. A class also has ``calibration_by_chance``
        (:func:`.calibration_by_chance`), ``called``, images at or above the threshold, and ``operating_points``
        (:class:`.OperatingPoints`). With ``multiclass`` its
        metrics are ``RANKING`` and ``OF_A_CLASS``, and ``"decisions"`` holds ``OF_ALL``, ``calibration_by_chance``, and
        ``confusion [C, C]``: images (or weights) by the class that holds and the one decided. A mean of these over a
        class that has too few has no interval.

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
    known_patients = patients is not None
    patients = patients if patients is not None else list(map(str, range(len(labels))))
    if len(patients) != len(labels) or (len(thresholds) != len(classes) and not multiclass):
        raise ArgumentError("patients: one is needed per row, and thresholds: one per class")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ArgumentError("probabilities: accepted are finite numbers from 0 to 1")
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(labels),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ArgumentError(f"weights: accepted is a finite number of at least 0 for each of {len(labels)} images")
    sample = _Sample.of(patients, weights, bootstraps, seed)
    report: dict = {"classes": {}, "bootstraps": bootstraps, "images": len(labels)}
    report["patients"] = sample.draws.count if known_patients else None
    metrics = RANKING if multiclass else METRICS
    carried: dict[str, Carried] = {}  # by the classes that have enough patients
    for column, name in enumerate(classes):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column].astype(int), probabilities[known, column]
        threshold = 0.5 if multiclass else float(thresholds[column])
        part = sample.part(known)
        intervals = ClassIntervals(truth, score, score >= threshold, part.member, part.weights)
        given = None if weights is None else part.weights
        values = {metric: _defined(_measure(metric, threshold), truth, score, given) for metric in metrics}
        row: dict = {
            "positive": int(truth.sum()),
            "negative": int((1 - truth).sum()),
            "positive_patients": intervals.support.positive_patients if known_patients else None,
            "negative_patients": intervals.support.negative_patients if known_patients else None,
            "few": intervals.support.few,
        }
        ends: Mapping[str, Interval | None] = {}
        if intervals.support.units >= FEWEST:
            carried[name] = _carried(
                values, Resampled(truth, score, threshold), part.gaps(score, truth), part, intervals
            )
            ends = carried[name].ends
        row |= {metric: with_interval(values[metric], ends.get(metric)) for metric in metrics}
        if not multiclass:
            row |= {"threshold": threshold, "called": int((score >= threshold).sum())}
            defined = row["calibration_error"] is not None
            row["calibration_by_chance"] = calibration_by_chance(score, given, seed=seed) if defined else None
            points = OperatingPoints(truth, score, threshold, shares.get(name))
            row["operating_points"] = _points(points, part, intervals)
        report["classes"][name] = row
    add_means(report, metrics, carried)
    if multiclass:
        _add_decisions(report, Decisions.of(labels, probabilities), list(classes), sample)
    return report


@dataclass(frozen=True)
class _Sample:
    """Images, their patients, and draws of these.

    Attributes:
        member: ``[N]`` which patient.
        weights: ``[N]``.
        draws: of all patients.
    """

    member: np.ndarray
    weights: np.ndarray
    draws: PatientDraws

    @classmethod
    def of(cls, patients: Sequence[str], weights: np.ndarray | None, bootstraps: int, seed: int) -> _Sample:
        draws = PatientDraws(patients, bootstraps, seed)
        return cls(draws.member, np.ones(len(draws.member)) if weights is None else weights, draws)

    def part(self, rows: np.ndarray) -> _Sample:
        """Some of the images."""
        return _Sample(self.member[rows], self.weights[rows], self.draws)

    def counts(self) -> Iterator[np.ndarray]:
        """The weight of each image in each draw."""
        return (drawn[self.member] * self.weights for part in self.draws.parts() for drawn in part)

    def gaps(self, score: np.ndarray, truth: np.ndarray) -> Gaps:
        bins = calibration_bins(score)
        return Gaps.of(bins, score, truth, self.weights, self.member, self.draws, CALIBRATION_BINS)


def _carried(
    values: dict[str, float], resampled: Resampled, gaps: Gaps, part: _Sample, intervals: ClassIntervals
) -> Carried:
    """Intervals of a class with enough patients, and what the mean's rest on."""
    drawn = dict(zip(Resampled.MEASURED, resampled.measure(part.counts()).T, strict=True))
    ends: dict[str, Interval | None] = {}
    if len(part.draws):
        ends = {name: intervals.of(name, value, drawn[name]) for name, value in values.items() if name in drawn}
        ends["calibration_error"] = gaps.interval()
    return Carried(ends, drawn, gaps)


def _points(points: OperatingPoints, part: _Sample, intervals: ClassIntervals) -> dict:
    """Operating points of a class with their intervals."""
    names, units = point_names(points.prevalence), intervals.support.units
    (value,) = points.measure(part.weights[None])
    ends: dict[str, Interval | None] = {}
    if units >= FEWEST and len(part.draws):
        drawn = points.measure(part.counts())
        ends = {name: interval_of_draws(value[at], drawn[:, at], units, units) for at, name in enumerate(names)}
        ends |= {"sensitivity": intervals.sensitivity(), "specificity": intervals.specificity()}
        if points.prevalence is not None:
            ends |= dict(zip(("ppv", "npv"), intervals.predictive_values(points.prevalence), strict=True))
    told = {name: with_interval(value[at], ends.get(name)) for at, name in enumerate(names)}
    return {**told, "prevalence": points.prevalence}


def _add_decisions(report: dict, found: Decisions, classes: list[str], sample: _Sample) -> None:
    """What exclusive classes have beside ``RANKING``: under ``decisions``, in each class, and in the mean."""
    part = sample.part(found.rows)
    (value,), (of_class,) = found.measure(part.weights[None])
    here = [column for column in range(len(classes)) if (found.truth == column).any()]
    ends: dict[str, Interval | None] = {}
    class_ends: list[dict[str, Interval]] = [{} for _ in classes]
    if len(part.draws) and len(here) > 1:
        for column in here:
            called = found.decided == column
            truth = (found.truth == column).astype(int)
            one = ClassIntervals(truth, called.astype(float), called, part.member, part.weights)
            if one.support.units >= FEWEST:
                class_ends[column] = {"f1": one.f1(), "recall": one.sensitivity()}
        if len(np.unique(part.member)) >= FEWEST:
            right, some = found.decided == found.truth, part.weights > 0
            ends["accuracy"] = share_interval(right[some], part.weights[some], part.member[some])
            ends["calibration_error"] = part.gaps(found.confidence, right).interval()
        if all(class_ends[column] for column in here):
            drawn = np.concatenate([found.measure(counts[None])[1] for counts in part.counts()])
            drawn = drawn[np.isfinite(drawn[:, here]).all(axis=(1, 2))]
            for at, (metric, mean) in enumerate(zip(OF_A_CLASS, ("macro_f1", "mean_recall"), strict=True)):
                each = [class_ends[column][metric] for column in here]
                ends[mean] = mean_interval(of_class[here, at], each, drawn[:, here, at].T)
    told: dict = {name: with_interval(value[at], ends.get(name)) for at, name in enumerate(OF_ALL)}
    told["calibration_by_chance"] = calibration_by_chance(found.confidence, part.weights) if len(found.rows) else None
    report["decisions"] = {**told, "classes": classes, "confusion": found.confusion(part.weights).tolist()}
    for column, name in enumerate(classes):
        for at, metric in enumerate(OF_A_CLASS):
            report["classes"][name][metric] = with_interval(of_class[column, at], class_ends[column].get(metric))
    report["mean"] |= {"f1": told["macro_f1"], "recall": told["mean_recall"]}


def best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold with the best F1 (``probability >= threshold`` is positive); 0.5 where one kind is missing.

    It lies halfway between two images' probabilities (of the lowest, between it and 0): one that is an image's own
    would call that image this or that by the last bit of another batch size, device or precision.

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
    lowest = float(thresholds[int(np.argmax(f1[:-1]))])  # of those that are called positive
    below = float(score[score < lowest].max(initial=0.0))
    halfway = below + (lowest - below) / 2
    return halfway if halfway > below else lowest  # neighbours among the numbers have nothing between them


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


def format_metrics(report: dict) -> str:
    """A report of :func:`evaluate_predictions` as a table for a terminal."""
    metrics = (*RANKING, *OF_A_CLASS) if "decisions" in report else METRICS
    chance = "decisions" not in report
    over = report.get("mean_over") or {"classes": [], "left_out": [], "draws": 0, "few": ""}  # of an earlier release
    rows = dict(report["classes"])
    several = len(rows) > 1
    if several:  # of one class it is that class again
        rows["mean"] = report["mean"]
    few = {name: row.get("few", over["few"]) if report["bootstraps"] else "" for name, row in rows.items()}
    table = [["", "pos", "neg", *(metric.replace("_", " ") for metric in metrics), *["by chance"] * chance]]
    for name, row in rows.items():
        by_chance = row.get("calibration_by_chance")
        cells = [name, *(str(row.get(side, "")) for side in ("positive", "negative"))]
        cells += [interval_text(row[metric], few[name]) for metric in metrics]
        table.append([*cells, *[f"{by_chance['value']:.3f}" if by_chance else ""] * chance])
    lines = aligned(table)
    lines += legend("\n".join(lines))
    if told := describe_mean(over):
        lines.append(told)
    if over["draws"]:
        of_mean = f", the mean's from the {over['draws']} of {report['bootstraps']} draws that define all its classes"
        unknown = ", who are not known: every image counts as one" if report.get("patients", 0) is None else ""
        lines.append(f"95 % over patients{unknown}{of_mean if several else ''}")
    off_chest = [report["off_chest"]] if report.get("off_chest") else []
    if not chance:
        return "\n".join([*lines, *describe_decisions(report["decisions"]), *off_chest])
    if any(row["calibration_by_chance"] for row in report["classes"].values()):
        lines.append(
            "by chance: the calibration error that perfectly calibrated probabilities show on such cases; the error's "
            "interval reaches down to what is left without it"
        )
    lines += [*describe_points(report["classes"], few), *describe_one_sided(called_in(report)), *off_chest]
    return "\n".join(lines)


def _sklearn():
    try:
        import sklearn.metrics
    except ImportError as error:
        raise MissingDependencyError(f"evaluation needs scikit-learn: {install('classify')}") from error
    return sklearn.metrics
