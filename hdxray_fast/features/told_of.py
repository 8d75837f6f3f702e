"""What a user's table tells of radiographs, found by whatever way leads to one of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


def place_of(path: str, images: Path | None) -> str | None:
    """Where a radiograph of the table is: where it says, or under ``images`` by as much of its path as is there."""
    if images is None:
        return path if os.path.isfile(path) else None
    parts = [part for part in Path(path).parts if part not in ("..", Path(path).anchor)]
    tails = (images.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((str(tail) for tail in tails if tail.is_file()), None)


class ToldOf(Generic[T]):
    """Labels, or patients, of radiographs that a table of features calls otherwise.

    Args:
        told: by the paths of the user's table.
        images: folder that the radiographs are in now.
        root: folder that paths of ``told`` begin from: one that leads to no file is told by the rest of it, where one
            of ``paths`` alone ends so.
        paths: as the table of features has them.
    """

    def __init__(
        self, told: Mapping[str, T], images: Path | None, root: str | os.PathLike | None, paths: Iterable[str]
    ) -> None:
        self._images = images
        self._told = {os.path.abspath(path): value for path, value in told.items()}
        self._root = None if root is None else os.path.join(os.path.abspath(root), "")
        self._ending: dict[str, list[str]] = {}  # by the rest of a path of ``told``, those of ``paths`` that end in it
        if self._root is not None and self._told:
            rests = {path[len(self._root) :] for path in self._told if path.startswith(self._root)}
            for path in dict.fromkeys(map(os.path.abspath, paths)):
                for rest in _ends(path):
                    if rest in rests:
                        self._ending.setdefault(rest, []).append(path)

    def of(self, path: str) -> T | None:
        """Of a radiograph as the table of features calls it; ``None`` if nothing is told."""
        for place in (path, place_of(path, self._images) if self._told else None):
            if place is not None and (value := self._told.get(os.path.abspath(place))) is not None:
                return value
        for rest in _ends(os.path.abspath(path)):
            if len(self._ending.get(rest, ())) == 1 and not os.path.isfile(self._root + rest):
                return self._told[self._root + rest]
        return None


def _ends(path: str) -> list[str]:
    """``a/b/c.png``, ``b/c.png``, ``c.png``."""
    parts = Path(path).parts[1:]
    return [os.path.join(*parts[start:]) for start in range(len(parts))]
