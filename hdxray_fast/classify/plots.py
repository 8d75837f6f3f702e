"""ROC, precision-recall and calibration curves of a test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import MissingDependencyError
from ..extras import install
from ..files import written_whole
from .curves import calibration_points

MOST_CURVES = 14  # more would not be told apart


def plot_curves(
    path: Path,
    labels: np.ndarray,  # [N, C] 1, 0 or NaN
    probabilities: np.ndarray,  # [N, C]
    classes: Sequence[str],
    before: np.ndarray | None = None,  # [N, C]
) -> Path:
    """Three panels with a curve per class (the ``MOST_CURVES`` classes with most positives).

    ``before`` are probabilities before temperature scaling, whose calibration is dotted.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve
    except ImportError as error:
        raise MissingDependencyError(f"plots need {error.name}: {install('classify')}") from error
    figure = Figure(figsize=(15, 5.4), dpi=110)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.1, top=0.93, wspace=0.17)  # as a layout would
    roc, recall, calibration = figure.subplots(1, 3)
    order = np.argsort(-np.nansum(labels, axis=0), kind="stable")[:MOST_CURVES]
    colours = matplotlib.colormaps["tab20" if len(order) > 10 else "tab10"].colors
    for number, column in enumerate(order):
        known = ~np.isnan(labels[:, column])
        truth, score = labels[known, column].astype(int), probabilities[known, column]
        if truth.size == 0 or truth.min() == truth.max():
            continue
        colour = colours[number % len(colours)]
        false, true, _ = roc_curve(truth, score)
        roc.plot(false, true, color=colour, label=f"{classes[column]} {roc_auc_score(truth, score):.3f}")
        precision, recalled, _ = precision_recall_curve(truth, score)
        recall.plot(recalled, precision, color=colour, label=f"{classes[column]} ({truth.mean():.0%} positive)")
        predicted, observed, counts = calibration_points(truth, score)
        calibration.plot(predicted, observed, "-", color=colour, linewidth=0.9, label=classes[column])
        if before is not None:
            calibration.plot(*calibration_points(truth, before[known, column])[:2], ":", color=colour, linewidth=0.9)
        calibration.scatter(predicted, observed, np.maximum(120 * counts / counts.sum(), 3), color=colour, alpha=0.8)
    for axes in (roc, calibration):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    titles = (
        (roc, "ROC (area)", "false positive rate", "true positive rate", "lower right"),
        (recall, "precision and recall", "recall", "precision", "upper right"),
        (
            calibration,
            "calibration (dot: share of the images" + ("; dotted: unscaled)" if before is not None else ")"),
            "predicted probability",
            "observed frequency",
            "upper left",
        ),
    )
    for axes, title, x, y, place in titles:
        axes.set(title=title, xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        if axes.lines and axes.get_legend_handles_labels()[1]:
            axes.legend(loc=place, fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
