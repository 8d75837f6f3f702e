"""Members of archives: listed once, then read one by one from wherever they lie, never under a name of their own."""

from __future__ import annotations

import io
import lzma
import os
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...errors import ImageReadError, ImageTooLargeError
from .tars import BLOCK, TAR_SUFFIXES, DamagedArchive, Tar

ZIP_SUFFIXES = (".zip",)
MAX_MEMBERS = 1_000_000  # files that an archive may list
NAME_LENGTH = 4096  # characters of a member's name: the longest path of Linux
MEAN_NAME_LENGTH = 256  # characters, of as many names as may be listed
# Errors whose text quotes nothing from inside the archive
KNOWN_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)


class Member(NamedTuple):
    """A regular file in an archive.

    ``offset`` says where it lies in an uncompressed tar, ``size`` how long it is in any tar, bytes; -1 elsewhere.
    """

    name: str
    offset: int = -1
    size: int = -1


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


def is_stream(path: str) -> bool:
    """Whether an archive can only be read from its start: a compressed tar."""
    return not path.lower().endswith((*ZIP_SUFFIXES, ".tar"))


def list_members(archive: Path, max_members: int = MAX_MEMBERS) -> list[Member]:
    """An archive's regular files, in its own order for tar and by name for zip.

    Raises:
        ImageReadError: it does not exist, is damaged, or goes beyond a limit.
    """
    members: dict[str, Member] = {}
    names = 0
    try:
        for count, member in enumerate(_each_member(archive)):
            names += len(member.name)
            if count == max_members:
                raise DamagedArchive(f"it lists more than {max_members} files; --max-members allows more")
            if len(member.name) > NAME_LENGTH or "\0" in member.name:
                raise DamagedArchive(f"a name in it is longer than {NAME_LENGTH} characters, or no name")
            if names > MEAN_NAME_LENGTH * max_members:
                raise DamagedArchive("the names in it are too long; --max-members allows for more")
            members.pop(member.name, None)  # the last of a name counts, and has its place, as where tar unpacks
            members[member.name] = member
    except FileNotFoundError:
        raise ImageReadError(archive, "does not exist") from None
    except MemoryError:
        raise
    except Exception as error:  # what zipfile, tarfile and decompressors raise on damage has no common base
        raise ImageReadError(archive, f"is damaged or no archive ({_words(error)})") from error
    return list(members.values())


def _each_member(archive: Path) -> Iterator[Member]:
    require_regular(archive)
    if archive.name.lower().endswith(ZIP_SUFFIXES):
        with zipfile.ZipFile(archive) as opened:
            yield from map(Member, sorted(info.filename for info in opened.infolist() if _is_regular(info)))
        return
    plain = not is_stream(str(archive))
    tar = Tar(str(archive), plain)
    try:
        while info := tar.next():
            yield Member(info.name, info.offset_data if plain else -1, info.size)
    finally:
        tar.close()


def require_regular(archive: str | Path) -> None:
    """Raise DamagedArchive for what is no regular file: to open a pipe would be to wait for ever."""
    if not stat.S_ISREG(os.stat(archive).st_mode):
        raise DamagedArchive("it is no regular file")


def _is_regular(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the packer did not tell
    return not info.is_dir() and (kind in (0, stat.S_IFREG) or info.create_system != 3)


def _words(error: Exception) -> str:
    if isinstance(error, DamagedArchive):
        return str(error)
    return f"{type(error).__name__}: {error}" if isinstance(error, KNOWN_DAMAGE) else type(error).__name__


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
            for data in member_bytes(archive, member, name, max_bytes):
                out.write(data)
            out.flush()
        except ImageReadError:
            raise
        except OSError as error:  # no room for it
            raise ImageReadError(name, f"cannot be unpacked ({_words(error)})") from error
        yield f"/proc/self/fd/{out.fileno()}" if nameless else out.name


def member_bytes(archive: str, member: Member, name: str, max_bytes: int) -> Iterator[bytes]:
    """A member's bytes in pieces; arguments and errors are those of :func:`unpacked`."""
    try:
        require_regular(archive)
        left = max_bytes
        for data in _pieces(archive, member, name, max_bytes):
            left -= len(data)
            if left < 0:  # whatever its archive declared
                raise ImageTooLargeError(name, "unpacks to more bytes than it declares or are accepted")
            yield data
    except (ImageReadError, MemoryError):
        raise
    except KeyError:
        raise ImageReadError(name, "the archive has no such member any more") from None
    except Exception as error:  # as in list_members
        raise ImageReadError(name, f"cannot be unpacked ({_words(error)})") from error


def _pieces(archive: str, member: Member, name: str, max_bytes: int) -> Iterable[bytes]:
    _check_size(member.size, name, max_bytes)
    if member.offset >= 0:
        return _part(archive, member)
    if not archive.lower().endswith(ZIP_SUFFIXES):
        return _of_stream(archive, member, name, max_bytes)
    opened = _zip(archive, os.stat(archive).st_mtime_ns)
    info = opened.getinfo(member.name)
    _check_size(info.file_size, name, max_bytes)
    return _read(opened.open(info))


def _check_size(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageTooLargeError(name, f"declares {size} bytes; accepted: up to {max_bytes}")


def _part(archive: str, member: Member) -> Iterator[bytes]:
    with open(archive, "rb") as stream:
        stream.seek(member.offset)
        data = stream.read(member.size)
    if len(data) != member.size:
        raise EOFError("the archive ends within it")
    yield data


def _read(stream: BinaryIO | io.BufferedIOBase) -> Iterator[bytes]:
    with stream:
        while data := stream.read(BLOCK):
            yield data


@lru_cache(maxsize=4)  # a worker's archives stay open: listing a large one takes longer than reading a member
def _zip(path: str, modified: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


# --- compressed tars --------------------------------------------------------------------------------------------------
class _Open:
    """The one compressed tar that this process has open, since members are asked for in their order."""

    tar: Tar | None = None
    what: tuple[str, int] = ("", 0)  # path, and when it was modified


def close_stream() -> None:
    """Close the compressed tar that this process has open, if any."""
    if _Open.tar is not None:
        _Open.tar.close()
    _Open.tar = None


def _of_stream(archive: str, member: Member, name: str, max_bytes: int) -> Iterator[bytes]:
    tar = _open_stream(archive)
    try:
        info = _find(tar, member)
        if info is None:  # not behind the last one that was read, so before it
            close_stream()
            tar = _open_stream(archive)
            info = _find(tar, member)
        if info is None:
            raise KeyError(member.name)
        _check_size(info.size, name, max_bytes)
        yield from tar.read(info)
    except ImageTooLargeError:  # whose bytes can be passed over
        raise
    except BaseException:  # damaged, or not read to its end: nobody knows where the stream is
        if _Open.tar is tar:
            close_stream()
        raise


def _open_stream(archive: str) -> Tar:
    what = archive, os.stat(archive).st_mtime_ns
    if _Open.tar is None or _Open.what != what:
        close_stream()
        _Open.tar, _Open.what = Tar(archive, plain=False), what
    return _Open.tar


def _find(tar: Tar, member: Member) -> tarfile.TarInfo | None:
    while info := tar.next():
        if info.name == member.name and member.size in (-1, info.size):
            return info
    return None
