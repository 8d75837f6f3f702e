"""Pictures of a prepared data set: histograms, and a sheet of images with their contours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import MissingDependencyError
from ..files import written_whole
from ..plots import contour_view, display_levels, write_image
from .reading import decode, inside_grid
from .shards import ShardFolder

TILES, SIDE, COLUMNS = 24, 240, 6  # of the contact sheet; side of a picture in pixels


def write_pictures(out: Path, index, recipe: dict, summary: dict) -> None:
    """``summary.png`` (sizes, contour confidence, inside share, what became of the sources) and ``contacts.png``."""
    _histograms(out / "summary.png", index, summary)
    _contacts(out / "contacts.png", ShardFolder(out / "shards"), index, recipe)


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
    size.set(title="stored size", xlabel="pixels")
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
    chosen = np.unique(np.linspace(0, len(index) - 1, min(TILES, len(index))).round().astype(int))
    pictures = []
    for row in index.take(chosen.tolist()).to_pylist():
        with shards.pixels(row["shard"]).open("rb") as stream:
            stream.seek(row["offset"])
            pixels = decode(stream.read(row["length"]), recipe)
        polygon = np.asarray(row["polygon"], np.float32).reshape(-1, 2)
        grey = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        view = contour_view(display_levels(grey)[grey], inside_grid(row["inside"], recipe["size"]), polygon)
        picture = cv2.resize(view, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        colour = (60, 140, 255) if row["flagged"] else (220, 220, 220)
        words = f"{row['confidence']:.2f}" + (" flagged" if row["flagged"] else "")
        for shade, stroke in (((0, 0, 0), 3), (colour, 1)):
            cv2.putText(picture, words, (6, SIDE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, shade, stroke, cv2.LINE_AA)
        pictures.append(picture)
    blank = np.zeros_like(pictures[0])
    pictures += [blank] * (-len(pictures) % min(COLUMNS, len(pictures)))
    columns = min(COLUMNS, len(pictures))
    rows = [np.hstack(pictures[start : start + columns]) for start in range(0, len(pictures), columns)]
    write_image(path, np.vstack(rows))
