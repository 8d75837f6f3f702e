"""Where a worker writes an image's pixels: a slot of the file that becomes its shard.

Rows come back from the workers without pixels. The one process that all rows come to then has, of an image, nothing to
do if all before it are good; if not, it moves the pixels towards the start, over what was moved already or will not be
used (:meth:`.shards.ShardFolder.write`). The file is as long as its slots at first; what was never written of it takes
no room on the disk.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from io import FileIO
from typing import NamedTuple

from .sources import Source
from .worker import Row

HEADERS = 1 << 16  # bytes: more than all headers of a PNG or JPEG take
PIECE = 1 << 18  # bytes


class Slot(NamedTuple):
    """Bytes of a file.

    Attributes:
        path: of the file, which is there.
        start, size: bytes.
    """

    path: str
    start: int
    size: int


class Placed(NamedTuple):
    """A source whose pixels have a slot."""

    source: Source
    slot: Slot


def slot_size(recipe: dict) -> int:
    """Bytes that no image of a recipe exceeds.

    The 64 coefficients of a JPEG's block share the energy of 64 pixels, so they take 18 bits each at most, and at worst
    a zero follows each byte. Deflate and PNG's pieces add less than a hundredth.
    """
    raw = recipe["size"] ** 2 * recipe["bits"] // 8
    return {"raw": raw, "png": raw + raw // 64 + HEADERS, "jpeg": 5 * raw + HEADERS}[recipe["format"]]


def prepare_into(
    slot: Slot | None,
    prepare: Callable[..., Row],
    source: Source,
    recipe: dict,
    key: bytes | None,
    path: str | None = None,
) -> Row | OSError:
    """As ``prepare``, which is :func:`.worker.prepare_source`, but for the pixels, which go into the slot.

    Args:
        slot: ``None`` leaves them in the row.
        source, recipe, key: of ``prepare``.
        path: of ``prepare``. It stays: the call is made again if its result is lost on the way.

    Returns:
        The row; or why a file could not be written, since what is raised here is taken for what the source did.
    """
    row = prepare(source, recipe, key) if path is None else prepare(source, recipe, key, path)
    try:
        if slot is not None and 0 < len(row.data) <= slot.size:
            with open(slot.path, "r+b", buffering=0) as stream:
                stream.seek(slot.start)
                write_all(stream, row.data)
            row.start, row.length, row.data = slot.start, len(row.data), b""
    except OSError as error:
        return error
    return row


def put(stream: FileIO, row: Row, end: int) -> int:
    """Have a row's pixels at a place of its shard's file, behind those of all rows before it.

    Args:
        stream: unbuffered, since workers write to the file meanwhile.
        row: an image's; its pixels are its data, or lie in the file at ``row.start``.
        end: bytes; where they are to lie.

    Returns:
        How many bytes they are.

    Raises:
        OSError: the file cannot be written, or its pixels are not there any more.
    """
    if row.data:
        stream.seek(end)
        write_all(stream, row.data)
        return len(row.data)
    if row.start < end:  # a row was longer than its slot: not of what is written here
        raise OSError(errno.EIO, "it was changed while it was written", stream.name)
    if row.start > end:
        _move(stream, row.start, end, row.length)
    return row.length


def _move(stream: FileIO, start: int, end: int, length: int) -> None:
    """Copy bytes towards the file's start, by pieces that stay in a core's cache; the two places may overlap."""
    room = memoryview(bytearray(min(length, PIECE)))
    for done in range(0, length, PIECE):
        piece = room[: length - done]
        stream.seek(start + done)
        if stream.readinto(piece) != len(piece):
            raise OSError(errno.EIO, "it was cut while it was written", stream.name)
        stream.seek(end + done)
        write_all(stream, piece)


def write_all(stream: FileIO, data: bytes | memoryview) -> None:
    """Write to an unbuffered file, which may take less at a time."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]
