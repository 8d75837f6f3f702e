"""Whether 95 % intervals of a classifier's metrics hold the true value: percentiles of draws, and those in use.

    python benchmarks/experiments/coverage.py --out results/coverage

Draws test sets of which the truth is known: patients with one to three films, a finding of the patient, scores whose
noise is half the patient's own and half the film's. Each row is ``--tests`` such test sets, measured by
`evaluate_predictions`; "before" are percentiles of draws of patients, which many papers print.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from simulations import run_simulation

from hdxray_fast.classify.metrics import METRICS, evaluate_predictions
from hdxray_fast.classify.operating_points import OperatingPoints, point_names
from hdxray_fast.classify.weighted_metrics import MEASURED, WeightedMetrics
from hdxray_fast.data.bootstrap import bootstrap_counts

OF_PATIENT = 0.5  # share of the noise's variance that a patient's films have in common
SHIFT = 0.3  # of all logits: probabilities are a little too high
PREVALENCE = 0.05  # of predictive values
POINTS = ("sensitivity", "specificity", "sensitivity_at_specificity_0.9", "ppv")
SHOWN = (*METRICS, *POINTS)


@dataclass(frozen=True)
class Setting:
    """Test sets of one kind.

    Attributes:
        patients: in all.
        positive: patients with the finding, of each class.
        auroc: of each class.
        spread: standard deviation of the positives' scores, that of the negatives' being 1.
    """

    patients: int
    positive: tuple[int, ...]
    auroc: float
    spread: float = 1.0


SETTINGS = (
    *(Setting(200, (count,), 0.8) for count in (1, 3, 5)),
    Setting(200, (5,), 0.95),
    *(Setting(20, (10,), auroc) for auroc in (0.7, 0.8, 0.9, 0.95, 0.97)),
    *(Setting(200, (10,), auroc) for auroc in (0.7, 0.8, 0.9, 0.95, 0.97)),
    *(Setting(200, (190,), auroc) for auroc in (0.7, 0.95)),
    *(Setting(200, (20,), auroc) for auroc in (0.8, 0.95)),
    *(Setting(200, (100,), auroc) for auroc in (0.8, 0.95)),
    *(Setting(200, (10,), auroc, 2.0) for auroc in (0.7, 0.9, 0.97)),
    *(Setting(200, (10, 20, 40, 80), auroc) for auroc in (0.8, 0.95)),
    Setting(1000, (200,), 0.9),
)


def draw(setting: Setting, rng: np.random.Generator, times: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A test set: truth ``[N, C]``, probabilities ``[N, C]``, patients ``[N]``."""
    count = setting.patients * times
    films = rng.integers(1, 4, count)
    patient = np.repeat(np.arange(count), films)
    found, scores = [], []
    for number, positive in enumerate(setting.positive):
        truth = ((np.arange(count) + number * count // len(setting.positive)) % count < positive * times)[patient]
        noise = OF_PATIENT**0.5 * rng.normal(size=count)[patient]
        noise = noise + (1 - OF_PATIENT) ** 0.5 * rng.normal(size=len(patient))
        apart = (1 + setting.spread**2) ** 0.5 * NormalDist().inv_cdf(setting.auroc)
        score = apart * (truth - 0.5) + np.where(truth, setting.spread, 1) * noise
        share = positive / setting.patients
        found.append(truth)
        scores.append(1 / (1 + np.exp(-score - np.log(share / (1 - share)) - SHIFT)))
    return np.stack(found, axis=1).astype(float), np.stack(scores, axis=1), patient.astype(str)


def measure_all(truth: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``SHOWN`` of weights ``[B, N]``, means over classes: ``[B, len(SHOWN)]``, NaN where no class has it."""
    each = []
    for column, threshold in enumerate(thresholds):
        own, score = truth[:, column], scores[:, column]
        metrics = WeightedMetrics(own, score, score >= threshold).measure(weights)
        points = OperatingPoints(own, score, threshold, PREVALENCE).measure(weights)
        found = [metrics[:, MEASURED.index(name)] for name in METRICS]
        each.append([*found, *(points[:, point_names(PREVALENCE).index(name)] for name in POINTS)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw that defines nothing
        return np.nanmean(each, axis=0).T


def true_values(setting: Setting, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
    """The metrics of many more patients, means over classes, and thresholds ``[C]`` that call as many as there are."""
    truth, scores, _ = draw(setting, rng, times=200_000 // setting.patients)
    shares = [1 - positive / setting.patients for positive in setting.positive]
    thresholds = np.array([np.quantile(scores[:, column], share) for column, share in enumerate(shares)])
    (found,) = measure_all(truth, scores, thresholds, np.ones((1, len(truth))))
    return {**dict(zip(SHOWN, found, strict=True)), "auroc": setting.auroc}, thresholds


def measure(
    setting: Setting, thresholds: np.ndarray, rng: np.random.Generator, bootstraps: int
) -> tuple[dict[str, tuple[float, float] | None], dict[str, tuple[float, float] | None]]:
    """Intervals of a test set by metric, before and after; ``None`` where there is none."""
    truth, scores, patients = draw(setting, rng)
    seed, names = int(rng.integers(2**31)), [f"class {number}" for number in range(truth.shape[1])]
    report = evaluate_predictions(truth, scores, names, patients, thresholds, bootstraps, seed, prevalence=PREVALENCE)
    points = report["classes"][names[0]]["operating_points"] if len(names) == 1 else {}
    after = {metric: ends_of(report["mean"].get(metric) or points.get(metric)) for metric in SHOWN}
    before: dict[str, tuple[float, float] | None] = {}
    drawn = measure_all(truth, scores, thresholds, bootstrap_counts(patients, bootstraps, seed).astype(float))
    for metric, values in zip(SHOWN, drawn.T, strict=True):
        values = values[np.isfinite(values)]
        before[metric] = tuple(np.percentile(values, (2.5, 97.5))) if len(values) else None
    return before, after


def ends_of(row: dict | None) -> tuple[float, float] | None:
    """Of a metric that has an interval."""
    return (row["low"], row["high"]) if row and row["low"] is not None else None


def simulate(setting: Setting, tests: int, bootstraps: int, seed: Sequence[int]) -> dict:
    """By method and metric: how many test sets have an interval, how many of these hold the true value, mean length."""
    rng = np.random.default_rng(seed)
    true, thresholds = true_values(setting, rng)
    counts = {method: {metric: [0, 0, 0.0] for metric in SHOWN} for method in ("before", "after")}
    for _ in range(tests):
        for method, intervals in zip(counts, measure(setting, thresholds, rng, bootstraps), strict=True):
            for metric, ends in intervals.items():
                if ends is not None:
                    row = counts[method][metric]
                    row[0] += 1
                    row[1] += ends[0] <= true[metric] <= ends[1]
                    row[2] += ends[1] - ends[0]
    return {
        method: {
            metric: {"given": given, "held": held / given, "length": length / given} if given else {"given": 0}
            for metric, (given, held, length) in rows.items()
        }
        for method, rows in counts.items()
    }


def table(results: list[tuple[Setting, dict]]) -> str:
    """Markdown: coverage before and after, and the AUROC's mean length."""
    head = [
        "patients (positive)",
        "AUROC",
        *(metric.replace("_", " ").replace(" 0.9", " 90 %") for metric in SHOWN),
        "length (AUROC)",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for setting, found in results:
        cells = [f"{setting.patients} ({', '.join(map(str, setting.positive))})"]
        cells.append(f"{setting.auroc:.2f}" + ("" if setting.spread == 1 else f", spread {setting.spread:g}"))
        for metric, key in (*((metric, "held") for metric in SHOWN), ("auroc", "length")):
            pair = [found[method][metric].get(key) for method in ("before", "after")]
            if pair[1] is None and len(setting.positive) > 1:
                cells.append("")
            else:
                cells.append(" → ".join("none" if value is None else f"{value:.3f}" for value in pair))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    def one(number: int, options) -> dict:
        return simulate(SETTINGS[number], options.tests, options.bootstraps, (options.seed, number))

    run_simulation(__doc__, SETTINGS, one, table, tests=500)


if __name__ == "__main__":
    main()
