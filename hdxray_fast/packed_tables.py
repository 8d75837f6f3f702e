"""Tables that are packed (``labels.csv.gz``) as bytes: what unpacks to far more than it holds is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

from .errors import NotAFileError
from .regular_files import open_regular, reason_of

UNPACKED, MOST_RATIO = 64 << 20, 100  # bytes that a table may unpack to, and for each byte that its file has
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def is_packed(path: str | os.PathLike) -> bool:
    """Whether a file's name says that it is packed: ``.gz``, ``.bz2``, ``.xz``, ``.zip``."""
    return Path(path).suffix.lower() in UNPACK


def open_table(path: str | os.PathLike) -> BinaryIO:
    """The bytes of a table, unpacked if its name says that it is packed.

    Raises:
        NotAFileError, OSError: as :func:`.regular_files.open_regular`; opening or reading what is damaged, or what
            unpacks to more than a table does.
    """
    file = open_regular(path)
    if not is_packed(path):
        return file
    try:
        return io.BufferedReader(_Unpacked(path, file, UNPACK[Path(path).suffix.lower()](file)))
    except DAMAGED as error:
        file.close()
        raise _damaged(path, error) from error


def _only_member(file: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} files, and not one")
    return archive.open(names[0])


UNPACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": _only_member}


class _Unpacked(io.RawIOBase):
    """What ``stream`` gives, up to as much as a table may hold; ``file`` is closed with it."""

    def __init__(self, path: str | os.PathLike, file: IO[bytes], stream: IO[bytes]) -> None:
        self.path, self.file, self.stream = path, file, stream
        self.left = self.most = UNPACKED + MOST_RATIO * os.fstat(file.fileno()).st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            part = self.stream.read(len(buffer))
        except DAMAGED as error:
            raise _damaged(self.path, error) from error
        self.left -= len(part)
        if self.left < 0:
            raise NotAFileError(self.path, f"unpacks to more than {self.most >> 20} MiB, which no table does")
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self.stream.close()
        self.file.close()
        super().close()


def _damaged(path: str | os.PathLike, error: Exception) -> NotAFileError:
    return NotAFileError(path, f"cannot be unpacked ({reason_of(error)})")
