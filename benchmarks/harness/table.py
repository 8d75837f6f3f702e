"""Writes the tables of measured ratios from all result files::

    python benchmarks/harness/table.py README.md docs/benchmarks.md

Between ``<!-- bench:begin -->`` and ``<!-- bench:end -->`` go all rows of all devices; between
``<!-- bench:headline -->`` and ``<!-- bench:end -->`` the few of `HEADLINE` and `GPU_HEADLINE`. ``-`` in place of files
prints all rows. GPU cases (cases.py) stand in the whole table whether they were measured or not: what no results file
holds is "not measured".
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started

from harness.bars import verdict
from harness.cases import CASES

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks.md")
BEGIN, HEADLINE_BEGIN, END = "<!-- bench:begin -->", "<!-- bench:headline -->", "<!-- bench:end -->"
NOT_MEASURED = "not measured"
NO_RACE = ("plan.json",)  # docs/plan.md shows these
REASON_LENGTH = 80
BY_TITLE = {case.title: case for case in CASES.values()}

# README's rows, in its order, 12 with those of a GPU: one a stage of the way, against that stage's strongest rival.
HEADLINE = (
    "read_canvas, JPEG 2000 15-bit DICOM 1955 × 1841 → 1280², 8 bits",
    "loss, 8 × 1280² uint8, forward + backward",
    "encoder ViT-S/16, one 1280² image, chest patches and a margin of 1, fp32",
    "MAE step, ViT-B/16, cross decoder, batch 1, fp32",
    "peak memory increase of an MAE step, ViT-B/16, cross decoder",
)
GPU_HEADLINE = (  # keys of CASES
    "dense 64 training",
    "ragged training",
    "gather eager",
    "step base cross",
    "step base cross compiled",
    "memory base cross",
    "run base 32, plain",
)


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
    return f"**{text}**" if row["bar"] is not None and verdict(row) == "met" else text


def bar_cell(row: dict) -> str:
    if row["bar"] is None:
        return ""
    said = verdict(row)
    return f"≥ {row['bar']:.3g}×" + ("" if said == "met" else f" ({said})")


def rate_cell(row: dict) -> str:
    """What ours reaches, as shares of the limits measured in the same run; of a run also what it waits and takes."""
    rate, images, parts = row["extra"].get("rate", {}), row["extra"].get("images"), []
    if images and "median" in row["ours"]:
        parts.append(f"{images / row['ours']['median']:.3g} images/s")
    if "tflops" in rate:
        parts.append(f"{rate['tflops']:.0f} TFLOP/s, {rate['of_matmul']:.0%} of a big product")
    if "gb_s" in rate:
        parts.append(f"{rate['gb_s']:.0f} GB/s, {rate['of_copy']:.0%} of a big copy")
    if "waiting" in row["extra"]:
        share = row["extra"]["waiting"]
        parts.append(f"waits for images: {NOT_MEASURED if share is None else f'{share:.1%} of the time'}")
    if "cores_busy" in row["extra"]:
        parts.append(f"{row['extra']['cores_busy']:.1f} cores busy")
    return "; ".join(parts)


def cells(row: dict) -> list[str]:
    ours, rival = figure_cell(row["ours"], row["unit"]), figure_cell(row["rival"], row["unit"])
    return [row["case"], ours, f"{rival} ({row['rival']['name']})", ratio_cell(row), bar_cell(row)]


def line(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def caption(rows: list[dict]) -> str:
    """Where and with what the newest of one device's rows was measured."""
    newest = max(rows, key=lambda r: r["measured"])
    device, software = newest["device"], newest["versions"]
    if device["kind"] == "cpu":
        threads = sorted({r["threads"] for r in rows})
        where = "one thread" if threads == [1] else f"{threads} threads"
    else:
        where = f"driver {device.get('driver', '?')}, CUDA {device.get('cuda', '?')}"
    software = f"torch {software['torch']}, Python {software['python']}, commit {newest['commit']}"
    return f"Measured on {device['name']}; {where}; {software}."


def head(*more: str) -> list[str]:
    columns = ["case", "ours", "rival", "ratio", "bar", *more]
    return [line(columns), "|---" * len(columns) + "|"]


