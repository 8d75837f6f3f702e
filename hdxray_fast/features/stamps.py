"""What tells a file from the one that had its name before."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..data.inputs import Image
from ..data.prepared.image import PreparedImage
from ..files import size_and_time


class Stamp(NamedTuple):
    """What tells a file from the one that had its name before, as in the cache of a run.

    Of an image of a prepared data set: the bytes that it takes there and, in place of a time, their CRC-32, which stay
    as they are when the set is copied.

    Size and time, and not a hash of the bytes: to hash a million radiographs takes as long as to read them again, which
    is what the table is there to save.

    Attributes:
        size: bytes; ``None`` in rows of tables from before files were stamped.
        mtime_ns: when the file was written, nanoseconds; without a size, when the table was, which the file is older
            than.
    """

    size: int | None
    mtime_ns: int

    @classmethod
    def of(cls, image: Image) -> Stamp | None:
        """The stamp of a file, or of an image of a prepared data set, as it is now; ``None`` if there is none."""
        if isinstance(image, PreparedImage):
            return cls(*image.stamp)
        found = size_and_time(image) if isinstance(image, str) else None
        return None if found is None else cls(*found)

    def is_of(self, path: str, now: Stamp) -> bool:
        """Whether a file with the stamp ``now`` is the one that this stamp was taken of."""
        if self.size is not None:
            return self == now
        # a copy may keep the time of its original, but its entry in the folder is as new as it is
        return max(now.mtime_ns, os.stat(path).st_ctime_ns) <= self.mtime_ns


GONE = Stamp(-1, -1)  # no file's: one that was not there when stamps were taken is read again
