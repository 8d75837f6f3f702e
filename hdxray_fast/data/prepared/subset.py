"""Some images of a prepared data set, read like the whole of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .shards import arrow

if TYPE_CHECKING:
    from .reading import Prepared, PreparedSet


class PreparedSubset:
    """Some images of a prepared data set, numbered anew; read like the whole of it.

    Args:
        images: the data set.
        rows: of it, in the order of the subset.
        names: where each image comes from, as the user named it.
    """

    def __init__(self, images: PreparedSet, rows: Sequence[int], names: Sequence[str]) -> None:
        self.images, self.rows, self._names = images, np.asarray(rows, np.int64), list(names)

    @property
    def size(self) -> int:
        """Canvas side, pixels."""
        return self.images.size

    @property
    def recipe(self) -> dict:
        """Settings that the data set was made with."""
        return self.images.recipe

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Prepared:
        return self.read(place)

    def read(self, place: int, out: np.ndarray | None = None) -> Prepared:
        """As :meth:`PreparedSet.read`."""
        return self.images.read(int(self.rows[place]), out)

    def extents(self, places: np.ndarray) -> list[tuple[Path, int, int]]:
        """As :meth:`PreparedSet.extents`."""
        rows = self.rows[places]
        return self.images.extents(rows[rows >= 0])  # what a cache has lost lies nowhere

    fetchers = 1

    def bring(self, path: Path) -> bool:
        """As :meth:`PreparedSet.bring`."""
        return False

    def touch(self, places: np.ndarray) -> None:
        """As :meth:`PreparedSet.touch`."""

    def run_starts(self) -> np.ndarray | None:
        """As :meth:`PreparedSet.run_starts`."""
        return None

    def source(self, place: int) -> str:
        """As :meth:`PreparedSet.source`."""
        return self._names[place]

    def sources(self) -> list[str]:
        """As :meth:`PreparedSet.sources`."""
        return list(self._names)

    def key(self, place: int) -> str:
        """32 hexadecimal digits that tell an image, as it was prepared, from all others."""
        recipe, row = self.images.recipe, int(self.rows[place])
        told = [self.images.source(row), *self.images.stamp(row), recipe["size"], recipe["contour"]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def column(self, name: str):
        """As :meth:`PreparedSet.column`, but for ``source``, which is as it was when the data set was made."""
        return self.images.column(name).take(arrow().array(self.rows))

    def hashes(self) -> list[str]:
        """As :meth:`PreparedSet.hashes`."""
        found = self.images.hashes()
        return [found[row] for row in self.rows]

    def checksums(self) -> np.ndarray:
        """As :meth:`PreparedSet.checksums`."""
        return self.images.checksums()[self.rows]

    def shares_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`PreparedSet.shares_by_image`."""
        inside, valid = self.images.shares_by_image()
        return inside[self.rows], valid[self.rows]

    def subset(self, places: Sequence[int]) -> PreparedSubset:
        """Some of these."""
        return PreparedSubset(self.images, self.rows[list(places)], [self._names[place] for place in places])
