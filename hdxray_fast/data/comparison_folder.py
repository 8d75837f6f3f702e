"""What a comparison of models leaves behind, whatever was compared: a CSV, a forest plot, Markdown, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..files import claim_names, written_whole
from ..names import ESCAPES
from ..terminal import visible_lines
from .csv_cells import rounded, write_table

MAKER, FILES = "compare", ("comparison.csv", "forest.png", "comparison.md", "comparison.json")


def write_comparison_folder(
    out: Path,
    report: dict,
    columns: Sequence[str],
    rows: Iterable[Mapping],
    plot: Callable[[Path, dict], None],
    text: str,
) -> None:
    """Write ``comparison.csv``, ``forest.png``, ``comparison.md`` and, last, ``comparison.json`` into ``out``.

    Args:
        out: folder, made if it is not there.
        report: the comparison, JSON-able.
        columns: of the CSV.
        rows: of the CSV; a row of :func:`.paired.difference` gives ``value_first`` and ``value_second`` too, and what
            is in no column is left out.
        plot: draws the report into a file.
        text: the Markdown.

    Raises:
        ConfigError: a file of such a name is there, and is of no comparison.
    """
    claim_names(out, MAKER, FILES)
    encoding = {"encoding": "utf-8", "errors": ESCAPES}  # models may lie in folders of any name
    with written_whole(out / "comparison.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        write_table(file, columns, ({name: rounded(value) for name, value in row.items()} for row in rows))
    plot(out / "forest.png", report)
    texts = {"comparison.md": visible_lines(text), "comparison.json": json.dumps(report, ensure_ascii=False, indent=1)}
    for name, content in texts.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(content + "\n", **encoding)


def csv_row(pair: Mapping, row: Mapping, **about) -> dict:
    """A row of :func:`.paired.difference` for the CSV, under the names of the two models of ``pair``."""
    values = {**row, "value_first": row["first"], "value_second": row["second"]}
    return {**about, **values, "first": pair["first"], "second": pair["second"]}


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def difference_text(row: Mapping, digits: int) -> str:
    """``+0.019 (-0.017 to +0.058)``, of a row of :func:`.paired.difference`."""
    value = f"{row['difference']:+.{digits}f}"
    return (
        f"{value} (too few)"
        if row["low"] is None
        else f"{value} ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
    )


def p_text(value: float | None) -> str:
    """A p with three digits; blank where there is none."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def note_on_single_runs(runs_of: Mapping[str, Sequence], units: str) -> list[str]:
    """What an interval over ``units`` leaves out where a model has one run."""
    single = [name for name, runs in runs_of.items() if len(runs) == 1]
    if not single:
        return []
    return [
        f"one run of {', '.join(single)}: the intervals are over {units}; what another seed would change is not in them"
    ]
