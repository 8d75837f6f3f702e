"""The curves of a run as one picture, however long it is: loss, held-out loss, learning rate, images per second."""

from __future__ import annotations

import math
import warnings
from array import array
from collections.abc import Iterable
from pathlib import Path

from ..files import written_whole
from ..terminal import visible_lines

CURVES = "curves.png"
MOST = 2048  # points of a curve that are held; two neighbours become one when there are more


class Curve:
    """Numbers by step, held as means over equally many of them: some two thousand points whatever their number.

    Attributes:
        steps, values: of each point that is full; the mean of its steps, and of its numbers.
    """

    def __init__(self) -> None:
        self.steps, self.values = array("d"), array("d")
        self._each, self._sums = 1, [0.0, 0.0, 0]

    def add(self, step: int, value: float) -> None:
        """One more; what is not finite is left out."""
        if not math.isfinite(value):
            return
        for place, number in enumerate((step, value, 1)):
            self._sums[place] += number
        if self._sums[2] < self._each:
            return
        self.steps.append(self._sums[0] / self._each)
        self.values.append(self._sums[1] / self._each)
        self._sums = [0.0, 0.0, 0]
        if len(self.steps) >= MOST:
            self.steps, self.values = (
                array("d", ((a + b) / 2 for a, b in zip(numbers[::2], numbers[1::2], strict=True)))
                for numbers in (self.steps, self.values)
            )
            self._each *= 2

    def copy(self) -> tuple[list[float], list[float]]:
        """Steps and values, as they are now."""
        return list(self.steps), list(self.values)


class Curves:
    """The curves of a run, of the lines of its log.

    Args:
        path: of the picture.
    """

    NAMES = ("loss", "baseline", "val_loss", "lr", "images_per_s")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._curves = {name: Curve() for name in self.NAMES}
        self._told = False

    def add(self, line: dict) -> None:
        """A line of the log."""
        for name, curve in self._curves.items():
            value = line.get(name)
            if isinstance(value, int | float):
                curve.add(line["step"], value)

    def add_all(self, lines: Iterable[dict]) -> None:
        """Those of a log that a run goes on with."""
        for line in lines:
            self.add(line)

    def taken(self) -> dict[str, tuple[list[float], list[float]]]:
        """What :meth:`draw` draws, which another thread may do while the run goes on."""
        return {name: curve.copy() for name, curve in self._curves.items()}

    def draw(self, taken: dict[str, tuple[list[float], list[float]]]) -> None:
        """Write the picture; one that cannot be made is left out, with a warning, once."""
        if len(taken["loss"][0]) < 2:
            return
        try:
            figure = drawn(taken)
            with written_whole(self.path, durable=False) as temporary:
                figure.savefig(temporary, format="png")
        except (ImportError, OSError, ValueError) as error:
            if not self._told:
                self._told = True
                warnings.warn(visible_lines(f"{self.path}: is not drawn ({error})"), stacklevel=2)


def drawn(curves: dict[str, tuple[list[float], list[float]]]):
    """The figure: three panels with the steps below each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, pace = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    steps, values = curves["loss"]
    loss.plot(steps, values, color="tab:blue", linewidth=0.6, alpha=0.4)
    loss.plot(steps, _smoothed(values), color="tab:blue", linewidth=1.6, label=f"loss {_smoothed(values)[-1]:.4f}")
    held = curves["val_loss"]
    if held[0]:
        marker = "o" if len(held[0]) < 60 else None
        loss.plot(*held, color="tab:orange", marker=marker, markersize=4, label=f"held out {held[1][-1]:.4f}")
    if curves["baseline"][0]:
        alone = curves["baseline"][1][-1]
        loss.axhline(alone, color="grey", linestyle=":", linewidth=1, label=f"patch means alone {alone:.4f}")
    # the first steps are far above all others
    usual = sorted([*values[len(values) // 20 :], *held[1]])
    low, high = usual[0], usual[min(len(usual) - 1, int(0.995 * len(usual)))]
    high = max([high, *curves["baseline"][1][-1:]])
    margin = 0.05 * max(high - low, 1e-9)
    loss.set_ylim(low - margin, high + margin)
    loss.legend(loc="upper right", fontsize=9)
    rate.plot(*curves["lr"], color="tab:green")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    pace.plot(*curves["images_per_s"], color="tab:purple", linewidth=0.6, alpha=0.4)
    pace.plot(curves["images_per_s"][0], _smoothed(curves["images_per_s"][1]), color="tab:purple", linewidth=1.6)
    pace.set_ylim(bottom=0)
    for axes, title in ((loss, "loss"), (rate, "learning rate"), (pace, "images per second")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    return figure


def _smoothed(values: list[float]) -> list[float]:
    """A running mean over a fiftieth of the points, of those before alone."""
    width = max(1, len(values) // 50)
    sums, found = 0.0, []
    for place, value in enumerate(values):
        sums += value - (values[place - width] if place >= width else 0.0)
        found.append(sums / min(place + 1, width))
    return found
