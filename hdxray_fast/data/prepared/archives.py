"""Members of archives: listed once, then read one by one from wherever they lie, never under a name of their own."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...errors import ConfigError, ImageReadError, ImageTooLargeError

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
DAMAGE = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, ValueError)


class Member(NamedTuple):
    """A file in an archive; ``offset`` and ``size`` say where it lies in an uncompressed tar, and are -1 elsewhere."""

    name: str
    offset: int = -1
    size: int = -1


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


def is_stream(path: str) -> bool:
    """Whether an archive can only be read from its start: a compressed tar."""
    return not path.lower().endswith((*ZIP_SUFFIXES, ".tar"))


def list_members(archive: Path) -> list[Member]:
    """An archive's files, in its own order for tar and by name for zip.

    Raises:
        ConfigError: it does not exist or is damaged.
    """
    try:
        if archive.name.lower().endswith(ZIP_SUFFIXES):
            with zipfile.ZipFile(archive) as opened:
                return [Member(name) for name in sorted(i.filename for i in opened.infolist() if not i.is_dir())]
        plain = not is_stream(str(archive))
        with tarfile.open(archive, "r:" if plain else "r") as opened:
            return [
                Member(info.name, info.offset_data, info.size) if plain and not info.issparse() else Member(info.name)
                for info in opened
                if info.isfile()
            ]
    except FileNotFoundError:
        raise ConfigError(f"sources: {archive} does not exist") from None
    except DAMAGE as error:
        raise ConfigError(
            f"sources: {archive} is damaged or no archive ({error}); leave it out or fetch it again"
        ) from error


# --- a member as a file -----------------------------------------------------------------------------------------------
@contextmanager
def unpacked(archive: str, member: Member, name: str, max_bytes: int) -> Iterator[str]:
    """A path that holds a member's bytes until the end of the block.

    On Linux the file has no name, so nothing stays behind when this process is killed.

    Args:
        archive: zip or tar file.
        member: one of :func:`list_members`.
        name: for errors.
        max_bytes: more than these are refused.

    Raises:
        ImageReadError: the member is missing, damaged, encrypted, or its archive cannot be read.
        ImageTooLargeError: it declares, or turns out to have, more than ``max_bytes``.
    """
    nameless = sys.platform == "linux"
    with tempfile.TemporaryFile() if nameless else tempfile.NamedTemporaryFile(prefix="hdxray-") as out:
        try:
            with _open_member(archive, member, name, max_bytes) as stream:
                copy_capped(stream, out, name, max_bytes)
        except ImageReadError:
            raise
        except KeyError:
            raise ImageReadError(name, "the archive has no such member any more") from None
        except Exception as error:  # what zipfile, tarfile and decompressors raise on damage has no common base
            raise ImageReadError(name, f"cannot be unpacked ({type(error).__name__}: {error})") from error
        out.flush()
        yield f"/proc/self/fd/{out.fileno()}" if nameless else out.name


def _open_member(archive: str, member: Member, name: str, max_bytes: int) -> BinaryIO:
    if member.offset >= 0:
        _check_size(member.size, name, max_bytes)
        return _part(archive, member)
    opened = _archive(archive, os.stat(archive).st_mtime_ns)
    if isinstance(opened, zipfile.ZipFile):
        info = opened.getinfo(member.name)
        _check_size(info.file_size, name, max_bytes)
        return opened.open(info)
    info = opened.getmember(member.name)
    _check_size(info.size, name, max_bytes)
    stream = opened.extractfile(info)
    if stream is None:
        raise KeyError(member.name)
    return stream


def _check_size(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageTooLargeError(name, f"declares {size} bytes; accepted: up to {max_bytes}")


def _part(archive: str, member: Member) -> BinaryIO:
    with open(archive, "rb") as stream:
        stream.seek(member.offset)
        data = stream.read(member.size)
    if len(data) != member.size:
        raise EOFError("the archive ends within it")
    return io.BytesIO(data)


@lru_cache(maxsize=4)  # a worker's archives stay open: listing a large one takes longer than reading a member
def _archive(path: str, modified: int) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if path.lower().endswith(ZIP_SUFFIXES) else tarfile.open(path)


def copy_capped(stream: BinaryIO, out: BinaryIO, name: str, max_bytes: int) -> None:
    """Copy a stream, which may give no more than ``max_bytes``, whatever its archive declared."""
    left = max_bytes
    while data := stream.read(1 << 20):
        left -= len(data)
        if left < 0:
            raise ImageTooLargeError(name, "unpacks to more bytes than it declares or are accepted")
        out.write(data)


# --- archives that are streams ----------------------------------------------------------------------------------------
class StreamReader:
    """Unpacks members of compressed tars in their order, each into a file of its own that workers can read.

    A worker that wanted one from the middle would have to unpack all before it, so the process that hands out the work
    goes through such archives once and hands out files instead.

    Args:
        folder: for the files; emptied first, and removed by :meth:`close`.
        max_bytes: of a member.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._archive, self._opened, self._members, self._count = "", None, iter(()), 0
        self.close()

    def fetch(self, archive: str, member: str, name: str) -> Path:
        """A file with the member's bytes; remove it when it is read.

        Raises:
            ImageReadError, ImageTooLargeError: as :func:`unpacked`.
            OSError: the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / str(self._count)
        self._count += 1
        try:
            stream = self._find(archive, member)
        except DAMAGE as error:
            self._archive = ""
            raise ImageReadError(name, f"cannot be unpacked ({type(error).__name__}: {error})") from error
        with path.open("wb") as out:
            try:
                copy_capped(stream, out, name, self.max_bytes)
            except (EOFError, tarfile.TarError, zlib.error, ValueError) as error:
                raise ImageReadError(name, f"cannot be unpacked ({type(error).__name__}: {error})") from error
            except ImageReadError:
                path.unlink()
                raise
        return path

    def _find(self, archive: str, member: str) -> BinaryIO:
        if archive != self._archive:
            self._open(archive)
        for attempt in range(2):
            for info in self._members:
                if info.name == member and info.isfile():
                    stream = self._opened.extractfile(info)
                    if stream is not None:
                        return stream
            if not attempt:  # not behind the last one, so before it
                self._open(archive)
        raise ValueError("the archive has no such member any more")

    def _open(self, archive: str) -> None:
        self._shut()
        self._opened = tarfile.open(archive, "r|*")  # noqa: SIM115 - closed by close()
        self._archive, self._members = archive, iter(self._opened)

    def _shut(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._archive, self._opened = "", None

    def close(self) -> None:
        """Close the archive and remove all files."""
        self._shut()
        shutil.rmtree(self.folder, ignore_errors=True)
