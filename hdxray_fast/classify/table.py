"""Several runs told together: mean and spread over seeds for each label fraction, as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..files import written_whole
from .class_means import describe_mean
from .config import FinetuneConfig
from .interval_text import interval_text
from .label_fractions import added_for
from .result import FinetuneResult

SHOWN = ("auroc", "auprc", "f1")
TABLE_FILES = ("table.md", "results.json", "fractions.png")


def gathered(runs: Sequence[FinetuneConfig], results: Sequence[FinetuneResult]) -> dict[float, list[dict]]:
    """Mean-of-classes test metrics of each run, by label fraction."""
    found: dict[float, list[dict]] = {}
    for run, result in zip(runs, results, strict=True):
        counts = {"train_images": result.train_images, "label_fraction": result.fraction}
        few = result.report.get("mean_over", {}).get("few", "") if result.report["bootstraps"] else ""
        row = {"seed": run.seed, **counts, "out": str(result.out), "few": few, **result.report["mean"]}
        found.setdefault(run.label_fractions[0], []).append(row)
    return found


def summary(runs: Sequence[FinetuneConfig], results: Sequence[FinetuneResult]) -> str:
    """A Markdown table: a row per label fraction, mean ± standard deviation over its seeds.

    Below it, of which classes the metrics are means.
    """
    head = [
        "labels",
        "patients asked",
        "taken",
        "added for",
        "training images",
        *(f"test {name.upper()}, mean ± sd" for name in SHOWN),
    ]
    head.append("AUROC of each seed (95 % over patients)")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for share, rows in gathered(runs, results).items():
        fractions = [row["label_fraction"] for row in rows if row["label_fraction"]]
        most: dict[str, int] = {}
        for fraction in fractions:
            for name, count in fraction["added"].items():
                most[name] = max(count, most.get(name, 0))
        cells = [f"{share:.4g}", *(_range(fraction[key] for fraction in fractions) for key in ("asked", "taken"))]
        cells += [added_for(most), _range(row["train_images"] for row in rows)]
        for name in SHOWN:
            values = np.array([row[name]["value"] for row in rows if row[name] is not None])
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}" if len(values) else "N/A")
        cells.append(", ".join(interval_text(row["auroc"], row["few"]) for row in rows))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_classes_of_means(results)])


def _classes_of_means(results: Sequence[FinetuneResult]) -> list[str]:
    """All runs are tested on one split; they differ where images of it became unreadable between them."""
    told = []
    for result in results:
        over = result.report.get("mean_over")  # none in runs of earlier releases
        if over:
            sentence = describe_mean(over) or "the mean is over all classes"
            names = f": {', '.join(over['classes'])}" if over["classes"] else ""
            told.append(f"{sentence[0].upper()}{sentence[1:]}{names}.")
    return list(dict.fromkeys(told))


def _range(counts: Iterable[int]) -> str:
    """A number, or the least and the most of several; blank where none is known, as of runs of earlier releases."""
    found = sorted(set(counts))
    return "–".join(map(str, dict.fromkeys((found[0], found[-1])))) if found else ""


def write_table(out: Path, runs: Sequence[FinetuneConfig], results: Sequence[FinetuneResult]) -> None:
    """``table.md``, ``results.json`` and ``fractions.png`` under ``out``."""
    found = gathered(runs, results)
    numbers = json.dumps({f"{share:g}": rows for share, rows in found.items()}, indent=1)
    texts = {"table.md": summary(runs, results), "results.json": numbers}
    for name, text in texts.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    _plot(out / "fractions.png", found)


def _plot(path: Path, found: dict[float, list[dict]]) -> None:
    """A dot with its interval per seed over the number of training images, and a line through the means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    middle = []
    for rows in found.values():
        rows = [row for row in rows if row["auroc"] is not None]
        if not rows:
            continue
        values = np.array([[row["auroc"][key] for key in ("value", "low", "high")] for row in rows], float)
        images = np.array([row["train_images"] for row in rows], float)
        x = images * np.exp2(0.06 * (np.arange(len(rows)) - (len(rows) - 1) / 2))
        error = np.abs(values[:, 1:].T - values[:, 0])
        axes.errorbar(x, values[:, 0], error, fmt="o", markersize=4, linewidth=0.9, color="C0")
        middle.append((images.mean(), values[:, 0].mean()))
    axes.plot(*zip(*sorted(middle), strict=True) if middle else ([], []), color="C1", linewidth=1.6)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    places = [x for x, _ in middle]
    axes.set(xscale="log", xlabel="training images", ylabel="test AUROC, mean of the classes")
    axes.set_xticks(places, [f"{x:.0f}" for x in places])
    axes.set_xticks([], minor=True)
    axes.set_title("dots: seeds, 95 % over patients; line: their mean", fontsize=9)
    axes.grid(alpha=0.3)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
