"""Pictures of a prepared data set: histograms, and a sheet of images with their contours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ...errors import MissingDependencyError
from ...files import written_whole
from ...images.canvas import Canvas
from ...images.contour import Contour
from ...images.overlay import contact_sheet, contact_tile, plain_tile
from ...images.panels import display_levels, write_image
from .reading import decode, inside_grid
from .shards import ShardFolder
from .worker import OK

SPREAD, UNSURE = 32, 8  # tiles of the contact sheet
LEFT_OUT, TILES_LEFT_OUT = "left_out.png", 64


def write_pictures(out: Path, index, recipe: dict, summary: dict) -> None:
    """``summary.png`` (sizes, contour confidence, inside share, what became of the sources) and ``contacts.png``."""
    _histograms(out / "summary.png", index, summary)
    _contacts(out / "contacts.png", ShardFolder(out / "shards"), index, recipe)


def write_left_out(out: Path, table) -> None:
    """``left_out.png``: what was left out for its view or body part, the least sure first; none of it, no file.

    Captions say the line of ``quarantine.csv``, the reason and what the pixels give to the view.
    """
    path = out / LEFT_OUT
    path.unlink(missing_ok=True)
    facts = table.select(["status", "reason", "view_probability", "thumbnail"]).to_pylist()
    bad = [fact for fact in facts if fact["status"] != OK]
    shown = [(line, fact) for line, fact in enumerate(bad, start=2) if fact["thumbnail"]]
    shown.sort(key=lambda pair: 0.0 if pair[1]["view_probability"] is None else pair[1]["view_probability"])
    tiles = []
    for line, fact in shown[:TILES_LEFT_OUT]:
        grey = cv2.imdecode(np.frombuffer(fact["thumbnail"], np.uint8), cv2.IMREAD_GRAYSCALE)
        chance = "" if fact["view_probability"] is None else f", {fact['view_probability']:.2f}"
        tiles.append(plain_tile(grey, f"line {line}{chance}", fact["reason"]))
    if tiles:
        with written_whole(path) as temporary:
            write_image(temporary, contact_sheet(tiles))


def _histograms(path: Path, index, summary: dict) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the summary needs matplotlib: pip install 'hdxray-fast[prepare]'") from error
    figure = Figure(figsize=(15, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    size, confidence, share, fate = figure.subplots(1, 4)
    size.hist([index.column(name).to_numpy() for name in ("height", "width")], bins=30, label=["rows", "columns"])
    size.legend()
    size.set(title="stored size", xlabel="pixels", ylabel="images")
    confidence.hist(index.column("confidence").to_numpy(), bins=np.linspace(0, 1, 41), color="C2")
    confidence.set(title="contour confidence", xlabel=f"{summary['flagged_contours']} flagged")
    share.hist(index.column("inside_share").to_numpy(), bins=np.linspace(0, 1, 41), color="C3")
    share.set(title="patches inside the contour", xlabel="share of the canvas")
    names = ("images", "duplicates", "filtered", "unreadable")
    bars = fate.barh(names, [summary[name] for name in names], color=["C2", "C7", "C1", "C3"])
    fate.bar_label(bars, padding=3)
    fate.invert_yaxis()
    fate.set(title=f"{summary['sources']} sources")
    fate.margins(x=0.2)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})  # the same picture for the same data


def _contacts(path: Path, shards: ShardFolder, index, recipe: dict) -> None:
    """Images spread evenly over the data set, then those whose contour is least sure; captions name index rows only."""
    spread = np.unique(np.linspace(0, len(index) - 1, min(SPREAD, len(index))).round().astype(int)).tolist()
    unsure = np.argsort(index.column("confidence").to_numpy(), kind="stable").tolist()
    rows = spread + [row for row in unsure[: SPREAD + UNSURE] if row not in spread][:UNSURE]
    tiles = []
    for row, facts in zip(rows, index.take(rows).to_pylist(), strict=True):
        with shards.pixels(facts["shard"]).open("rb") as stream:
            stream.seek(facts["offset"])
            pixels = decode(stream.read(facts["length"]), recipe)
        grey = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        contour = Contour(
            polygon=np.asarray(facts["polygon"], np.float32).reshape(-1, 2),
            inside=inside_grid(facts["inside"], recipe["size"]),
            confidence=facts["confidence"],
            method=facts["method"],
            flagged=facts["flagged"],
        )
        canvas = Canvas(display_levels(grey)[grey], tuple(facts["valid_box"]))
        tiles.append(contact_tile(canvas, contour, f"row {row}" + ("" if row in spread else ", least sure")))
    with written_whole(path) as temporary:
        write_image(temporary, contact_sheet(tiles))
