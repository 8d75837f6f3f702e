"""Classes that exclude each other: the most probable one is the decision, and all that is told is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..terminal import aligned
from .calibration import calibration_error
from .interval_text import interval_text

RANKING = ("auroc", "auprc")  # one class against the rest; they need no decision
OF_A_CLASS = ("f1", "recall")
CORNER = "holds / decided"
OF_ALL = ("accuracy", "macro_f1", "mean_recall", "calibration_error")


@dataclass(frozen=True)
class Decisions:
    """The classes decided for and those that hold, of the images with exactly one.

    Attributes:
        truth: ``[N]`` columns.
        decided: ``[N]`` columns, the most probable.
        confidence: ``[N]`` its probability.
        rows: ``[N]`` of the table.
        count: of classes.
    """

    truth: np.ndarray
    decided: np.ndarray
    confidence: np.ndarray
    rows: np.ndarray
    count: int

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> Decisions:
        """Of labels ``[N, C]`` (1, 0 or NaN) and probabilities ``[N, C]``."""
        held = labels == 1
        rows = np.flatnonzero(held.sum(axis=1) == 1)
        given = probabilities[rows]
        return cls(held[rows].argmax(axis=1), given.argmax(axis=1), given.max(axis=1), rows, labels.shape[1])

    def confusion(self, weights: np.ndarray) -> np.ndarray:
        """``[..., C, C]`` for weights ``[..., N]``: rows are what holds, columns what was decided."""
        cells, size = self.truth * self.count + self.decided, self.count**2
        each = [np.bincount(cells, drawn, size) for drawn in weights.reshape(-1, len(cells))]
        return np.reshape(each, (*weights.shape[:-1], self.count, self.count)).astype(np.float64)

    def measure(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metrics under weights ``[draws, N]``.

        Returns:
            ``[draws, len(OF_ALL)]``, and of each class ``[draws, C, len(OF_A_CLASS)]``. Means are over the classes that
            the images have; they, and what is of a class, are NaN in a draw that lacks one of these, or it.
        """
        confusion = self.confusion(weights)
        hits = np.diagonal(confusion, axis1=1, axis2=2)  # [draws, C]
        held, decided = confusion.sum(axis=2), confusion.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = hits / held
            f1 = np.where(held > 0, 2 * hits / (held + decided), np.nan)
            accuracy = hits.sum(axis=1) / held.sum(axis=1)
        here = np.isin(np.arange(self.count), self.truth)
        nothing = np.full(len(weights), np.nan)
        means = [part[:, here].mean(axis=1) if here.any() else nothing for part in (f1, recall)]
        right = self.decided == self.truth
        gaps = [calibration_error(right, self.confidence, drawn) if drawn.sum() > 0 else np.nan for drawn in weights]
        return np.stack([accuracy, *means, np.array(gaps)], axis=1), np.stack([f1, recall], axis=2)


def describe_decisions(found: dict) -> list[str]:
    """A report's ``decisions`` as lines: the metrics, and the confusion matrix."""

    chance = found["calibration_by_chance"]
    lines = [
        "of the most probable class: "
        + ", ".join(f"{name.replace('_', ' ')} {interval_text(found[name])}" for name in OF_ALL[:3])
        + f"; its calibration error {interval_text(found['calibration_error'])}"
        + (f", {chance['value']:.3f} if perfectly calibrated" if chance else "")
    ]
    names: Sequence[str] = found["classes"]
    confusion = [[f"{count:g}" for count in row] for row in found["confusion"]]
    return [*lines, *aligned([[CORNER, *names], *([name, *row] for name, row in zip(names, confusion, strict=True))])]
