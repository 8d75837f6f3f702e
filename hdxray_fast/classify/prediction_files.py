"""Predictions as files: those of several models read, and brought to the same cases in the same order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.columns import PATH_COLUMNS, PATIENT_COLUMNS, columns_in_words, find_column
from ..data.film_views import NOT_FRONTAL, describe_view
from ..errors import ConfigError
from ..names import unescaped
from ..regular_files import what_else
from .label_csv import first_row, import_pandas, label_values, read_csv, strings
from .label_table import LabelTable
from .predictions import THRESHOLD, VIEW

PREDICTIONS = "predictions.csv"
PRESENT, LABEL = "present", "label "  # the column of classes called present; what names of label columns begin with
NAMED_BY = (str, os.path.abspath, os.path.basename)  # how files may name the same image, the strictest first


@dataclass(frozen=True, eq=False)
class Answers:
    """What one run of a model said of ``N`` images.

    Attributes:
        source: the file.
        images: ``N`` names.
        classes: ``C`` names.
        probabilities: ``[N, C] float64``, 0 to 1.
        called: ``[N, C] bool``, called present; ``None`` if the file does not say.
        labels: ``[N, C] float32`` 1, 0 or NaN (not known); ``None`` if the file has none.
        patients: ``N`` ids; ``None`` if the file has none.
    """

    source: str
    images: list[str]
    classes: list[str]
    probabilities: np.ndarray
    called: np.ndarray | None = None
    labels: np.ndarray | None = None
    patients: list[str] | None = None

    def taken(self, rows: Sequence[int], classes: Sequence[str]) -> Answers:
        """These rows and classes, in this order."""
        rows, columns = np.asarray(rows, int), [self.classes.index(name) for name in classes]
        return replace(
            self,
            images=[self.images[row] for row in rows],
            classes=list(classes),
            probabilities=self.probabilities[rows][:, columns],
            called=None if self.called is None else self.called[rows][:, columns],
            labels=None if self.labels is None else self.labels[rows][:, columns],
            patients=None if self.patients is None else [self.patients[row] for row in rows],
        )


def read_answers(path: str | os.PathLike) -> Answers:
    """Read a ``predictions.csv``, or that of a results folder.

    Args:
        path: a CSV with a column for the image and a column of probabilities for each class; optionally ``patient``,
            ``present`` (names of the classes called present, joined by ``|``) and ``label <class>`` for each class. A
            folder that ``probe``, ``finetune`` or ``evaluate`` wrote holds one.

    Raises:
        ConfigError: the file is missing or cannot be read, has no class, names an image twice, or holds something else
            than probabilities and labels.
    """
    file = Path(path) / PREDICTIONS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ConfigError(
            f"models: {file} {what_else(file) or 'does not exist'}; name a folder that probe, finetune or evaluate "
            f"wrote, or a {PREDICTIONS}"
        )
    frame = read_csv(file, ours=True)
    image = find_column(frame.columns, PATH_COLUMNS)
    if image is None or not len(frame):
        raise ConfigError(
            f"models: {file} has {'no row' if image else 'no column for the image'}; needed are a column 'image' and "
            "one of probabilities for each class"
        )
    images = [unescaped(name) for name in strings(frame[image].fillna(""))]
    if len(set(images)) < len(images):
        first: dict[str, int] = {}
        again = next(row for row, name in enumerate(images) if first.setdefault(name, row) != row)
        both = " and ".join(str(frame.index[row] + 2) for row in (first[images[again]], again))
        raise ConfigError(f"models: {file}: rows {both} name one image")
    labelled = [name for name in frame.columns if name.startswith(LABEL) and name[len(LABEL) :] in frame.columns]
    patient = find_column([name for name in frame.columns if f"{LABEL}{name}" not in labelled], PATIENT_COLUMNS)
    classes = [name[len(LABEL) :] for name in labelled]
    if not classes:
        taken = {image, patient, PRESENT, *(THRESHOLD + name for name in frame.columns)}
        others = [name for name in frame.columns if name not in taken]
        classes = [name for name in others if (_numbers(frame[name]).between(0, 1)).all()]
    if not classes:
        raise ConfigError(f"models: {file} has no column of probabilities; {columns_in_words(frame.columns)}")
    columns = []
    for name in classes:
        values = _numbers(frame[name])
        if (wrong := ~values.between(0, 1)).any():
            raise ConfigError(
                f"models: {file}, row {first_row(wrong)}, column {name!r}: no probability from 0 to 1 stands there"
            )
        columns.append(values.to_numpy(np.float64))
    labels = None
    if labelled:
        renamed = frame[labelled].rename(columns=dict(zip(labelled, classes, strict=True)))
        labels = label_values(renamed, file, classes)
        labels = np.where(labels < 0, np.nan, labels).astype(np.float32)
    called = None
    if PRESENT in frame.columns and PRESENT not in classes:
        cells = strings(frame[PRESENT].fillna(""))  # one alone may have a bar in its own name
        named = [{cell} if cell in classes else set(cell.split("|")) for cell in cells]
        called = np.array([[name in cell for name in classes] for cell in named], bool)
        from_where = [THRESHOLD + name for name in classes]
        if set(from_where) <= set(frame.columns):  # of a film without a frontal chest `present` says that alone
            called = np.stack(columns, axis=1) >= np.stack([_numbers(frame[name]) for name in from_where], axis=1)
        elif VIEW in frame.columns and VIEW not in classes:  # exclusive classes have none, and one of them is called
            answers = np.stack(columns, axis=1)
            for row, view in enumerate(frame[VIEW]):
                if view in NOT_FRONTAL and named[row] == {describe_view(view)}:
                    # unless a class that was not asked about may be the most probable
                    called[row, answers[row].argmax()] = answers[row].max() >= 1 - answers[row].sum()
    patients = [unescaped(name) for name in strings(frame[patient].fillna(""))] if patient else None
    return Answers(str(file), images, classes, np.stack(columns, axis=1), called, labels, patients)


def align(runs: Sequence[Answers], classes: Sequence[str] | None = None) -> tuple[list[Answers], list[str]]:
    """The runs with the same images and classes in the order of the first; and notes on what is left out.

    Args:
        runs: of one model or several.
        classes: names to keep; left out, those that all runs have.

    Raises:
        ConfigError: the images are not the same, labels or patients of one differ, or a class is missing.
    """
    first, notes = runs[0], []
    common = [name for name in first.classes if all(name in run.classes for run in runs)]
    if classes:
        for run in runs:
            if missing := [name for name in classes if name not in run.classes]:
                raise ConfigError(f"classes: {run.source} has no {missing[0]!r}, but {', '.join(run.classes)}")
        common = list(dict.fromkeys(classes))
    elif not common:
        raise ConfigError(
            "models: no class is in all of them: "
            + "; ".join(f"{run.source} has {', '.join(run.classes)}" for run in runs)
        )
    elif left := sorted({name for run in runs for name in run.classes} - set(common)):
        notes.append(f"not compared, since not all models have them: {', '.join(left)}")
    taken = [first.taken(range(len(first.images)), common)]
    for run in runs[1:]:
        rows = _rows_of(first.images, run.images, first.source, run.source, whole=True)
        taken.append(run.taken(rows, common))
    _require_equal_truth(taken)
    return taken, notes


def truth_of(runs: Sequence[Answers], table: LabelTable | None, source: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Labels and patients of runs that are aligned.

    Args:
        runs: of :func:`align`.
        table: patients are taken from it and, where no run has labels, labels; ``None`` for what the runs have.
        source: the table's name, for errors.

    Returns:
        Labels ``[N, C]``, patients ``[N]``, and notes.

    Raises:
        ConfigError: an image is not in the table, or there are no labels.
    """
    labels = next((run.labels for run in runs if run.labels is not None), None)
    patients = next((run.patients for run in runs if run.patients is not None), None)
    if table is not None:
        rows = _rows_of(runs[0].images, table.paths, runs[0].source, source, whole=False)
        patients = [table.patients[row] for row in rows]
        if labels is None:
            labels = table.labels[rows][:, [table.classes.index(name) for name in runs[0].classes]]
    if labels is None:
        raise ConfigError(
            f"data: {runs[0].source} and the others have no labels; name a table of labels with data (--data)"
        )
    if patients is None:
        notes = [
            "no patients in the predictions: every image counts as a patient of its own (--data names a table of them)"
        ]
        return labels, list(runs[0].images), notes
    return labels, patients, []


