"""A forest plot: differences with their intervals, a row each, beside the line of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MissingDependencyError
from ..extras import install
from ..files import written_whole


@dataclass
class Panel:
    """Differences of one score.

    Attributes:
        title: of the score.
        rows: of each series, a row for each label: ``difference``, ``low``, ``high`` and ``p``, as
            :func:`.paired.difference` has them; ``None`` for none.
        marks: of each label, shown hollow: its interval rests on few patients.
    """

    title: str
    rows: list[list[dict | None]]
    marks: list[bool] = field(default_factory=list)


def plot_forest(
    path: Path, labels: Sequence[str], series: Sequence[str], panels: Sequence[Panel], foot: str = ""
) -> Path:
    """Write the plot as PNG.

    Args:
        path: to write to.
        labels: of the rows, from above; the last one stands apart from the others if it is a mean.
        series: names of what is compared, a colour each.
        panels: side by side.
        foot: a line below.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib: {install('classify')}") from error
    height = 1.4 + len(labels) * (0.22 + 0.16 * len(series))
    figure = Figure(figsize=(2.2 + 2.9 * len(panels), height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(every, panels, strict=True):
        axes.axvline(0, color="grey", linewidth=0.9)
        for number, rows in enumerate(panel.rows):
            shift = (number - (len(series) - 1) / 2) * 0.7 / len(series)
            colour = f"C{number % 10}"
            for place, row in enumerate(rows):
                if row is None:
                    continue
                y, few = place + shift, bool(panel.marks) and panel.marks[place]
                if row["low"] is not None:
                    axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
                hollow = few or row["low"] is None
                axes.plot(
                    row["difference"], y, "D" if labels[place] == "mean" else "o", color=colour, markersize=5,
                    markerfacecolor="white" if hollow else colour,
                )  # fmt: skip
        if labels and labels[-1] == "mean" and len(labels) > 1:
            axes.axhline(len(labels) - 1.5, color="grey", linewidth=0.6, linestyle=":")
        axes.set_title(panel.title, fontsize=10)
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    lines = [Line2D([], [], color=f"C{number % 10}", marker="o", markersize=5) for number in range(len(series))]
    figure.legend(lines, series, fontsize=8, frameon=False, loc="outside upper left", ncols=min(4, len(series)))
    if foot:
        figure.supxlabel(foot, fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
