"""Writes README's table of measured ratios from all result files: ``python benchmarks/table.py [README.md]``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def amount(value: float, unit: str) -> str:
    """A figure with three digits in the unit that suits it."""
    if unit == "s":
        scales = [(1.0, "s"), (1e3, "ms"), (1e6, "µs")]
        factor, unit = next((s for s in scales if value * s[0] >= 1), scales[-1])
        value *= factor
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def ratio_cell(row: dict) -> str:
    text = f"{row['ratio']:.2f}×" if row["ratio"] < 10 else f"{row['ratio']:.0f}×"
    return f"**{text}**" if row["bar_met"] else text


def bar_cell(row: dict) -> str:
    if row["bar"] is None:
        return ""
    return f"≥ {row['bar']:g}×" + ("" if row["bar_met"] else " (missed)")


def device_table(rows: list[dict]) -> list[str]:
    """Markdown of one device: a caption line and the table."""
    newest = max(rows, key=lambda r: r["measured"])
    device, software = newest["device"], newest["versions"]
    threads = sorted({r["threads"] for r in rows})
    where = "one thread" if threads == [1] else f"{threads} threads"
    caption = f"{device['name']}; {where if device['kind'] == 'cpu' else 'driver ' + device.get('driver', '?')}"
    lines = [
        f"Measured on {caption}; torch {software['torch']}, Python {software['python']}, commit {newest['commit']}.",
        "",
        "| case | ours | rival | ratio | bar |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ours, rival = amount(row["ours"]["median"], row["unit"]), amount(row["rival"]["median"], row["unit"])
        lines.append(
            f"| {row['case']} | {ours} | {rival} ({row['rival']['name']}) | {ratio_cell(row)} | {bar_cell(row)} |"
        )
    return lines


def table(results: Path = RESULTS) -> str:
    """All devices' tables, in the order of their folders."""
    blocks = []
    for folder in sorted(p for p in results.iterdir() if p.is_dir()) if results.is_dir() else []:
        rows = [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text()).get("rows", [])]
        if rows:
            blocks.append("\n".join(device_table(rows)))
    return "\n\n".join(blocks) or "Not measured yet: run `make bench`."


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
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "README.md")
