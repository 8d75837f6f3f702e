"""Differences of test AUROC between the settings of an experiment, by pairs, and the words that they carry.

Every sentence of the documents that sets one setting above another is written by :func:`verdict`, from such a
difference: between all seeds of both, on the same draws of test patients, with Holm's correction over the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hdxray_fast.classify.compare import compare
from hdxray_fast.classify.prediction_files import align, read_answers, truth_of
from hdxray_fast.classify.weighted_metrics import MEASURED, WeightedMetrics
from hdxray_fast.data.comparison_folder import p_text, table_lines
from hdxray_fast.data.paired import LEVEL, Measured, difference, draw_patients, holm

Runs = Mapping[str, Sequence[Path]]
BOOTSTRAPS = 2000


def paired_differences(runs: Runs, asked: Iterable[tuple[str, str]]) -> list[dict]:
    """AUROC of a setting minus that of its reference, for each pair ``asked``.

    Args:
        runs: folders with the ``predictions.csv`` of each setting's runs, which differ in their seed.
        asked: pairs of a setting and its reference, both of ``runs``.

    Returns:
        Rows with ``setting``, ``reference``, how many ``runs`` of each, ``difference``, ``low``, ``high`` (95 %, over
        patients and runs), ``p``, and ``p_holm``, corrected over the rows.

    Raises:
        ConfigError: predictions are missing, or are not of the same images, labels and patients.
    """
    asked = list(asked)
    found = {}
    for reference in dict.fromkeys(first for _, first in asked):
        settings = [second for second, first in asked if first == reference]
        report = compare({name: runs[name] for name in (reference, *settings)}, bootstraps=BOOTSTRAPS)
        found.update({(pair["second"], reference): pair["mean"]["auroc"] for pair in report["comparisons"]})
    return _rows(runs, asked, [found[pair] for pair in asked])


def differences_within_runs(runs: Runs, asked: Iterable[tuple[str, str]]) -> list[dict]:
    """As :func:`paired_differences`, of settings whose runs belong together one by one (of the same encoder, say).

    What such a pair of runs shares is not noise of their difference, so that it is differences that are a sample, not
    values. Of predictions of one class.
    """
    asked = list(asked)
    read, _ = align([read_answers(folder) for folders in runs.values() for folder in folders])
    labels, patients, _ = truth_of(read, None, "")
    truth, patients = labels[:, 0], np.asarray(patients, str)
    weights = np.concatenate([np.ones((1, len(truth))), *draw_patients(patients, BOOTSTRAPS, 0)])
    units = min(len(set(patients[truth == value])) for value in (0, 1))
    measured = iter(
        WeightedMetrics(truth, run.probabilities[:, 0], None).measure(weights)[:, MEASURED.index("auroc")]
        for run in read
    )
    aurocs = {name: np.stack([next(measured) for _ in folders]) for name, folders in runs.items()}
    found = []
    for setting, reference in asked:
        apart = aurocs[setting] - aurocs[reference]
        nothing = np.zeros_like(apart)
        found.append(difference(Measured(nothing[:, 0], nothing[:, 1:]), Measured(apart[:, 0], apart[:, 1:]), units))
    return _rows(runs, asked, found)


def _rows(runs: Runs, asked: Sequence[tuple[str, str]], found: Sequence[dict]) -> list[dict]:
    corrected = holm([row["p"] for row in found])
    return [
        {
            "setting": setting, "reference": reference, "runs": [len(runs[setting]), len(runs[reference])],
            **{name: row[name] for name in ("difference", "low", "high", "p")}, "p_holm": p_holm,
        }
        for (setting, reference), row, p_holm in zip(asked, found, corrected, strict=True)
    ]  # fmt: skip


def is_told_apart(row: Mapping) -> bool:
    """Whether a row of :func:`paired_differences` holds after Holm's correction."""
    return row["p_holm"] is not None and row["p_holm"] <= LEVEL


def verdict(row: Mapping) -> str:
    """A row of :func:`paired_differences` in words; its interval says what size of effect is left possible."""
    if row["p"] is None:
        return f"not told apart: {row['difference']:+.3f}; too few patients for an interval"
    sure = f"p {_equals(row['p'])}, by Holm {p_text(row['p_holm'])}"
    if is_told_apart(row):
        above, below = row["setting"], row["reference"]
        middle, low, high = row["difference"], row["low"], row["high"]
        if middle < 0:
            above, below, middle, low, high = below, above, -middle, -high, -low
        text = f"**told apart**: {above} above {below} by {middle:.3f} ({low:.3f} to {high:.3f}), {sure}"
    else:
        text = f"not told apart: {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), {sure}"
    if 1 in row["runs"]:
        text += "; of single runs: what another seed would change is not in it"
    return text


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def verdicts(rows: Sequence[Mapping]) -> str:
    """Markdown: a sentence on all pairs, and a table with the verdict on each."""
    apart = sum(map(is_told_apart, rows))
    if len(rows) == 1:
        said = f"The pair is {'' if apart else 'not '}told apart."
    else:
        said = f"Of {len(rows)} pairs {apart or 'none'} {'are' if apart > 1 else 'is'} told apart."
    table = [[f"{row['setting']} − {row['reference']}", verdict(row)] for row in rows]
    return "\n".join([f"**{said}**", "", *table_lines(["AUROC of", "paired difference (95 %)"], table)])
