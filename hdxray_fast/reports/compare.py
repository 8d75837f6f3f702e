"""Generated reports of several models for the same studies: differences of their scores, by pairs."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.columns import find_column
from ..data.comparison_folder import note_on_single_runs
from ..data.named_runs import Place, begin_comparison
from ..data.paired import Measured, difference, draw_patients
from ..data.table_text import MOST_HEADER, open_text_table
from ..errors import ConfigError
from .comparison_files import write_comparison
from .evaluate import Evaluation, evaluate_reports
from .intervals import BLEU
from .metrics import Convention, conventions, score_reports
from .ngram_scores import bleu_counts, bleu_of_counts
from .predictions import GENERATED_COLUMNS

FILES = ("scores.csv", "predictions.csv")  # of an evaluation, of a generation


def compare_reports(
    models: Mapping[str, Place | Sequence[Place]] | Sequence[Place],
    out: str | os.PathLike | None = None,
    *,
    data: str | os.PathLike | None = None,
    bootstraps: int = 2000,
    seed: int = 0,
    **reading,
) -> dict:
    """Compare generated reports of the same studies: each model with the first.

    Args:
        models: two or more by name, each with the path of its reports, or paths of several runs that differ in their
            seed; or a list of ``"name=path,path"``. A path is a folder that ``report generate`` or ``report evaluate``
            wrote, or a file of predictions.
        out: folder for ``comparison.json``, ``comparison.csv``, ``comparison.md`` and ``forest.png``; left out, nothing
            is written.
        data: studies to take references and patients from; left out, the files hold their references, and studies are
            drawn in the place of patients.
        bootstraps: draws of patients.
        seed: of the draws.
        reading: how ``data`` is read: ``layout``, ``images``, ``split``, ``sections``, ``report_column``, ``language``
            and others of ``evaluate_reports``.

    Returns:
        JSON-able: ``comparisons``, one for each model but the first; each has under ``languages``, for each language,
        a list of what the texts were compared on (``references``, ``unit``, ``stated``) with the ``scores``: for BLEU
        (of the summed counts of a draw), ROUGE-L and CIDEr-D (means; rarities of n-grams held) a row of
        :func:`hdxray_fast.data.paired.difference`.

    Raises:
        ConfigError: fewer than two models; files that cannot be read, or are of other studies or references.
        MissingDependencyError: scipy or matplotlib is not installed.
    """
    named = begin_comparison(models, out, bootstraps)
    files = {name: [_file_of(run) for run in runs] for name, runs in named.items()}
    settings = {"data": data, "bootstraps": 0, "meteor": False, **reading}
    read = {name: [evaluate_reports(file, **settings) for file in given] for name, given in files.items()}
    every = [one for runs in read.values() for one in runs]
    _require_same_studies(every, [file for given in files.values() for file in given])
    rows = every[0].rows
    names = list(read)
    pairs: list[dict] = [{"first": names[0], "second": name, "languages": {}} for name in names[1:]]
    for language in sorted({row["language"] for row in rows}):
        chosen = [number for number, row in enumerate(rows) if row["language"] == language]
        for convention in conventions(language):
            if not isinstance(convention, Convention):
                continue
            measured = _measure(read, chosen, convention, bootstraps, seed)
            about = {name: getattr(convention, name) for name in ("references", "unit", "stated")}
            units = len({rows[number]["patient"] for number in chosen})
            for pair in pairs:
                first, second = measured[pair["first"]], measured[pair["second"]]
                scores = {name: difference(value, second[name], units, seed) for name, value in first.items()}
                entry = {**about, "studies": len(chosen), "scores": scores}
                pair["languages"].setdefault(language, []).append(entry)
    drawn = [row["patient"] for row in rows]
    unit = "patients" if any(patient.startswith("patient ") for patient in drawn) else "studies"
    report = {
        "models": {name: [str(file) for file in given] for name, given in files.items()},
        "studies": len(rows),
        "drawn": f"{len(set(drawn))} {unit}",
        "bootstraps": bootstraps,
        "seed": seed,
        "notes": [
            *dict.fromkeys(note for one in every for note in one.notes),
            *note_on_single_runs(read, "studies alone"),
        ],
        "comparisons": pairs,
    }
    if out is not None:
        write_comparison(report, Path(out))
    return report


def holds_reports(path: str | os.PathLike) -> bool:
    """Whether a path is generated reports, as far as its name and its first line tell; ``False`` for what is not there.

    Args:
        path: folder or file.
    """
    place = Path(path)
    if place.is_dir():
        if (place / FILES[0]).is_file():
            return True
        place /= FILES[1]
    if place.suffix.lower() in (".json", ".jsonl"):
        return True
    if not place.is_file():
        return False
    with open_text_table(place) as (stream, separator):
        head = csv.reader([stream.readline(MOST_HEADER)], delimiter=separator)
        return find_column(next(head, []), GENERATED_COLUMNS) is not None


def _file_of(run: str) -> Path:
    place = Path(run)
    if not place.is_dir():
        return place
    for name in FILES:
        if (place / name).is_file():
            return place / name
    raise ConfigError(f"models: {place} holds neither {FILES[0]} nor {FILES[1]}; name the file of predictions")


def _require_same_studies(every: Sequence[Evaluation], files: Sequence[Path]) -> None:
    """Bring all to the order of the first; raise a ConfigError if studies or references are not the same."""
    order = [row["id"] for row in every[0].rows]
    truth = {row["id"]: (row["reference"], row["language"]) for row in every[0].rows}
    for evaluation, file in zip(every[1:], files[1:], strict=True):
        by = {row["id"]: row for row in evaluation.rows}
        for missing, here, gone in (
            ([row["place"] for row in every[0].rows if row["id"] not in by], files[0], file),
            ([row["place"] for row in evaluation.rows if row["id"] not in truth], file, files[0]),
        ):
            if missing:
                raise ConfigError(
                    f"models: {len(missing)} studies of {here} are not in {gone}, the first is {missing[0]}; compare "
                    "reports of the same studies"
                )
        other = [name for name in order if (by[name]["reference"], by[name]["language"]) != truth[name]]
        if other:
            raise ConfigError(
                f"models: {file} has other references than {files[0]} for {len(other)} of {len(order)} studies, the "
                f"first is {by[other[0]]['place']}; give the references of both with data (--data)"
            )
        evaluation.rows[:] = [by[name] for name in order]


@dataclass(frozen=True)
class _Run:
    """What the scores of one run's texts are made of: counts of n-grams ``[N, 10]``, and each study's own scores."""

    counts: np.ndarray
    each: dict[str, np.ndarray]

    @classmethod
    def of(cls, texts: list[str], truths: list[str], convention: Convention) -> _Run:
        scores = score_reports(texts, truths, convention, meteor=False)
        counts = bleu_counts(*([convention.split(text) for text in side] for side in (texts, truths)))
        kept = {name: np.asarray(scores.each[name]) for name in ("rouge_l", "cider_d") if name in scores.each}
        return cls(counts, kept)

    def measure(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each score for weights of the studies ``[B, N]``: ``[B]``."""
        bleu = dict(zip(BLEU, bleu_of_counts(weights @ self.counts).T, strict=True))
        return bleu | {name: weights @ values / weights.sum(axis=1) for name, values in self.each.items()}


def _measure(
    read: Mapping[str, Sequence[Evaluation]], chosen: Sequence[int], convention: Convention, bootstraps: int, seed: int
) -> dict[str, dict[str, Measured]]:
    """Each score of each model, on the same draws of patients."""
    rows = next(iter(read.values()))[0].rows
    truths, patients = ([rows[number][key] for number in chosen] for key in ("reference", "patient"))
    runs = {
        name: [_Run.of([one.rows[number]["generated"] for number in chosen], truths, convention) for one in evaluations]
        for name, evaluations in read.items()
    }
    drawn: dict[str, list[list[dict]]] = {name: [[] for _ in own] for name, own in runs.items()}
    for weights in draw_patients(patients, bootstraps, seed):  # a part at a time: all of them may be gigabytes
        for name, own in runs.items():
            for run, parts in zip(own, drawn[name], strict=True):
                parts.append(run.measure(weights))
    found = {}
    for name, own in runs.items():
        values = [run.measure(np.ones((1, len(chosen)))) for run in own]
        found[name] = {
            score: Measured(
                np.array([value[score][0] for value in values]),
                np.array([np.concatenate([np.zeros(0), *(part[score] for part in parts)]) for parts in drawn[name]]),
            )
            for score in values[0]
        }
    return found