def device_table(rows: list[dict]) -> list[str]:
    """Markdown of one device: a caption line and the table."""
    if kind(rows) == "cpu":
        return [caption(rows), "", *head(), *(line(cells(row)) for row in rows)]
    return [caption(rows), "", *head("ours reaches"), *gpu_lines(rows)]


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
    return [
        "GPU: not measured; there is no results file of one yet (`make gpu-check` on a machine with a GPU writes it).",
        "",
        *head("ours reaches"),
        *gpu_lines([]),
    ]


def result_rows(path: Path) -> list[dict]:
    """Rows of a results file; none of a file that is something else."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [at_todays_bar(row) for row in found["rows"]] if isinstance(found, dict) and "bench" in found else []


def at_todays_bar(row: dict) -> dict:
    """A row held against the bar that its case has now; the file keeps the one it was measured against."""
    case = BY_TITLE.get(row["case"])
    if case is None or case.bar == row["bar"]:
        return row
    met = None if case.bar is None or row["ratio"] is None else row["ratio"] >= case.bar
    return {**row, "bar": case.bar, "bar_met": met}


def device_rows(results: Path) -> list[list[dict]]:
    """The rows of each device that has any, in the order of their folders."""
    folders = sorted(p for p in results.iterdir() if p.is_dir()) if results.is_dir() else []
    found = (
        [row for path in sorted(folder.glob("*.json")) if path.name not in NO_RACE for row in result_rows(path)]
        for folder in folders
    )
    return [rows for rows in found if rows]


def kind(rows: list[dict]) -> str:
    """``"cpu"`` or ``"cuda"``, of the rows of one device."""
    return rows[0]["device"]["kind"]


def table(results: Path = RESULTS) -> str:
    """All devices' tables, in the order of their folders; the GPU cases even if no GPU's results are there."""
    devices = device_rows(results)
    blocks = ["\n".join(device_table(rows)) for rows in devices]
    if not blocks:
        blocks.append("CPU: not measured yet; run `make bench`.")
    if not any(kind(rows) == "cuda" for rows in devices):
        blocks.append("\n".join(no_gpu_table()))
    return "\n\n".join(blocks)


def headline(results: Path = RESULTS) -> str:
    """The rows of `HEADLINE` and `GPU_HEADLINE`, each kind of device by the one that was measured last."""
    blocks, titles = [], {"cpu": HEADLINE, "cuda": [CASES[key].title for key in GPU_HEADLINE]}
    nothing = {
        "cpu": "CPU: not measured yet; run `make bench`.",
        "cuda": "GPU: not measured; no results of one are here (`make gpu-check` on a machine with a GPU makes them).",
    }
    for which, wanted in titles.items():
        devices = [rows for rows in device_rows(results) if kind(rows) == which]
        rows = max(devices, key=lambda rows: max(row["measured"] for row in rows), default=[])
        found = {row["case"]: row for row in rows}
        chosen = [found[title] for title in wanted if title in found]
        if chosen:
            blocks.append("\n".join([caption(chosen), "", *head(), *(line(cells(row)) for row in chosen)]))
        else:
            blocks.append(nothing[which])
    return "\n\n".join(blocks)


def write(page: Path, results: Path = RESULTS) -> None:
    """Replace what stands between the markers of `page`, which say whether all rows or the headline belong there."""
    text = page.read_text(encoding="utf-8")
    begin, rows = (HEADLINE_BEGIN, headline) if HEADLINE_BEGIN in text else (BEGIN, table)
    if begin not in text or END not in text:
        raise SystemExit(
            f"{page}: the markers {BEGIN} (or {HEADLINE_BEGIN}) and {END} are missing, so no table has a place there"
        )
    block = f"{begin}\n{rows(results)}\n{END}"
    page.write_text(
        re.sub(re.escape(begin) + ".*" + re.escape(END), lambda _: block, text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        print(table())
    else:
        for page in map(Path, sys.argv[1:]) if len(sys.argv) > 1 else (ROOT / page for page in PAGES):
            write(page)
