"""Classifiers compared on the same images: differences of every metric, with intervals over patients and p."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

from ..data.comparison_folder import note_on_single_runs
from ..data.named_runs import Place, begin_comparison
from ..data.paired import FEW, FEWEST, Measured, difference, draw_patients, holm, units_of_mean
from ..errors import ConfigError
from .classifier import load_classifier
from .comparison_files import write_comparison
from .delong import delong_error, delong_parts
from .earlier_results import identity_of, refuse_other_evaluation
from .evaluation import evaluate_files
from .labels import read_manifest
from .prediction_files import Answers, align, read_answers, truth_of
from .renaming import read_renaming
from .scoring import model_print
from .weighted_metrics import MEASURED, WeightedMetrics


def compare(
    models: Mapping[str, Place | Sequence[Place]] | Sequence[Place],
    out: str | os.PathLike | None = None,
    *,
    data: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    preset: str | None = None,
    classes: Sequence[str] | None = None,
    multiclass: bool = False,
    rename: str | Mapping[str, str] | None = None,
    bootstraps: int = 2000,
    seed: int = 0,
) -> dict:
    """Compare the predictions of classifiers for the same images: each model with the first.

    Args:
        models: two or more by name, each with the path of its predictions, or paths of several runs that differ in
            their seed: ``{"contour": ["a0", "a1"], "random": ["b0", "b1"]}``; or a list of ``"name=path,path"``. A path
            is a folder that ``probe``, ``finetune`` or ``evaluate`` wrote, or a ``predictions.csv``.
        out: folder for ``comparison.json``, ``comparison.csv``, ``comparison.md`` and ``forest.png``; left out, nothing
            is written.
        data: table of labels, as ``read_labels`` takes it (with ``images``, ``preset``, ``multiclass``): for patients
            and, where the predictions have no labels, labels.
        images: folder that relative paths in ``data`` start from.
        image_column, patient_column: of ``data``, where these columns go by none of the usual names.
        preset: of ``data``.
        classes: names to compare; left out, those that all models have.
        multiclass: ``data`` has one label an image.
        rename: of classes in ``data``, as for :func:`.evaluation.evaluate_files`.
        bootstraps: draws of patients.
        seed: of the draws.

    Returns:
        JSON-able: ``comparisons``, one for each model but the first. Under ``classes`` each has counts and, for each
        metric, a row of :func:`hdxray_fast.data.paired.difference` with ``p_holm``, p corrected over the classes;
        the AUROC also has ``delong``, the same by DeLong's method over patients. Under ``mean`` are those of the mean
        over the classes ``over``, and for classes that exclude each other the ``accuracy``. ``notes`` says what is
        left out.

    Raises:
        ConfigError: fewer than two models; predictions that cannot be read, are of other images, or were tested with
            other labels or patients; no labels.
        MissingDependencyError: pandas, scipy or matplotlib is not installed.
    """
    named = begin_comparison(models, out, bootstraps)
    read = [read_answers(run) for runs in named.values() for run in runs]
    aligned, notes = align(read, classes)
    table = None
    if data is not None:
        renamed = read_renaming(rename, None)
        own = {name: new for name, new in renamed.items() if new in aligned[0].classes}  # others are not compared
        table = read_manifest(
            data, images=images, image_column=image_column, patient_column=patient_column, preset=preset,
            classes=aligned[0].classes, multiclass=multiclass, rename=own or None,
        )  # fmt: skip
        if len({*table.paths}) < len(table.paths):
            raise ConfigError(f"data: {data} lists an image more than once")
    labels, patients, more = truth_of(aligned, table, str(data))
    known = any(run.patients for run in aligned) if table is None else table.patients_known
    rows = iter(aligned)
    runs_of = {name: [next(rows) for _ in runs] for name, runs in named.items()}
    report = {
        "models": {name: [run.source for run in runs] for name, runs in runs_of.items()},
        "images": len(labels),
        "patients": len(set(patients)) if known else None,
        "bootstraps": bootstraps,
        "seed": seed,
        "notes": [*notes, *more, *_notes_on_runs(runs_of)],
        "comparisons": _Comparison(runs_of, labels, patients, bootstraps, seed).against_first(),
    }
    if out is not None:
        write_comparison(report, Path(out))
    return report


def evaluate_against(
    model: str | os.PathLike, against: str | os.PathLike, data: str | os.PathLike, out: str | os.PathLike, **options
) -> tuple[dict, dict | None]:
    """Evaluate two saved classifiers on the same files, and compare them.

    Args:
        model, against: folders of the classifiers; differences are of ``model`` minus ``against``.
        data: labelled files.
        out: gets what the evaluation of ``model`` writes, and the folders ``against`` and ``comparison``.
        options: of :func:`.evaluation.evaluate_files`, for both.

    Returns:
        The metrics of ``model``, and the comparison, see :func:`compare`; of a share that does not join the others
        (``part`` is an option, too) ``{"waiting": numbers}`` and ``None``.

    Raises:
        ConfigError, TrainingError, CheckpointError: as :func:`.evaluation.evaluate_files` and :func:`compare`.
    """
    out = Path(out)
    rename, places = options.pop("rename", None), (out, out / "against")
    models = [load_classifier(folder) for folder in (model, against)]
    multiclass = [one.config.multiclass for one in models]
    if multiclass[0] != multiclass[1]:
        raise ConfigError("against: one of the models has classes that exclude each other, and the other has not")
    classes = [options.get("classes") or one.config.classes for one in models]
    pairs = read_renaming(rename, None)
    if foreign := {*pairs.values()} - {*classes[0], *classes[1]}:
        raise ConfigError(f"rename: {min(foreign)!r} is a class of neither model")
    for one, place in zip(models, places, strict=True):  # before the first is made
        now = identity_of(model_print(one), data, options.get("split", "test"))
        refuse_other_evaluation(place, now, options.get("force", False))
    own = [{name: new for name, new in pairs.items() if new in known} or None for known in classes]
    metrics, other = (
        evaluate_files(folder, data, place, rename=renamed, **options)
        for folder, place, renamed in zip((model, against), places, own, strict=True)
    )
    if "waiting" in metrics or "waiting" in other:
        return {"waiting": [*metrics.get("waiting", []), *other.get("waiting", [])]}, None
    names = ("images", "image_column", "patient_column", "preset", "classes")
    reading = {"rename": rename, **{name: options.get(name) for name in names}}
    runs = {"against": out / "against", "model": out}
    return metrics, compare(runs, out / "comparison", data=data, multiclass=multiclass[0], **reading)


def _notes_on_runs(runs_of: Mapping[str, Sequence[Answers]]) -> list[str]:
    notes = note_on_single_runs(runs_of, "patients")
    if unsaid := [run.source for runs in runs_of.values() for run in runs if run.called is None]:
        notes.append(f"no column 'present' in {', '.join(unsaid)}: metrics of decisions are left out")
    return notes


class _Comparison:
    """All runs measured on the same draws."""

    def __init__(
        self, runs_of: Mapping[str, Sequence[Answers]], labels: np.ndarray, patients: Sequence[str], bootstraps: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.names, self.seed, self.patients = list(runs_of), seed, np.asarray(patients, str)
        self.labels, self.classes = labels, next(iter(runs_of.values()))[0].classes
        self.runs = [run for runs in runs_of.values() for run in runs]
        numbers = iter(range(len(self.runs)))
        self.rows_of = {name: [next(numbers) for _ in runs] for name, runs in runs_of.items()}
        self.known = [~np.isnan(labels[:, column]) for column in range(len(self.classes))]
        self.exclusive = self._exclusive()
        self._measure(bootstraps)

    def against_first(self) -> list[dict]:
        """The comparison of each model with the first."""
        return [self._pair(self.names[0], name) for name in self.names[1:]]

    def _exclusive(self) -> bool:
        """Exactly one class of each image holds, and one is called present: a model then has an accuracy."""
        one = len(self.classes) > 1 and bool((np.sort(self.labels, axis=1)[:, -1] == 1).all())
        one = one and bool((self.labels.sum(axis=1) == 1).all())
        return one and all(run.called is not None and (run.called.sum(axis=1) == 1).all() for run in self.runs)

    def _measure(self, bootstraps: int) -> None:
        """``values [runs, C, K]`` and ``drawn [B, runs, C, K]``, and of the accuracy ``[runs]`` and ``[B, runs]``."""
        prepared = [
            [
                WeightedMetrics(
                    self.labels[known, column], run.probabilities[known, column],
                    None if run.called is None else run.called[known, column],
                )
                for column, known in enumerate(self.known)
            ]
            for run in self.runs
        ]  # fmt: skip
        right = np.zeros((len(self.labels), 0))
        if self.exclusive:
            right = np.stack([(run.called * self.labels).sum(axis=1) for run in self.runs], axis=1)

        def measured(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            each = [
                np.stack([one.measure(weights[:, known]) for one, known in zip(row, self.known, strict=True)], axis=1)
                for row in prepared
            ]
            return np.stack(each, axis=1), weights @ right / weights.sum(axis=1, keepdims=True)

        values, accuracy = measured(np.ones((1, len(self.labels))))
        self.values, self.accuracy = values[0], accuracy[0]
        drawn = [measured(weights) for weights in draw_patients(self.patients, bootstraps, self.seed)]
        self.drawn, self.accuracy_drawn = (np.concatenate(part) for part in zip(*drawn, strict=True))

    def _pair(self, first: str, second: str) -> dict:
        found: dict = {"first": first, "second": second, "classes": {}, "mean": {}}
        units = []
        for column, name in enumerate(self.classes):
            row = self._support(column)
            units.append(min(row["positive_patients"], row["negative_patients"]))
            row["few"] = "too few" if units[-1] < FEWEST else "few" if units[-1] < FEW else ""
            for number, metric in enumerate(MEASURED):
                row[metric] = difference(*self._measured(first, second, column, number), units[-1], self.seed)
            if row["auroc"] is not None:
                row["auroc"]["delong"] = self._delong(first, second, column) if units[-1] >= FEWEST else None
            found["classes"][name] = row
        rows = list(found["classes"].values())
        for number, metric in enumerate(MEASURED):
            corrected = holm([row[metric] and row[metric]["p"] for row in rows])
            for row, p in zip(rows, corrected, strict=True):
                if row[metric] is not None:
                    row[metric]["p_holm"] = p
            found["mean"][metric] = self._mean(first, second, number, units)
        if self.exclusive:
            measured = (
                Measured(self.accuracy[rows], self.accuracy_drawn[:, rows].T)
                for rows in (self.rows_of[name] for name in (first, second))
            )
            found["mean"]["accuracy"] = difference(*measured, len(set(self.patients)), self.seed)
        return found

    def _support(self, column: int) -> dict:
        truth = self.labels[:, column]
        counts = {}
        for value, name in ((1, "positive"), (0, "negative")):
            rows = truth == value
            counts[name], counts[f"{name}_patients"] = int(rows.sum()), len(np.unique(self.patients[rows]))
        return counts

    def _measured(self, first: str, second: str, column: int | Sequence[int], number: int) -> list[Measured]:
        """One metric of both models; of several classes its mean."""
        columns = [column] if isinstance(column, int) else list(column)
        pair = []
        for name in (first, second):
            rows = self.rows_of[name]
            values = self.values[rows][:, columns, number].mean(axis=1)
            pair.append(Measured(values, self.drawn[:, rows][:, :, columns, number].mean(axis=2).T))
        return pair

    def _mean(self, first: str, second: str, number: int, units: Sequence[int]) -> dict | None:
        """The mean over the classes with enough patients (over all that are defined, without interval, if none has)."""
        values = self.values[self.rows_of[first] + self.rows_of[second]][:, :, number]
        defined = [column for column in range(len(self.classes)) if np.isfinite(values[:, column]).all()]
        if not defined:
            return None
        enough = [column for column in defined if units[column] >= FEWEST]
        spreads = []
        for column in enough:
            ours, theirs = (one.drawn.mean(axis=0) for one in self._measured(first, second, column, number))
            spreads.append(float(np.nanstd(theirs - ours)))
        carried = units_of_mean(spreads, [units[column] for column in enough]) if enough else 0
        row = difference(*self._measured(first, second, enough or defined, number), carried, self.seed)
        left = [name for column, name in enumerate(self.classes) if column not in (enough or defined)]
        return row and {**row, "over": [self.classes[column] for column in enough or defined], "left_out": left}

    def _delong(self, first: str, second: str, column: int) -> dict | None:
        """The difference of AUROCs by DeLong's method for clusters: over patients alone, whatever the runs."""
        known = self.known[column]
        truth = self.labels[known, column]
        ours, theirs = (
            np.mean([delong_parts(truth, self.runs[row].probabilities[known, column]) for row in rows], axis=0)
            for rows in (self.rows_of[name] for name in (first, second))
        )
        parts = theirs - ours
        error = delong_error(truth, parts, self.patients[known])
        middle = float(parts[truth == 1].mean())
        if not error > 0:
            return None
        normal, reach = NormalDist(), NormalDist().inv_cdf(0.975) * error
        return {"low": middle - reach, "high": middle + reach, "p": 2 * normal.cdf(-abs(middle) / error)}
