"""Pictures of a prepared data set: histograms, and a sheet of images with their contours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ...errors import MissingDependencyError
from ...extras import install
from ...files import written_whole
from ...images.canvas import Canvas
from ...images.contour import Contour
from ...images.overlay import contact_sheet, contact_tile, plain_tile
from ...images.panels import display_levels, png_of
from ...names import unescaped
from ...regular_files import open_regular
from .reading import decode, inside_grid
from .shards import ShardFolder

SPREAD, EXTREME, UNSURE = 32, 16, 8  # tiles of the contact sheet: over the data set, of each extreme, least sure
HISTOGRAMS, CONTACTS, LEFT_OUT = PICTURES = ("summary.png", "contacts.png", "left_out.png")
TILES_LEFT_OUT = 64
TOLD = ("source", "length", "polygon", "inside", "confidence", "method", "flagged", "valid_box")  # of a tile
LEAST_WIDE = 32  # px that the histogram of sizes spans: labels of a narrower one lie over each other

Shown = list[tuple[str, int, str, str]]  # tiles: picture, number (from 1, row by row), caption, source


def write_pictures(out: Path, index, recipe: dict, summary: dict) -> Shown:
    """``summary.png`` (sizes, brightness, contours, what became of the sources) and ``contacts.png``.

    Args:
        out: folder of the data set.
        index: of its images, by row, at least the columns that :data:`.tally.KEPT` names; the rest of the few that are
            shown is read from their shards.
        recipe, summary: of the data set.

    Returns:
        The tiles of ``contacts.png``.
    """
    _histograms(out / HISTOGRAMS, index, recipe["bits"], summary)
    return _contacts(out / CONTACTS, ShardFolder(out / "shards"), index, recipe)


class LeftOut:
    """``left_out.png``: what was left out for its view or body part, the least sure first; none of it, no file.

    Captions say the line of ``quarantine.csv``, the reason and what the pixels give to the view.
    """

    def __init__(self) -> None:
        self._line = 2  # the first is the header
        self._shown: list[tuple[float, int, dict]] = []

    def add(self, bad) -> None:
        """Facts of what is not good in a shard: ``source``, ``reason``, ``view_probability``, ``left_out``."""
        facts = bad.select(["source", "reason", "view_probability", "left_out"]).to_pylist()
        self._shown += [
            (fact["view_probability"] or 0.0, line, fact)
            for line, fact in enumerate(facts, start=self._line) if fact["left_out"]
        ]  # fmt: skip
        self._line += len(facts)
        self._shown = sorted(self._shown, key=lambda one: one[:2])[:TILES_LEFT_OUT]

    def write(self, out: Path) -> Shown:
        """Make the picture in the data set's folder; gives its tiles."""
        path = out / LEFT_OUT
        path.unlink(missing_ok=True)
        tiles, shown = [], []
        for number, (_, line, fact) in enumerate(self._shown, start=1):
            grey = cv2.imdecode(np.frombuffer(fact["left_out"], np.uint8), cv2.IMREAD_GRAYSCALE)
            chance = "" if fact["view_probability"] is None else f", {fact['view_probability']:.2f}"
            caption = f"line {line}{chance}"
            tiles.append(plain_tile(grey, caption, fact["reason"]))
            shown.append((LEFT_OUT, number, f"{caption}, {fact['reason']}", unescaped(fact["source"])))
        if tiles:
            with written_whole(path) as temporary:
                temporary.write_bytes(png_of(contact_sheet(tiles)))
        return shown


