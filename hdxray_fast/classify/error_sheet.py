"""A sheet of the errors that a classifier was most sure of, each with where it looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.film_views import describe_view
from ..data.prepared.image import PreparedImage
from ..data.radiographs import Radiograph, read_ahead
from ..data.reader_pool import MAX_MEMORY, TIMEOUT
from ..images.heat import heat_overlay, heat_scale
from ..images.lettering import text_width, write_line
from ..images.panels import display_levels, write_image
from ..names import told_apart
from .attention_maps import PatchMap, film_map
from .classifier import Classifier
from .interval_text import beside_threshold
from .label_table import LabelTable

TILE = 300  # px, side of each of a tile's two pictures
LINE, SIZE = 20, 15  # px, height of a line of text and of its letters
GAP = 8
BACKGROUND, TEXT = 24, (235, 235, 235)


@dataclass(frozen=True)
class ConfidentError:
    """One wrong decision.

    Attributes:
        row: of the table.
        column: the class decided wrongly; of exclusive classes, the one that was chosen.
        kind: ``"false positive"`` or ``"false negative"``; ``"wrong class"`` of exclusive classes.
        probability: that the class holds.
    """

    row: int
    column: int
    kind: str
    probability: float


def confident_errors(
    labels: np.ndarray,  # [N, C] 1, 0 or NaN
    probabilities: np.ndarray,  # [N, C]
    thresholds: Sequence[float],
    multiclass: bool = False,
    most: int = 12,
) -> list[ConfidentError]:
    """The wrong decisions furthest beyond their class's threshold: false positives first, then false negatives.

    Distances are shares of the way from the threshold to 1, or to 0: thresholds of rare classes are low, and a miss of
    one is no less an error. Half are of each kind; where one kind has fewer, the other fills up. Of
    exclusive classes the likeliest is the decision.
    """
    if multiclass:
        chosen = probabilities.argmax(1)
        wrong = np.flatnonzero(labels[np.arange(len(labels)), chosen] == 0)
        rows = sorted(wrong, key=lambda row: -probabilities[row, chosen[row]])[:most]
        return [ConfidentError(int(r), int(chosen[r]), "wrong class", float(probabilities[r, chosen[r]])) for r in rows]
    called = probabilities >= np.asarray(thresholds)
    positives = [ConfidentError(int(r), int(c), "false positive", float(probabilities[r, c]))
                 for r, c in np.argwhere(called & (labels == 0))]  # fmt: skip
    negatives = [ConfidentError(int(r), int(c), "false negative", float(probabilities[r, c]))
                 for r, c in np.argwhere(~called & (labels == 1))]  # fmt: skip
    positives.sort(key=lambda e: (thresholds[e.column] - e.probability) / max(1 - thresholds[e.column], 1e-9))
    negatives.sort(key=lambda e: (e.probability - thresholds[e.column]) / max(thresholds[e.column], 1e-9))
    half = most // 2
    share = max(half, most - len(negatives))
    return positives[:share] + negatives[: most - min(share, len(positives))]


def write_error_sheet(
    path: str | Path,
    model: Classifier,
    table: LabelTable,
    probabilities: np.ndarray,
    thresholds: Sequence[float],
    most: int = 12,
    images: Mapping[str, PreparedImage] | None = None,
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    drawn: list[tuple[str, str]] | None = None,
) -> Path | None:
    """Draw the sheet.

    Args:
        path: PNG file.
        model: what made the probabilities; put into evaluation mode.
        table: labels and files, which are read again.
        probabilities: ``[N, C]``, rows of ``table``.
        thresholds: ``C``.
        most: tiles.
        images: by path, those of a prepared data set that are read in place of files.
        workers, timeout, max_memory: of the readers, as for :func:`hdxray_fast.data.radiographs.read_ahead`.
        drawn: gets what :func:`.describe_off_chest` wants of each map.

    Returns:
        The file; ``None``, and no file, if nothing was decided wrongly or none of the images can be read.
    """
    path, model = Path(path), model.eval()
    errors = confident_errors(table.labels, probabilities, thresholds, model.config.multiclass, most)
    encoder, files = model.encoder, [table.paths[error.row] for error in errors]
    jobs = [((images or {}).get(file, file), file) for file in files]
    read = read_ahead(
        jobs, encoder.img_size[0], encoder.patch_size, workers, model.config.contour,
        timeout=timeout, max_memory=max_memory,
    )  # fmt: skip
    names = told_apart(files)
    tiles = [
        (item.source, *_tile(model, table, error, item, thresholds, names[item.source]))
        for error, item in zip(errors, read, strict=True)
        if isinstance(item, Radiograph)
    ]
    if not tiles:
        path.unlink(missing_ok=True)
        return None
    if drawn is not None:
        drawn += [(file, found.off_chest) for file, _, found in tiles]
    columns = min(3, len(tiles))
    pictures = [picture for _, picture, _ in tiles]
    blank = np.full_like(pictures[0], BACKGROUND)
    pictures += [blank] * (-len(pictures) % columns)
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    write_image(path, np.concatenate([_head(rows[0].shape[1], tiles[0][2]), *rows]))
    return path


def _tile(
    model: Classifier,
    table: LabelTable,
    error: ConfidentError,
    item: Radiograph,
    thresholds: Sequence[float],
    called: str,
) -> tuple[np.ndarray, PatchMap]:
    found = film_map(model, error.column, item)
    grey = cv2.resize(display_levels(item.pixels)[item.pixels], (TILE, TILE), interpolation=cv2.INTER_AREA)
    pictures = np.concatenate([cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), tinted(grey, found)], axis=1)
    if model.config.multiclass:
        held = np.flatnonzero(table.labels[error.row] == 1)  # of a film whose class is not known there is none
        truth, threshold = f", is {table.classes[held[0]]}" if len(held) else "", None
    else:
        truth, threshold = "", thresholds[error.column]
    words = [
        f"{error.kind}: {table.classes[error.column]} {beside_threshold(error.probability, threshold)}{truth}",
        called,
        full_colour(found),
        "; ".join(filter(None, (describe_view(item.view), found.off_chest))),
    ]
    picture = captioned(pictures, words)
    return cv2.copyMakeBorder(picture, 0, 0, 0, GAP, cv2.BORDER_CONSTANT, value=(BACKGROUND,) * 3), found


def captioned(picture: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """A picture with lines of text below it."""
    foot = np.full((len(words) * LINE + GAP, picture.shape[1], 3), BACKGROUND, np.uint8)
    for line, text in enumerate(words, 1):
        write_line(foot, text, 6, line * LINE - 4, SIZE, TEXT)
    return np.concatenate([picture, foot])


def full_colour(found: PatchMap) -> str:
    """What the full colour of :func:`tinted` stands for; and of a map that does not stand out, that."""
    full = found.full
    words = f"full colour: {full:.2g} logits a patch" if found.signed else f"full orange: {1 + full:.2g} even shares"
    return words if found.strength >= 1 else f"no region stands out; {words}"


def tinted(grey: np.ndarray, found: PatchMap) -> np.ndarray:
    """The map over a picture, patch by patch: ``[S, S, 3] uint8`` BGR.

    Args:
        grey: ``[S, S] uint8``.
        found: of a signed map orange is for the class and blue against it; of attention orange is more than an even
            share and blue less. A map that does not stand out is pale. Patches that were not looked at are dark.
    """
    return np.ascontiguousarray(heat_overlay(grey, found.shown, found.full)[..., ::-1])


def _head(width: int, found: PatchMap) -> np.ndarray:
    """What the colours are, and their scale."""
    head = np.full((2 * LINE + GAP, width, 3), BACKGROUND, np.uint8)
    _write(head, f"most confident errors. Right: {found.words}. Dark: not looked at.", LINE - 4)
    ends = ("against", "for (logits a patch)") if found.signed else ("less than an even share", "more")
    bar = heat_scale(-1, min(160, width // 3))[..., ::-1]
    start = 6 + text_width(ends[0], SIZE) + GAP
    head[LINE + 4 : 2 * LINE, start : start + len(bar)] = bar[: max(width - start, 0)]
    _write(head, ends[0], 2 * LINE - 4)
    _write(head[:, start + len(bar) :], f"{ends[1]}; each picture has its own full colour", 2 * LINE - 4)
    return head


def _write(strip: np.ndarray, text: str, baseline: int) -> None:
    write_line(strip, text, 6, baseline, SIZE, TEXT)
