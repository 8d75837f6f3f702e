"""Predictions to metrics, tables and plots; saved classifiers on new files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .classification_plots import plot_curves
from .classifier import Classifier, load_classifier
from .embedding import Embedder
from .files import written_whole
from .labels import LabelTable
from .metrics import evaluate_predictions
from .prepare import Quarantined, list_images


def report_predictions(
    out: Path,
    table: LabelTable,
    probabilities: np.ndarray,  # [N, C], rows of table
    thresholds: Sequence[float],
    *,
    bootstraps: int = 1000,
    seed: int = 0,
    extra: dict | None = None,
) -> dict:
    """Write ``metrics.json``, ``predictions.csv`` and ``curves.png`` under ``out``; returns the metrics."""
    report = evaluate_predictions(
        table.labels, probabilities, table.classes, table.patients, thresholds, bootstraps=bootstraps, seed=seed
    )
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps({**report, **(extra or {})}, indent=1) + "\n")
    write_predictions(out / "predictions.csv", table.paths, table.classes, probabilities, table.labels)
    plot_curves(out / "curves.png", table.labels, probabilities, table.classes)
    return report


def write_predictions(
    path: Path,
    images: Sequence[str],
    classes: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray | None = None,
) -> None:
    """A CSV with a row per image: its path, a probability per class and, if known, a label per class."""
    header = ["image", *classes, *([f"label {name}" for name in classes] if labels is not None else [])]
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for row, image in enumerate(images):
            truth = [] if labels is None else ["" if np.isnan(v) else int(v) for v in labels[row]]
            writer.writerow([image, *(f"{p:.6f}" for p in probabilities[row]), *truth])


@dataclass
class Predictions:
    """Probabilities of images that could be read.

    Attributes:
        images: ``N`` paths.
        probabilities: ``[N, C]``.
        classes: ``C`` names.
        thresholds: ``C``, a class is called present from this probability on.
        quarantined: files that could not be read.
    """

    images: list[str]
    probabilities: np.ndarray
    classes: list[str]
    thresholds: list[float]
    quarantined: list[Quarantined] = field(default_factory=list)


def predict(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    model: Classifier | str | os.PathLike,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> Predictions:
    """Probabilities of a saved classifier for files, folders or CSV manifests.

    Args:
        paths: what to look at.
        model: a classifier, or the folder of one.
        batch_size, workers, device, progress: as for :func:`hdxray_fast.embed`.
    """
    model = load_classifier(model) if isinstance(model, str | os.PathLike) else model.eval()
    names = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = list(dict.fromkeys(str(file) for name in names for file in list_images(name)))
    rows, bad = [], []
    images: list[str] = []
    for sources, probabilities, quarantined in _batches(model, files, batch_size, workers, device, progress):
        images += sources
        rows.append(probabilities)
        bad += quarantined
    joined = np.concatenate(rows) if rows else np.zeros((0, len(model.config.classes)), np.float32)
    return Predictions(images, joined, model.config.classes, model.config.thresholds, bad)


class _Scorer(Embedder):
    """Reads and batches as :func:`hdxray_fast.embed` does, with logits in the place of features."""

    def __init__(self, model: Classifier, device: str | None) -> None:
        super().__init__(model.encoder, pool="mean", device=device)
        self.model = model.to(self.device)

    def pooled(self, images, plan, scale, shift) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(images, plan, scale, shift)
        return self.model.probabilities(logits), torch.zeros(len(images) + 1)


def _batches(
    model: Classifier, files: list[str], batch_size: int, workers: int, device: str | None, progress: bool
) -> Iterator[tuple[list[str], np.ndarray, list[Quarantined]]]:
    scorer = _Scorer(model, device)
    jobs = [(file, file) for file in files]
    for rows in scorer.batches(jobs, batch_size=batch_size, workers=workers, progress=progress):
        shape = (len(rows), len(model.config.classes))
        yield rows.sources, rows.features if len(rows) else np.zeros(shape, np.float32), rows.quarantined