def _histograms(path: Path, index, bits: int, summary: dict) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"the summary needs matplotlib: {install('prepare')}") from error
    figure = Figure(figsize=(18.5, 3.8), dpi=110)
    FigureCanvasAgg(figure)
    # places by hand, one outline to a histogram: laying out and single bars took most of the time of a small merge
    figure.subplots_adjust(left=0.055, right=0.99, bottom=0.15, top=0.91, wspace=0.36)
    size, level, confidence, share, fate = figure.subplots(1, 5)
    sides = [index.column(name).to_numpy() for name in ("height", "width")]
    size.hist(sides, bins=30, range=size_range(np.concatenate(sides)), label=["rows", "columns"])
    size.locator_params(axis="x", nbins=5, integer=True)
    size.legend()
    size.set(title="stored size", xlabel="pixels", ylabel="images")
    level.hist(grey_levels(index, bits), bins=np.linspace(0, 255, 52), histtype="stepfilled", color="C4")
    level.set(title="brightness", xlabel="mean grey level of 255")
    shares = {"bins": np.linspace(0, 1, 41), "histtype": "stepfilled"}
    confidence.hist(index.column("confidence").to_numpy(), **shares, color="C2")
    confidence.set(title="contour confidence", xlabel=f"{summary['flagged_contours']} flagged")
    share.hist(index.column("inside_share").to_numpy(), **shares, color="C3")
    share.set(title="patches inside the contour", xlabel="share of the canvas")
    names = ("images", "duplicates", "filtered", "unreadable")
    bars = fate.barh(names, [summary[name] for name in names], color=["C2", "C7", "C1", "C3"])
    fate.bar_label(bars, padding=3)
    fate.invert_yaxis()
    fate.set(title=f"{summary['sources']} sources")
    fate.margins(x=0.2)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})  # the same picture for the same data


def size_range(sides: np.ndarray) -> tuple[float, float]:
    """What the histogram of sizes spans, px: the sizes there are, and somewhat more where these are all alike."""
    low, high = float(sides.min()), float(sides.max())
    more = max(0.0, LEAST_WIDE - (high - low)) / 2
    return low - more, high + more


def grey_levels(index, bits: int) -> np.ndarray:
    """Mean of each image's valid patches, from the numbers that standardise it. ``[N] float64``, 0 to 255."""
    scale, shift = (index.column(name).to_numpy() for name in ("scale", "shift"))
    return -shift / scale * (255 / (2**bits - 1))


def contact_rows(levels: np.ndarray, confidence: np.ndarray) -> dict[int, str]:
    """Rows of the index that go on the contact sheet, in its order, and what their captions say of them.

    Images spread evenly over the data set; of the darkest and of the brightest 1 %, since that is where a wrong table,
    window or polarity shows; and those whose contour is least sure.

    Args:
        levels: ``[N] float``, mean grey level of each image.
        confidence: ``[N] float``, how sure its contour is.
    """
    percent = -(-len(levels) // 100)
    places = np.unique(np.linspace(0, percent - 1, min(EXTREME, percent)).round().astype(int))
    order = np.argsort(levels, kind="stable")
    extremes: dict[int, str] = {}
    for rows, word in ((order, "darkest"), (order[::-1], "brightest")):
        for row in rows[places].tolist():
            extremes.setdefault(row, f"{word} 1 %, mean {levels[row]:.0f}")
    spread = np.unique(np.linspace(0, len(levels) - 1, min(SPREAD, len(levels))).round().astype(int)).tolist()
    rows = {row: "" for row in spread if row not in extremes} | extremes
    for row in np.argsort(confidence, kind="stable")[:UNSURE].tolist():
        rows[row] = ", ".join(filter(None, (rows.get(row, ""), "least sure")))
    return rows


def _contacts(path: Path, shards: ShardFolder, index, recipe: dict) -> Shown:
    """The rows of :func:`contact_rows`, as tiles; captions name index rows only."""
    rows = contact_rows(grey_levels(index, recipe["bits"]), index.column("confidence").to_numpy())
    shown = ([index.column(name)[row].as_py() for name in ("shard", "offset")] for row in rows)
    tiles, told = [], []
    for (row, words), (number, offset) in zip(rows.items(), shown, strict=True):
        facts = shards.facts_at(number, offset, TOLD)
        with open_regular(shards.pixels(number)) as stream:
            stream.seek(offset)
            pixels = decode(stream.read(facts["length"]), recipe)
        grey = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        extreme = "mean" in words
        if not extreme:  # those are shown as they are
            grey = display_levels(grey)[grey]
        contour = Contour(
            polygon=np.asarray(facts["polygon"], np.float32).reshape(-1, 2),
            inside=inside_grid(facts["inside"], recipe["size"]),
            confidence=facts["confidence"],
            method=facts["method"],
            flagged=facts["flagged"],
        )
        caption = f"row {row}, {words}" if words else f"row {row}"
        tiles.append(contact_tile(Canvas(grey, tuple(facts["valid_box"])), contour, caption, tint=not extreme))
        told.append((CONTACTS, len(tiles), caption, unescaped(facts["source"])))
    with written_whole(path) as temporary:
        temporary.write_bytes(png_of(contact_sheet(tiles)))
    return told
