"""One image of a prepared data set, as what is to be read in the place of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .reading import PreparedSet


class PreparedImage(NamedTuple):
    """An image that is read when it is asked for.

    Attributes:
        images: the data set.
        row: of it.
    """

    images: PreparedSet
    row: int

    @property
    def stamp(self) -> tuple[int, int]:
        """What tells it from an image that had its name before: bytes that it takes in its shard, and their CRC-32."""
        return self.images.stamp(self.row)
