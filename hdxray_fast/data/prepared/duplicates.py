"""Copies within a prepared data set: images with the same stored pixels, and those that look like one film."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import ConfigError
from ...images.perceptual_hash import LENGTH, SIDE, equalised_thumbnail
from ..near_duplicates import near_pairs
from .shards import arrow

if TYPE_CHECKING:
    from .reading import PreparedSet, PreparedSubset


class Near(NamedTuple):
    """An earlier image that looks like the same film: its row, and how much alike they are (up to 1)."""

    row: int
    likeness: float


class Thumbnails:
    """The thumbnails of a table's rows, ``[N, 48, 48] uint8``, of which only those that are asked for are unpacked."""

    def __init__(self, column, rows: np.ndarray) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return _numbers(self.column.take(arrow().array(self.rows[places])), np.uint8).reshape(-1, SIDE, SIDE)


def equal_pixels(table) -> dict[int, int]:
    """Row of each image whose stored pixels were there before, and the row where."""
    first: dict[str, int] = {}
    repeats = {}
    for row, digest in enumerate(table.column("pixel_sha256").to_pylist()):
        if digest and first.setdefault(digest, row) != row:
            repeats[row] = first[digest]
    return repeats


def near_duplicates(table, without: Sequence[int] = ()) -> dict[int, Near]:
    """Row of each image that looks like an earlier one, and which: of several the most alike.

    Args:
        table: with the columns ``thumbnail`` and ``perceptual_hash``; rows where they are null are left out.
        without: rows that are left out too.
    """
    known = np.asarray(table.column("thumbnail").is_valid())
    known[list(without)] = False
    rows = np.flatnonzero(known)
    hashes = _numbers(table.column("perceptual_hash").take(arrow().array(rows)), np.int8).reshape(-1, LENGTH)
    found: dict[int, Near] = {}
    for first, second, likeness in zip(*near_pairs(Thumbnails(table.column("thumbnail"), rows), hashes), strict=True):
        row = int(rows[second])
        if row not in found or likeness > found[row].likeness:
            found[row] = Near(int(rows[first]), float(likeness))
    return dict(sorted(found.items()))


def thumbnails_of(images: PreparedSet | PreparedSubset) -> np.ndarray:
    """The thumbnails of a prepared data set, ``[N, 48, 48] uint8``, for :mod:`hdxray_fast.data.near_duplicates`.

    Where the set was made by a version that kept none, they are made of its pixels.
    """
    try:
        column = images.column("thumbnail")
    except ConfigError:
        column = arrow().nulls(len(images), arrow().binary(SIDE * SIDE))
    found = np.empty((len(images), SIDE, SIDE), np.uint8)
    known = np.asarray(column.is_valid())
    found[known] = _numbers(column.filter(arrow().array(known)), np.uint8).reshape(-1, SIDE, SIDE)
    for row in np.flatnonzero(~known):
        image = images[int(row)]
        found[row] = equalised_thumbnail(image.pixels, image.valid_box)
    return found


def _numbers(column, dtype: type) -> np.ndarray:
    """A column of equally long byte strings, none of them null, as one array."""
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk) * width, chunk.offset * width)
        for chunk in chunks if len(chunk)
    ]  # fmt: skip
    return np.concatenate([np.empty(0, dtype), *parts])
