"""Writes README's table of measured ratios from all result files: ``python benchmarks/table.py [README.md]``.

``-`` in place of a file prints it. GPU cases (cases.py) stand in it whether they were measured or not: what no results
file holds is "not measured".
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from cases import CASES

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOT_MEASURED = "not measured"
NO_RACE = ("plan.json",)  # docs/plan.md shows these
REASON_LENGTH = 80


def amount(value: float, unit: str) -> str:
    """A figure with three digits in the unit that suits it."""
    if unit == "s":
        scales = [(1.0, "s"), (1e3, "ms"), (1e6, "µs")]
        factor, unit = next((s for s in scales if value * s[0] >= 1), scales[-1])
        value *= factor
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def figure_cell(figure: dict[str, Any], unit: str) -> str:
    """A median, or why there is none."""
    if "median" in figure:
        return amount(figure["median"], unit)
    reason = str(figure.get("failed", "failed")).replace("|", "/")
    return reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 1] + "…"


def ratio_cell(row: dict) -> str:
    if row["ratio"] is None:
        return "–"
    text = f"{row['ratio']:.2f}×" if row["ratio"] < 10 else f"{row['ratio']:.0f}×"
    return f"**{text}**" if row["bar_met"] else text


def bar_cell(row: dict) -> str:
    if row["bar"] is None:
        return ""
    return f"≥ {row['bar']:.3g}×" + {True: "", False: " (missed)", None: " (not known)"}[row["bar_met"]]


def rate_cell(row: dict) -> str:
    """What ours reaches, as shares of the limits measured in the same run."""
    rate, images, parts = row["extra"].get("rate", {}), row["extra"].get("images"), []
    if images and "median" in row["ours"]:
        parts.append(f"{images / row['ours']['median']:.3g} images/s")
    if "tflops" in rate:
        parts.append(f"{rate['tflops']:.0f} TFLOP/s, {rate['of_matmul']:.0%} of a big product")
    if "gb_s" in rate:
        parts.append(f"{rate['gb_s']:.0f} GB/s, {rate['of_copy']:.0%} of a big copy")
    return "; ".join(parts)


def cells(row: dict) -> list[str]:
    ours, rival = figure_cell(row["ours"], row["unit"]), figure_cell(row["rival"], row["unit"])
    return [row["case"], ours, f"{rival} ({row['rival']['name']})", ratio_cell(row), bar_cell(row)]


def line(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def device_table(rows: list[dict]) -> list[str]:
    """Markdown of one device: a caption line and the table."""
    newest = max(rows, key=lambda r: r["measured"])
    device, software = newest["device"], newest["versions"]
    if device["kind"] == "cpu":
        threads = sorted({r["threads"] for r in rows})
        where = "one thread" if threads == [1] else f"{threads} threads"
    else:
        where = f"driver {device.get('driver', '?')}, CUDA {device.get('cuda', '?')}"
    software = f"torch {software['torch']}, Python {software['python']}, commit {newest['commit']}"
    head = ["case", "ours", "rival", "ratio", "bar", *(["ours reaches"] if device["kind"] == "cuda" else [])]
    lines = [f"Measured on {device['name']}; {where}; {software}.", "", line(head), "|---" * len(head) + "|"]
    if device["kind"] == "cpu":
        return lines + [line(cells(row)) for row in rows]
    return lines + gpu_lines(rows)


def gpu_lines(rows: list[dict]) -> list[str]:
    """All GPU cases in the order of `CASES`, those without a row as not measured; then rows of no case."""
    found = {row["case"]: row for row in rows}
    lines = []
    for case in CASES.values():
        row = found.pop(case.title, None)
        if row is None:
            bar = "" if case.bar is None else f"≥ {case.bar:.3g}×"
            lines.append(line([case.title, NOT_MEASURED, case.rival, NOT_MEASURED, bar, NOT_MEASURED]))
        else:
            lines.append(line([*cells(row), rate_cell(row)]))
    return lines + [line([*cells(row), rate_cell(row)]) for row in found.values()]


def no_gpu_table() -> list[str]:
    """The cases that have a bar."""
    without = sum(case.bar is None for case in CASES.values())
    return [
        "GPU: not measured; there is no results file of one yet (`make gpu-check` on a machine with a GPU writes it). "
        f"{without} cases without a bar are left out here.",
        "",
        line(["case", "ours", "rival", "ratio", "bar", "ours reaches"]),
        "|---" * 6 + "|",
        *[row for row in gpu_lines([]) if "≥" in row],
    ]


def result_rows(path: Path) -> list[dict]:
    """Rows of a results file; none of a file that is something else."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["rows"] if isinstance(found, dict) and "bench" in found else []


def table(results: Path = RESULTS) -> str:
    """All devices' tables, in the order of their folders; the GPU cases even if no GPU's results are there."""
    blocks, gpus = [], 0
    for folder in sorted(p for p in results.iterdir() if p.is_dir()) if results.is_dir() else []:
        rows = [row for path in sorted(folder.glob("*.json")) if path.name not in NO_RACE for row in result_rows(path)]
        if rows:
            blocks.append("\n".join(device_table(rows)))
            gpus += rows[0]["device"]["kind"] == "cuda"
    if not blocks:
        blocks.append("CPU: not measured yet; run `make bench`.")
    if not gpus:
        blocks.append("\n".join(no_gpu_table()))
    return "\n\n".join(blocks)


def write(readme: Path, results: Path = RESULTS) -> None:
    """Replace what stands between the two markers of `readme`."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{readme}: the markers {BEGIN} and {END} are missing, so there is no place for the table")
    block = f"{BEGIN}\n{table(results)}\n{END}"
    readme.write_text(
        re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: block, text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        print(table())
    else:
        write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "README.md")
