"""The nearest radiographs of a table as a contact sheet, and as a CSV: what ``hdxray-fast similar`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.film_views import NOT_FRONTAL
from ..data.radiographs import read_small
from ..data.result_files import write_for_people
from ..images.overlay import ACCEPTED, FLAGGED, TILE, contact_sheet, headed, plain_tile
from ..images.panels import display_levels, write_image
from ..names import told_apart
from ..terminal import counted, first_names
from .neighbour import Neighbour, Similar

HASH_DIGITS = 8  # of a patient's hash
SCALE = "cosine distance: 0 is alike, less is more alike"
COLUMNS = ("rank", "path", "distance", "patient", "same_patient", "same_pixels", "view")


def write_sheet(
    found: Similar, places: Sequence[str | None], folder: Path, workers: int, timeout: float, max_memory: int
) -> tuple[Path, list[str]]:
    """Write ``similar.png``, and ``similar.csv`` (where openpyxl is installed, also ``similar.xlsx``).

    Args:
        found: what they show.
        places: where the query is, then each neighbour; ``None`` if that is not known.
        folder: for both.
        workers, timeout, max_memory: of reading the radiographs.

    Returns:
        The picture, and the neighbours whose file was not found or cannot be read.
    """
    there = [place for place in places if place is not None]
    pictures = dict(zip(there, read_small(there, TILE, workers, timeout, max_memory), strict=True))
    names = told_apart([found.query, *(near.path for near in found.neighbours)])
    tiles, missing = [], []
    for place, near in zip(places, [None, *found.neighbours], strict=True):
        grey = None if place is None else pictures[place]
        if grey is None and near is not None:
            missing.append(near.path)
        called = names[found.query if near is None else near.path]
        words = _words_of_query(found, called) if near is None else _words(near, found.labelled, called)
        words += ["not found" if place is None else "cannot be read"] * (grey is None)
        grey = None if grey is None else display_levels(grey)[grey]  # as on every other picture of films
        colour = FLAGGED if near is None or near.same_patient or near.same_pixels else ACCEPTED
        tiles.append(plain_tile(np.full((TILE, TILE), 40, np.uint8) if grey is None else grey, *words, colour=colour))
    height = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=24) for tile in tiles]
    picture = folder / "similar.png"
    count = f"the {len(found.neighbours)} nearest of {counted(found.rows, 'radiograph')}"
    write_image(picture, headed(contact_sheet(tiles), f"{count}   {SCALE}"))
    rows = [_row(rank, near, found.labelled) for rank, near in enumerate(found.neighbours, start=1)]
    header = (*COLUMNS, *(["labels"] if found.labelled else []))
    write_for_people(folder / "similar.csv", header, rows, names=("path",))
    return picture, missing


def about(near: Neighbour, labelled: bool) -> list[str]:
    """Whose a neighbour is, which view, and what holds of it, in words for a terminal and a tile."""
    other = f"another patient{f' ({near.patient[:HASH_DIGITS]})' if near.patient else ''}"
    whose = {None: "patient unknown", True: "the same patient", False: other}[near.same_patient]
    told = [whose, *(["the same pixels"] if near.same_pixels else []), *_view(near.view)]
    return [*told, *([_labels(near.labels)] if labelled else [])]


def _words(near: Neighbour, labelled: bool, called: str) -> list[str]:
    """Captions of a neighbour's tile, which is called so."""
    told = about(near, labelled)
    lines = [", ".join(told[:-1]), told[-1]] if labelled else [", ".join(told)]
    return [f"distance {near.distance:.3f}", called, *lines]


def _words_of_query(found: Similar, called: str) -> list[str]:
    name = ", ".join([called, *_view(found.view)])
    return ["query", name, *([_labels(found.labels)] if found.labelled else [])]


def _view(view: str) -> list[str]:
    """Of one that is known to be no frontal."""
    return [f"{view} view"] if view in NOT_FRONTAL else []


def _labels(labels: tuple[str, ...] | None) -> str:
    return "labels unknown" if labels is None else first_names(labels) or "none of the labels is 1"


def _row(rank: int, near: Neighbour, labelled: bool) -> tuple:
    known = (near.patient, _told(near.same_patient), _told(near.same_pixels), near.view)
    labels = ["" if near.labels is None else "|".join(near.labels)] if labelled else []
    return rank, near.path, round(near.distance, 6), *known, *labels


def _told(value: bool | None) -> int | str:
    return "" if value is None else int(value)
