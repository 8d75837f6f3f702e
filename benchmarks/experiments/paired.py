"""Differences of test AUROC between the settings of an experiment, by pairs, and the words that they carry.

Every sentence of the documents that sets one setting above another is written by :func:`verdict`, from such a
difference: between all seeds of both, on the same draws of test patients, with Holm's correction over the table.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hdxray_fast.classify.compare import compare
from hdxray_fast.classify.prediction_files import Answers, align, read_answers, truth_of
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
    values.
    """
    asked = list(asked)
    measured, units = measure({name: [[folder] for folder in folders] for name, folders in runs.items()})
    found = []
    for setting, reference in asked:
        values = measured[setting].values - measured[reference].values
        drawn = measured[setting].drawn - measured[reference].drawn
        nothing = Measured(np.zeros_like(values), np.zeros_like(drawn))
        found.append(difference(nothing, Measured(values, drawn), units))
    return _rows(runs, asked, found)


def differences_of_groups(
    groups: Mapping[Hashable, Sequence[Sequence[Path]]], asked: Iterable[tuple[Hashable, Hashable]]
) -> tuple[dict[Hashable, list[float]], list[dict]]:
    """AUROC of each setting's runs, and differences as of :func:`paired_differences`, of groups as :func:`measure` has.

    Runs are a sample each; the folders of a run (draws of labels, say) are not.
    """
    asked = list(asked)
    measured, units = measure(groups)
    found = [difference(measured[reference], measured[setting], units) for setting, reference in asked]
    return {name: one.values.tolist() for name, one in measured.items()}, _rows(groups, asked, found)


def measure(groups: Mapping[Hashable, Sequence[Sequence[Path]]]) -> tuple[dict[Hashable, Measured], int]:
    """AUROC, in the mean over the classes, on the same draws of test patients.

    Args:
        groups: of each setting its runs, and of each run one or more folders with ``predictions.csv``: those of a run
            are no sample of their own, it is their mean that counts.

    Returns:
        What was measured of each setting, and how many patients of the rarer kind carry it (of the rarest class).

    Raises:
        ConfigError: as for :func:`paired_differences`.
    """
    read, _ = align([read_answers(folder) for made in groups.values() for run in made for folder in run])
    labels, patients, _ = truth_of(read, None, "")
    patients = np.asarray(patients, str)
    weights = np.concatenate([np.ones((1, len(labels))), *draw_patients(patients, BOOTSTRAPS, 0)])
    defined = [column for column, truth in enumerate(labels.T) if (truth == 0).any() and (truth == 1).any()]
    known = ~np.isnan(labels)

    def aurocs(answers: Answers) -> np.ndarray:  # [1 + BOOTSTRAPS]
        each = []
        for column in defined:
            rows = known[:, column]
            metrics = WeightedMetrics(labels[rows, column], answers.probabilities[rows, column], None)
            each.append(metrics.measure(weights[:, rows])[:, MEASURED.index("auroc")])
        return np.mean(each, axis=0)

    answers = iter(read)
    found = {
        name: np.stack([np.mean([aurocs(next(answers)) for _ in run], axis=0) for run in made])
        for name, made in groups.items()
    }
    units = min(len(set(patients[labels[:, column] == value])) for column in defined for value in (0, 1))
    return {name: Measured(values[:, 0], values[:, 1:]) for name, values in found.items()}, units


def _rows(
    runs: Mapping[Hashable, Sequence], asked: Sequence[tuple[Hashable, Hashable]], found: Sequence[dict]
) -> list[dict]:
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


def _reading(row: Mapping) -> str:
    return f"{row['reading']}: " if "reading" in row else ""


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
    table = [[f"{_reading(row)}{row['setting']} − {row['reference']}", verdict(row)] for row in rows]
    return "\n".join([f"**{said}**", "", *table_lines(["AUROC of", "paired difference (95 %)"], table)])
