"""Tar archives, plain and compressed, read from their start to their end by rules that no header can bend.

Python's tarfile believes what a header says: a negative size sends it back to where it was, for ever, and a record that
declares gigabytes is read whole. Here it reads from a stream that only goes forwards and bounds what a header may hold.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
HEADER_BYTES = 64 << 10  # between two members' bytes: a header, its long names, its extended records
BLOCK = 1 << 20  # bytes that are unpacked at a time
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open), (b"\x5d\0\0", lzma.open))


class DamagedArchive(ValueError):
    """An archive contradicts itself or goes beyond a limit; the text quotes nothing from inside it."""


class Tar:
    """The regular files of a tar, one after another; there is no way back.

    Args:
        path: of the archive.
        plain: whether it is not compressed; members that are not read are then jumped over.

    Raises:
        OSError, tarfile.TarError, DamagedArchive, and what decompressors raise: it cannot be read. So do all methods.
    """

    def __init__(self, path: str, plain: bool) -> None:
        self._file = open(path, "rb") if plain else _decompressed(path)  # noqa: SIM115 - closed by close()
        try:
            self._stream = _Forwards(self._file, plain)
            # names that are no UTF-8 could not be written into any table
            self._opened = tarfile.open(fileobj=self._stream, mode="r:", errors="surrogateescape")  # noqa: SIM115
        except BaseException:
            self.close()
            raise

    def next(self) -> tarfile.TarInfo | None:
        """The next regular file; ``None`` behind the last one."""
        while True:
            self._stream.left = HEADER_BYTES
            info = self._opened.next()
            self._opened.members.clear()  # a million of them would take a gigabyte
            if info is None:
                if self._stream.last.strip(b"\0"):  # tarfile takes a broken header for the end
                    raise DamagedArchive("a header in it is damaged")
                return None
            if info.size < 0:
                raise DamagedArchive("a member's size is negative")
            if info.issparse():
                raise DamagedArchive("it holds sparse files; pack it again without them")
            if info.isfile():
                return info

    def read(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """The bytes of the file that :meth:`next` gave last, in pieces."""
        self._stream.seek(info.offset_data)
        left = info.size
        while left:
            self._stream.left = BLOCK
            data = self._stream.read(min(BLOCK, left))
            if not data:
                raise EOFError("the archive ends within it")
            left -= len(data)
            yield data

    def close(self) -> None:
        self._file.close()


class _Forwards:
    """The part of a file object that tarfile needs; ``left`` is how many bytes it may read."""

    def __init__(self, stream: BinaryIO, seekable: bool) -> None:
        self._stream, self._seekable = stream, seekable
        self._at, self.left, self.last = 0, HEADER_BYTES, b""

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        if offset < self._at:
            raise DamagedArchive("a header in it points backwards")
        if self._seekable:
            self._stream.seek(offset)
            self._at = offset
        while self._at < offset and (data := self._stream.read(min(BLOCK, offset - self._at))):
            self._at += len(data)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise DamagedArchive(f"a header in it is longer than {HEADER_BYTES >> 10} KiB")
        self.last = self._stream.read(size)
        self._at += len(self.last)
        self.left -= size
        return self.last


def _decompressed(path: str) -> BinaryIO:
    with open(path, "rb") as stream:
        head = stream.read(6)
    for magic, opener in _COMPRESSED:
        if head.startswith(magic):
            return opener(path)
    return open(path, "rb")
