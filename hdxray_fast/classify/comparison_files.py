"""A comparison of classifiers as files: JSON, CSV, Markdown, and a forest plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..data.comparison_folder import csv_row, difference_text, p_text, table_lines, write_comparison_folder
from ..data.forest_plot import Panel, plot_forest
from ..data.paired import FEW, FEWEST
from .label_table import size_in_words
from .weighted_metrics import MEASURED

PLOTTED = ("auroc", "auprc", "balanced_accuracy", "f1", "calibration_error")
TITLES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
COLUMNS = (
    "first", "second", "class", "metric", "positive", "negative", "positive_patients", "negative_patients",
    "value_first", "value_second", "difference", "low", "high", "p", "p_holm", "drawn", "few",
)  # fmt: skip


def write_comparison(report: dict, out: Path) -> None:
    """Write ``comparison.csv``, ``comparison.md``, ``forest.png`` and, last, ``comparison.json`` into ``out``."""
    write_comparison_folder(out, report, COLUMNS, _csv_rows(report), plot_comparison, format_comparison(report))


def _csv_rows(report: dict) -> Iterator[dict]:
    for pair in report["comparisons"]:
        for name, support, row_of in _rows(pair):
            for metric, row in row_of.items():
                yield csv_row(pair, row, **{**support, "class": name, "metric": metric})


def format_comparison(report: dict, metrics: tuple[str, ...] = (*MEASURED, "accuracy")) -> str:
    """A Markdown table for each model and metric: values, difference (95 %), p, and p by Holm over the classes."""
    lines = []
    for pair in report["comparisons"]:
        first, second = pair["first"], pair["second"]
        for metric in metrics:
            rows = [(name, support, row_of[metric]) for name, support, row_of in _rows(pair) if metric in row_of]
            if not rows:
                continue
            lines += [f"{second} minus {first}: {_title(metric)}", ""]
            head = ["class", "positive", "negative", first, second, "difference (95 %)", "p", "p (Holm)"]
            table = []
            for name, support, row in rows:
                mark = "*" if support.get("few") == "few" else ""
                cells = [name, str(support.get("positive", "")), str(support.get("negative", ""))]
                cells += [f"{row['first']:.3f}", f"{row['second']:.3f}", difference_text(row, 3) + mark]
                table.append([*cells, p_text(row["p"]), p_text(row.get("p_holm"))])
            lines += [*table_lines(head, table), ""]
    if not lines:
        lines.append("nothing to compare: no class has both positives and negatives in these cases")
    if any(row["few"] == "few" for pair in report["comparisons"] for row in pair["classes"].values()):
        lines.append(f"*: fewer than {FEW} patients with the finding, or without it; too few: fewer than {FEWEST}")
    for pair in report["comparisons"]:
        mean = pair["mean"].get("auroc")
        if mean and mean["left_out"]:
            left = ", ".join(mean["left_out"])
            lines.append(f"{pair['second']}: the mean is over {len(mean['over'])} classes, without {left} (too few)")
    lines.append(
        f"{size_in_words(report['images'], report['patients'])}; {report['bootstraps']} paired draws of patients"
    )
    return "\n".join([*lines, *report["notes"]])


def plot_comparison(path: Path, report: dict) -> None:
    """A forest plot: a panel for each metric, a row for each class and the mean, a colour for each model."""
    pairs = report["comparisons"]
    classes = pairs[0]["classes"]
    labels = [f"{name} ({row['positive']})" for name, row in classes.items()]
    marks = [bool(row["few"]) for row in classes.values()]
    several = len(classes) > 1
    panels = []
    for metric in PLOTTED:
        rows = [[row[metric] for row in pair["classes"].values()] for pair in pairs]
        if several:
            rows = [[*each, pair["mean"].get(metric)] for each, pair in zip(rows, pairs, strict=True)]
        if any(row is not None for each in rows for row in each):
            less = " (lower is better)" if metric == "calibration_error" else ""
            panels.append(Panel(_title(metric) + less, rows, [*marks, False]))
    series = [f"{pair['second']} minus {pair['first']}" for pair in pairs]
    whom = "images, patients not known," if report["patients"] is None else f"{report['patients']} patients"
    foot = f"difference, 95 % over {whom} by pairs"
    if any(marks):
        foot += f"; hollow: fewer than {FEW} patients with the finding, or without it"
    if panels:
        plot_forest(path, [*labels, *(["mean"] if several else [])], series, panels, foot)


def _rows(pair: dict) -> list[tuple[str, dict, dict[str, dict]]]:
    """Of each class, and the mean: its name, its counts, and what there is of each metric."""
    found = []
    for name, row in [*pair["classes"].items(), ("mean", pair["mean"])]:
        metrics = {metric: row[metric] for metric in (*MEASURED, "accuracy") if row.get(metric) is not None}
        support = {key: value for key, value in row.items() if key not in metrics and not isinstance(value, dict)}
        found.append((name, support, metrics))
    return found if len(pair["classes"]) > 1 else found[:1]


def _title(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))
