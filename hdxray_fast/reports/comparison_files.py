"""A comparison of report models as files: JSON, CSV, Markdown, and a forest plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..data.comparison_folder import csv_row, difference_text, p_text, table_lines, write_comparison_folder
from ..data.forest_plot import Panel, plot_forest
from .evaluation_table import HEADS
from .metrics import SCORES

TITLES = dict(zip(SCORES, HEADS, strict=True))
PLOTTED = tuple(name for name in SCORES if name != "meteor")
PANELS = {"BLEU, ROUGE-L": PLOTTED[:-1], "CIDEr-D": PLOTTED[-1:]}  # of unlike scales
COLUMNS = (
    "first", "second", "language", "references", "unit", "studies", "score", "value_first", "value_second",
    "difference", "low", "high", "p", "drawn",
)  # fmt: skip


def write_comparison(report: dict, out: Path) -> None:
    """Write ``comparison.csv``, ``comparison.md``, ``forest.png`` and, last, ``comparison.json`` into ``out``."""
    write_comparison_folder(out, report, COLUMNS, _csv_rows(report), plot_comparison, format_comparison(report))


def _csv_rows(report: dict) -> Iterator[dict]:
    for pair, language, entry in _entries(report):
        for name, row in entry["scores"].items():
            yield csv_row(pair, row, **{**entry, "language": language, "score": name})


def format_comparison(report: dict) -> str:
    """A Markdown table for each model, language and convention: values, difference (95 %) and p."""
    lines = []
    for pair, language, entry in _entries(report):
        lines += [f"{pair['second']} minus {pair['first']}: language {language}, {entry['stated']}", ""]
        head = ["score", pair["first"], pair["second"], "difference (95 %)", "p"]
        table = [
            [TITLES[name], f"{row['first']:.4f}", f"{row['second']:.4f}", difference_text(row, 4), p_text(row["p"])]
            for name, row in entry["scores"].items()
        ]
        lines += [*table_lines(head, table), ""]
    lines.append(f"{report['studies']} studies; {report['bootstraps']} paired draws of {report['drawn']}")
    return "\n".join([*lines, *report["notes"]])


def plot_comparison(path: Path, report: dict) -> None:
    """A forest plot: BLEU and ROUGE-L, and beside them CIDEr-D, which has another scale."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for _, language, entry in _entries(report):
        groups.setdefault((language, entry["unit"]), []).append(entry["scores"])
    labels = [TITLES[name] for name in PLOTTED]
    panels = []
    for (language, unit), scores in groups.items():
        for title, shown in PANELS.items():
            rows = [[one.get(name) if name in shown else None for name in PLOTTED] for one in scores]
            if any(row for each in rows for row in each):
                panels.append(Panel(f"{title}, {language} by {unit}s", rows))
    series = [f"{pair['second']} minus {pair['first']}" for pair in report["comparisons"]]
    foot = f"difference, 95 % over {report['drawn']} by pairs"
    plot_forest(path, labels, series, panels, foot)


def _entries(report: dict):
    """Each table of a report: the models, the language, and what was compared on what."""
    for pair in report["comparisons"]:
        for language, entries in pair["languages"].items():
            for entry in entries:
                yield pair, language, entry
