"""Rows of numbers of any length in two flat arrays: two objects, however many rows, which forked processes share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class Ragged:
    """Rows of whole numbers of 32 bits.

    Args:
        rows: what it begins with.
    """

    def __init__(self, rows: Iterable[Iterable[int]] = ()) -> None:
        self._values, self._ends = array("i"), array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Iterable[int]) -> None:
        """Add a row."""
        self._values.extend(row)
        self._ends.append(len(self._values))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> tuple[int, ...]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return tuple(self._values[self._ends[row] : self._ends[row + 1]])
