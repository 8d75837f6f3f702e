"""Predictions: as a CSV, and with labels as metrics, tables and plots in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..data.film_views import NOT_FRONTAL, describe_view, not_frontal
from ..data.prepared.image import PreparedImage
from ..data.quarantine import Quarantined, write_quarantine
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, worker_count
from ..data.result_files import write_rows
from ..errors import ConfigError
from ..files import written_somewhere, written_whole
from ..images.panels import left_out_if_it_fails
from ..images.perceptual_hash import no_thumbnails
from ..terminal import are, visible
from .attention_maps import describe_off_chest
from .calibration import as_probabilities
from .classifier import Classifier
from .error_sheet import write_error_sheet
from .label_table import LabelTable
from .metrics import evaluate_predictions
from .operating_points import called_in, describe_one_sided
from .plots import plot_curves
from .result_page import result_page
from .tested import Overlap

PAGE_FILE = "report.html"
VIEW, MODEL = "view", "model"  # columns of Predictions.views and Predictions.model
THRESHOLD = "threshold "  # what names of columns of thresholds begin with
LEFT_OUT = "left_out.csv"  # films that were left out for their view
VIEWS = ("any", "frontal")
FRONTAL_ALONE = "--view frontal leaves them out"
RESULT_FILES = ("metrics.json", "predictions.csv", "curves.png", "errors.png", PAGE_FILE)


def report_predictions(
    out: Path,
    table: LabelTable,
    probabilities: np.ndarray,  # [N, C], rows of table
    thresholds: Sequence[float],
    *,
    bootstraps: int = 1000,
    seed: int = 0,
    extra: dict | None = None,
    model: Classifier | None = None,
    prevalence: str | float | None = None,
    uncalibrated: np.ndarray | None = None,  # [N, C] logits
    temperature: dict | None = None,
    images: Mapping[str, PreparedImage] | None = None,
    views: Sequence[str] = (),
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    title: str = "Evaluation of a classifier",
    notes: Sequence[str] = (),
) -> dict:
    """Write ``metrics.json``, ``predictions.csv``, ``curves.png`` and a page under ``out``; returns the metrics.

    ``prevalence`` is as for :func:`.evaluate_predictions`. With ``model``, what made the probabilities, also
    ``errors.png``: its most confident errors and where it looked. ``temperature`` is a :func:`.temperature_report`, and
    ``uncalibrated`` the logits before it, which the plot of the calibration then shows too. ``workers``, ``timeout``
    and ``max_memory`` are those of the files that the errors are drawn from, which are read again; ``images`` are those
    of a prepared data set that take their place, by path. ``views`` are those of the rows, where they are known, as of
    :class:`Predictions`. ``title`` is that of the page; ``notes`` are what the terminal was told of the images, labels
    and splits: with what is to be said of thresholds they open the page, and are ``notes`` of the metrics.
    """
    out.mkdir(parents=True, exist_ok=True)
    present = called_present(probabilities, table.classes, thresholds, table.multiclass)
    patients = table.patients if table.patients_known else None
    found = Predictions(
        table.paths, probabilities, table.classes, list(thresholds), present=present,
        patients=patients or [], views=list(views), multiclass=table.multiclass,
    )  # fmt: skip
    written_somewhere(  # the first: what took long is on the disk, whatever else fails
        out / "predictions.csv", lambda path: write_predictions(path, found, table.labels), "the predictions"
    )
    report = evaluate_predictions(
        table.labels, probabilities, table.classes, patients, thresholds, bootstraps=bootstraps, seed=seed,
        multiclass=table.multiclass, prevalence=prevalence,
    )  # fmt: skip
    before = None
    if temperature is not None:
        report["temperature"] = temperature
        if uncalibrated is not None and temperature["value"] != 1:
            before = as_probabilities(uncalibrated, table.multiclass)
    report["notes"] = [*dict.fromkeys(map(visible, notes)), *map(visible, describe_one_sided(called_in(report)))]
    with left_out_if_it_fails(out / "curves.png"):
        plot_curves(out / "curves.png", table.labels, probabilities, table.classes, before)
    drawn: list[tuple[str, str]] = []
    if model is not None:
        reading = {"workers": worker_count(workers), "timeout": timeout, "max_memory": max_memory, "images": images}
        with left_out_if_it_fails(out / "errors.png"):
            write_error_sheet(out / "errors.png", model, table, probabilities, thresholds, drawn=drawn, **reading)
        report["off_chest"] = describe_off_chest(drawn)
        report["notes"] += [report["off_chest"]] if report["off_chest"] else []
    with left_out_if_it_fails(out / PAGE_FILE), written_whole(out / PAGE_FILE) as temporary:
        sheet = out / "errors.png" if model is not None else None
        content = result_page(title, table, probabilities, thresholds, report, extra or {}, sheet, seed)
        temporary.write_text(content, encoding="utf-8")
    with written_whole(out / "metrics.json") as temporary:  # the last: a run that has it is whole
        temporary.write_text(json.dumps({**report, **(extra or {})}, indent=1) + "\n")
    return report


def describe_unreadable(count: int, listed: str | Path) -> str:
    """The warning that so many images, listed there, are missing from the results; what stands in these names a file
    beside them by its name alone, which is right wherever they are taken."""
    return f"warning: {are(count, 'image')} left out, which could not be read: {listed}"


@dataclass
class Predictions:
    """Probabilities of images that could be read.

    Attributes:
        images: ``N`` paths.
        probabilities: ``[N, C] float64``, 0 to 1.
        classes: ``C`` names.
        thresholds: ``C``, a class is called present from this probability on.
        quarantined: files that could not be read.
        present: of each image the classes that are called present: at or above their threshold or, of classes that
            exclude each other, the most probable of all (none, if that one was not asked about).
        precision: ``"fp32"`` or ``"bf16"``, what the model computed in.
        hashes: of the stored pixels of each image.
        multiclass: the classes exclude each other.
        thumbnails: ``[N, 48, 48] uint8``, to find near duplicates.
        patients: of each image, blank where not known; empty if that is all of them.
        flagged: images whose chest contour is not to be relied on: they may be no frontal radiographs of a chest.
        views: of each image, ``"frontal"``, ``"lateral"``, ``"other"``, or ``""`` where neither header nor pixels tell;
            empty if they were not looked at.
        model: a few digits that tell the classifier's weights from others; blank if it was not asked for.
        left_out: views, by path, of films that were left out for them.
        overlap: which of the images the classifier was trained or validated on; ``None`` where it has no record of
            that.
    """

    images: list[str]
    probabilities: np.ndarray
    classes: list[str]
    thresholds: list[float]
    quarantined: list[Quarantined] = field(default_factory=list)
    present: list[list[str]] = field(default_factory=list)
    precision: str = "fp32"
    hashes: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    overlap: Overlap | None = None
    thumbnails: np.ndarray = field(default_factory=no_thumbnails)
    multiclass: bool = False
    flagged: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    model: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        classes = ", ".join(map(visible, self.classes))
        return (
            f"Predictions({len(self.images)} images, {len(self.quarantined)} that cannot be read; classes: {classes})"
        )

    @property
    def not_frontal(self) -> dict[str, str]:
        """Views of the images that are known to be no frontal chests, by path."""
        return not_frontal(zip(self.images, self.views, strict=True)) if self.views else {}


def check_view(view: str) -> None:
    """Raise a ConfigError unless ``view`` is one of ``VIEWS``."""
    if view not in VIEWS:
        raise ConfigError(f"view: got {view!r}, accepted are {' and '.join(VIEWS)}")


def frontal_only(found: Predictions) -> Predictions:
    """Without the films that are known to show no frontal chest, which are then ``left_out``."""
    aside = found.not_frontal
    if not aside:
        return found
    rows = [row for row, image in enumerate(found.images) if image not in aside]
    of_image = ("images", "present", "hashes", "patients", "views")
    picked = {name: [values[row] for row in rows] for name in of_image if (values := getattr(found, name))}
    return replace(
        found, **picked, probabilities=found.probabilities[rows],
        thumbnails=found.thumbnails[rows] if len(found.thumbnails) else found.thumbnails,
        flagged=[image for image in found.flagged if image not in aside],
        left_out=aside,
    )  # fmt: skip


def write_left_out(path: Path, found: Predictions) -> None:
    """The films that were left out for their view, as a list of unreadable ones is; no file where there is none."""
    write_quarantine(path, [(image, "NotFrontal", describe_view(view)) for image, view in found.left_out.items()])


def called_present(
    probabilities: np.ndarray, classes: Sequence[str], thresholds: Sequence[float], multiclass: bool
) -> list[list[str]]:
    """For each row of ``[N, C]`` the names of the classes that are called present."""
    if multiclass:
        return [[classes[column]] for column in probabilities.argmax(1)]
    called = probabilities >= np.asarray(thresholds)
    return [[classes[column] for column in np.flatnonzero(row)] for row in called]


def write_predictions(path: Path, found: Predictions, labels: np.ndarray | None = None) -> None:
    """A table with a row per image: path, patient, a probability per class, the classes called present, view, labels.

    Args:
        path: file to write; its ending says whether as CSV, JSON (a list of rows), Parquet or Excel workbook.
        found: what was predicted; images and patients stand :func:`.names.escaped`, ``present`` holds the names joined
            by ``|``, blank where no class is. Probabilities have as many digits as tell each from its neighbours: fewer
            would make ties, and another AUROC (a workbook has six digits). Without any patient there is no such column,
            and none of views or the model where they are not known. Of each class that has one, the threshold is there
            in every row. A column whose name a class has is left out.
        labels: ``[N, C]`` of its images, NaN where a label is not known. Left out, there are no such columns, and of a
            film that shows no frontal chest nothing is called present: ``present`` says that it shows none.
    """
    thresholds = {} if found.multiclass else dict(zip(found.classes, map(float, found.thresholds), strict=True))
    of_all = {MODEL: found.model} if found.model else {}
    of_all |= {THRESHOLD + name: threshold for name, threshold in thresholds.items()}
    of_all = {name: value for name, value in of_all.items() if name not in found.classes}
    views = found.views if VIEW not in found.classes else []
    header = ["image", *(["patient"] if found.patients else []), *found.classes, "present"]
    header += [*([VIEW] if views else []), *of_all]
    header += [] if labels is None else [f"label {name}" for name in found.classes]
    write_rows(path, header, _rows(found, labels, views, list(of_all.values())), names=("image", "patient"))


def _rows(found: Predictions, labels: np.ndarray | None, views: Sequence[str], of_all: list) -> Iterator[list]:
    for row, image in enumerate(found.images):
        patient = [found.patients[row]] if found.patients else []
        truth = [] if labels is None else [None if np.isnan(v) else int(v) for v in labels[row]]
        numbers = [float(str(value)) for value in found.probabilities[row]]  # of float32 its few digits, not float64's
        present = "|".join(found.present[row])
        if labels is None and found.views and found.views[row] in NOT_FRONTAL:
            present = describe_view(found.views[row])
        yield [image, *patient, *numbers, present, *([views[row]] if views else []), *of_all, *truth]
