"""Copies within a prepared data set: images with the same stored pixels, and those that look like one film."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
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
    """Thumbnails in a nameless file, ``[N, 48, 48] uint8``: a few of a million are asked for, none is held.

    Args:
        folder: that has room for 2.3 kB a thumbnail.
    """

    def __init__(self, folder: Path) -> None:
        self._stream = TemporaryFile(dir=folder)  # noqa: SIM115 (closed by its owner)
        self._count = 0

    def append(self, thumbnails: np.ndarray) -> None:
        self._stream.write(thumbnails)
        self._count += len(thumbnails)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        found = np.empty((len(places), SIDE, SIDE), np.uint8)
        for place, thumbnail in zip(places.tolist(), found, strict=True):
            self._stream.seek(place * SIDE * SIDE)
            self._stream.readinto(thumbnail)
        return found

    def close(self) -> None:
        self._stream.close()


class Copies:
    """Copies within a data set that is gone through once, shard by shard. Rows count its good images.

    Args:
        folder: of the data set.

    Attributes:
        repeats: row of each image whose stored pixels were there before, and the row where.
    """

    def __init__(self, folder: Path) -> None:
        self.repeats: dict[int, int] = {}
        self._first: dict[bytes | str, int] = {}  # of each hash of stored pixels, the row
        self._thumbnails = Thumbnails(folder)
        self._rows: list[np.ndarray] = []  # that have a thumbnail
        self._hashes: list[np.ndarray] = []
        self._count = 0

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *error: object) -> None:
        self._thumbnails.close()

    def add(self, good) -> list[int]:
        """Take in the good images of a shard.

        Args:
            good: with the columns ``pixel_sha256``, ``thumbnail`` and ``perceptual_hash``; the last two may be null.

        Returns:
            The places in it of repeats.
        """
        known = np.asarray(good.column("thumbnail").is_valid())
        places = []
        for place, digest in enumerate(good.column("pixel_sha256").to_pylist()):
            row = self._count + place
            if digest and (first := self._first.setdefault(_short(digest), row)) != row:
                self.repeats[row] = first
                places.append(place)
        known[places] = False
        rows = arrow().array(np.flatnonzero(known))
        self._rows.append(np.flatnonzero(known) + self._count)
        self._hashes.append(_numbers(good.column("perceptual_hash").take(rows), np.int8))
        self._thumbnails.append(_numbers(good.column("thumbnail").take(rows), np.uint8).reshape(-1, SIDE, SIDE))
        self._count += len(good)
        return places

    def near(self) -> dict[int, Near]:
        """Row of each image that looks like an earlier one, and which: of several the most alike. Repeats are left
        out, and images without a thumbnail."""
        self._first.clear()
        rows = np.concatenate([np.empty(0, np.int64), *self._rows])
        hashes = np.concatenate([np.empty(0, np.int8), *self._hashes]).reshape(-1, LENGTH)
        found: dict[int, Near] = {}
        for first, second, likeness in zip(*near_pairs(self._thumbnails, hashes), strict=True):
            row = int(rows[second])
            if row not in found or likeness > found[row].likeness:
                found[row] = Near(int(rows[first]), float(likeness))
        return dict(sorted(found.items()))


def _short(digest: str) -> bytes | str:
    """Hexadecimal digits in half the memory."""
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return digest


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
