"""A shard that is made again for the sake of few rows: the others are copied, pixels and facts, and not read anew."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from ...names import unescaped
from ...regular_files import open_regular
from .shards import ShardFolder
from .worker import OK, UNREADABLE, Row

OWN = ("source", "status", "reason", "shard", "offset", "length")  # facts that are written anew


class KeptRows:
    """What there is of a shard.

    Args:
        shards, number: the shard, which is whole as far as its sizes tell.

    Attributes:
        again: places of the sources that are to be read: what was unreadable, and what is damaged since.

    Raises:
        ShardError: it is damaged.
    """

    def __init__(self, shards: ShardFolder, number: int) -> None:
        self.path = shards.pixels(number)
        self._facts = shards.read_facts(number)
        status, offset, length, crc32 = (
            self._facts.column(name).to_pylist() for name in ("status", "offset", "length", "crc32")
        )
        self.again = []
        with open_regular(self.path) as stream:
            for place, state in enumerate(status):
                if state == UNREADABLE or (
                    state == OK and zlib.crc32(_pixels(stream, offset[place], length[place])) != crc32[place]
                ):
                    self.again.append(place)

    def rows(self, read: Iterator[Row]) -> Iterator[Row]:
        """All rows of the shard, those of ``again`` taken from what was read."""
        again = set(self.again)
        with open_regular(self.path) as stream:
            for place, facts in enumerate(self._facts.to_pylist()):
                if place in again:
                    yield next(read)
                    continue
                good = facts["status"] == OK
                data = _pixels(stream, facts["offset"], facts["length"]).tobytes() if good else b""
                about = {name: value for name, value in facts.items() if name not in OWN and value is not None}
                yield Row(unescaped(facts["source"]), facts["status"], facts["reason"], data, about)


def _pixels(stream, offset: int, length: int) -> np.ndarray:
    found = np.empty(length, np.uint8)
    stream.seek(offset)
    return found[: stream.readinto(found)]