def _rows_of(wanted: Sequence[str], there: Sequence[str], source: str, other: str, whole: bool) -> list[int]:
    """Where each of the ``wanted`` images of ``source`` is among those of ``other``, by the strictest name that fits.

    Args:
        whole: none of ``other`` may be left over.
    """
    places: list[dict[str, int]] = []
    for key in NAMED_BY:
        names = [key(name) for name in wanted]
        place = {key(name): row for row, name in enumerate(there)}
        alone = len(set(names)) == len(names) and len(place) == len(there)
        if alone and place.keys() >= set(names) and (not whole or len(place) == len(names)):
            return [place[name] for name in names]
        places.append(place)
    lacking = [name for name in wanted if os.path.basename(name) not in places[-1]]
    own = {os.path.basename(name) for name in wanted}
    more = [name for name in there if os.path.basename(name) not in own] if whole else []
    for missing, here, gone in ((lacking, source, other), (more, other, source)):
        if missing:
            raise ConfigError(
                f"models: {len(missing)} images of {here} are not in {gone}, the first is {missing[0]}; compare "
                "predictions of the same images"
            )
    raise ConfigError(
        f"models: {source} and {other} name their images in different ways, and file names alone are not unique; "
        "write paths alike"
    )


def _require_equal_truth(runs: Sequence[Answers]) -> None:
    """Raise a ConfigError if labels or patients differ among the runs that have them."""
    for what in ("labels", "patients"):
        having = [run for run in runs if getattr(run, what) is not None]
        for run in having[1:]:
            ours, theirs = (np.asarray(getattr(one, what)) for one in (having[0], run))
            equal = (ours == theirs) | (ours != ours) & (theirs != theirs)  # not known in both is the same, too
            if not equal.all():
                rows = np.flatnonzero(~equal.reshape(len(equal), -1).all(axis=1))
                raise ConfigError(
                    f"models: {run.source} has other {what} than {having[0].source} for {len(rows)} of {len(equal)} "
                    f"images, the first is {run.images[rows[0]]}; compare predictions that were tested alike"
                )


def _numbers(column):
    return import_pandas().to_numeric(column, errors="coerce")
