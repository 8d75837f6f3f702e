"""What frozen features give with few labels, and without a fit: beside the linear probe on all of them.

A linear probe on the labels of some of the training patients, several draws of them, and the nearest neighbours of all.
Features are those that the probe on all labels was fitted on, the test images are its own.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from paired import differences_of_groups, verdicts

from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.matched import match_features
from hdxray_fast.classify.prediction_files import PREDICTIONS
from hdxray_fast.classify.predictions import Predictions, called_present, write_predictions
from hdxray_fast.classify.probe import FEATURES, fit_probe
from hdxray_fast.data.comparison_folder import table_lines
from hdxray_fast.data.splits import patient_place
from hdxray_fast.data.stratify import deal_out
from hdxray_fast.features.feature_table import read_features
from hdxray_fast.files import written_whole
from hdxray_fast.regular_files import RUN_JSON, read_json

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's
SHARES = (0.01, 0.02, 0.05, 0.1)
COUNTS = "readings.json"
KNN = "nearest neighbours, all labels"


def nearest_neighbours(features: np.ndarray, table: LabelTable) -> np.ndarray:
    """Of each test image the share of its nearest training images that have the class, ``[T, C]``.

    By cosine, each weighted with ``exp(cosine / 0.07)``, as DINO's evaluation does; ``features [N, D]`` are rows of
    ``table``. Where a label is not known, the image is nobody's neighbour for that class.
    """
    from sklearn.neighbors import KNeighborsClassifier

    train, test = rows_of(table, "train"), rows_of(table, "test")
    found = np.zeros((len(test), len(table.classes)))
    for column, truth in enumerate(table.labels.T):
        known = train[~np.isnan(truth[train])]
        if len(np.unique(truth[known])) < 2:
            found[:, column] = truth[known][:1].sum()
            continue
        model = KNeighborsClassifier(
            min(NEIGHBOURS, len(known)), metric="cosine", weights=lambda apart: np.exp((1 - apart) / TEMPERATURE)
        )
        model.fit(features[known], truth[known].astype(int))
        found[:, column] = model.predict_proba(features[test])[:, 1]
    return found


def rows_of(table: LabelTable, split: str) -> np.ndarray:
    return np.flatnonzero(np.array(table.splits) == split)


def labelled_rows(table: LabelTable, shares: Sequence[float], seed: int) -> dict[float, np.ndarray]:
    """Training rows of a share of the images, for each of ``shares``: of undivided patients, classes as in all of them.

    A smaller share is part of a larger one. A class keeps one positive and one negative as long as the share of the
    images allows.

    Raises:
        SystemExit: a share holds no image.
    """
    found, rows, before = {}, rows_of(table, "train"), 1.0
    for share in sorted(shares, reverse=True):
        patients = np.array(table.patients)[rows]
        ordered = sorted(set(patients), key=lambda patient: (patient_place(patient, seed), patient))
        number = {patient: place for place, patient in enumerate(ordered)}
        labels = table.labels[rows]
        counts = np.zeros((len(ordered), 1 + 2 * labels.shape[1]), np.int64)
        each = np.concatenate([np.ones((len(rows), 1), bool), labels == 1, labels == 0], axis=1)
        np.add.at(counts, [number[patient] for patient in patients], each)
        part = share / before
        dealt = deal_out(counts, np.array([part, 1 - part]), least=np.array([1, 0]), weight=np.array([1, 0]))
        rows = rows[[dealt[number[patient]] == 0 for patient in patients]]
        if not len(rows):
            raise SystemExit(f"--label-shares: {share:g} of the training images is none; give larger shares")
        found[share], before = rows, share
    return found


def few_labels(features: np.ndarray, table: LabelTable, rows: np.ndarray) -> np.ndarray:
    """Probabilities ``[T, C]`` of a linear probe on these training rows; no label of another image chooses its C."""
    fitted = fit_probe(features[rows], table.rows(rows))
    return fitted.probabilities(features[rows_of(table, "test")])


def places(folder: Path, shares: Sequence[float], draws: int) -> dict[str, list[Path]]:
    """Of each reading the folders of its predictions below that of a run, one for each draw of labels."""
    few = {percent(share): [folder / f"share_{share:g}_{draw}" for draw in range(draws)] for share in sorted(shares)}
    return {**few, KNN: [folder / "neighbours"]}


def percent(share: float) -> str:
    return f"{100 * share:g} % of the labels"


def is_read(folder: Path) -> bool:
    """Whether a run has all its readings."""
    return (folder / COUNTS).exists()


def read_run(probe: Path, folder: Path, table: LabelTable, shares: Sequence[float], draws: int) -> None:
    """All readings of a run, from the features of its probe in ``probe``, to ``folder``."""
    found = match_features(table, read_features(probe / FEATURES), "labels")
    table, features = found.table, found.features
    write(folder / "neighbours", table, nearest_neighbours(features, table))
    counts: dict[str, list[dict]] = {}
    for draw in range(draws):
        for share, rows in labelled_rows(table, shares, draw).items():
            write(folder / f"share_{share:g}_{draw}", table, few_labels(features, table, rows))
            patients = len({table.patients[row] for row in rows})
            counts.setdefault(f"{share:g}", []).append({"images": len(rows), "patients": patients})
    with written_whole(folder / COUNTS) as temporary:  # the last: a folder that has it is whole
        temporary.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def write(folder: Path, table: LabelTable, probabilities: np.ndarray) -> None:
    """``predictions.csv`` of the test images."""
    folder.mkdir(parents=True, exist_ok=True)
    test, thresholds = table.split("test"), [0.5] * len(table.classes)
    present = called_present(probabilities, table.classes, thresholds, table.multiclass)
    found = Predictions(
        test.paths, probabilities, table.classes, thresholds, present=present, patients=test.patients
    )  # fmt: skip
    write_predictions(folder / PREDICTIONS, found, test.labels)


def compared(
    runs: Mapping[str, Sequence[Path]], asked: Iterable[tuple[str, str]], shares: Sequence[float], draws: int
) -> dict:
    """JSON-able: ``auroc`` of each reading, setting and run, ``differences`` by pairs, ``counts`` of labels in a draw.

    Args:
        runs: folders of the readings of each setting's runs.
        asked: pairs of a setting and its reference. Holm's correction is over all of them and all readings.
        shares, draws: as for :func:`read_run`. It is the mean over the draws that is measured of a run.
    """
    groups: dict[tuple[str, str], list[list[Path]]] = {}
    for setting, folders in runs.items():
        for folder in folders:
            for reading, drawn in places(folder, shares, draws).items():
                groups.setdefault((reading, setting), []).append(drawn)
    readings = list(dict.fromkeys(reading for reading, _ in groups))
    pairs = [((reading, one), (reading, other)) for reading in readings for one, other in asked]
    values, rows = differences_of_groups(groups, pairs)
    aurocs = {reading: {setting: values[reading, setting] for setting in runs} for reading in readings}
    differences = [
        {**row, "reading": row["setting"][0], **{name: row[name][1] for name in ("setting", "reference")}}
        for row in rows
    ]
    counts = read_json(next(iter(runs.values()))[0] / COUNTS, RUN_JSON)  # labels are the same whatever the encoder
    return {"auroc": aurocs, "differences": differences, "counts": counts, "draws": draws}


def readings_text(found: Mapping, heading: str) -> str:
    """Markdown of what :func:`compared` gives."""
    aurocs, draws = found["auroc"], found["draws"]
    lines = []
    for setting in next(iter(aurocs.values())):
        values = [np.array(each[setting]) for each in aurocs.values()]
        spreads = [f" ± {one.std(ddof=1):.3f}" if len(one) > 1 else "" for one in values]
        lines.append([setting, *(f"{one.mean():.3f}{apart}" for one, apart in zip(values, spreads, strict=True))])
    counts = ", ".join(
        f"{percent(float(share))} {between(each, 'images')} images of {between(each, 'patients')} patients"
        for share, each in sorted(found["counts"].items(), key=lambda pair: float(pair[0]))
    )
    said = (
        "Test AUROC, mean ± sd over the encoders; with few labels, of the mean over "
        f"{draws} draws of labelled patients, the same for all encoders: {counts}."
    )
    said = textwrap.fill(said, 120, break_on_hyphens=False, break_long_words=False)
    parts = ["\n".join(table_lines([heading, *aurocs], lines)), said]
    return "\n\n".join([*parts, verdicts(found["differences"])] if found["differences"] else parts)


def between(rows: Sequence[Mapping], name: str) -> str:
    """``"12"``, or ``"12 to 14"``."""
    least, most = min(row[name] for row in rows), max(row[name] for row in rows)
    return f"{least}" if least == most else f"{least} to {most}"
