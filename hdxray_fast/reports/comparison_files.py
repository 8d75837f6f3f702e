"""A comparison of report models as files: JSON, CSV, Markdown, and a forest plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ..data.forest_plot import Panel, plot_forest
from ..files import written_whole
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
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "comparison.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        for pair, language, entry in _entries(report):
            for name, row in entry["scores"].items():
                values = {**entry, **row, "value_first": row["first"], "value_second": row["second"]}
                about = {"first": pair["first"], "second": pair["second"], "language": language, "score": name}
                writer.writerow({**values, **about})
    plot_comparison(out / "forest.png", report)
    texts = {
        "comparison.md": format_comparison(report),
        "comparison.json": json.dumps(report, ensure_ascii=False, indent=1),
    }
    for name, text in texts.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def format_comparison(report: dict) -> str:
    """A Markdown table for each model, language and convention: values, difference (95 %) and p."""
    lines = []
    for pair, language, entry in _entries(report):
        lines += [f"{pair['second']} minus {pair['first']}: language {language}, {entry['stated']}", ""]
        head = ["score", pair["first"], pair["second"], "difference (95 %)", "p"]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name, row in entry["scores"].items():
            reach = "(too few)" if row["low"] is None else f"({row['low']:+.4f} to {row['high']:+.4f})"
            p = "" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
            cells = [
                TITLES[name],
                f"{row['first']:.4f}",
                f"{row['second']:.4f}",
                f"{row['difference']:+.4f} {reach}",
                p,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
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
