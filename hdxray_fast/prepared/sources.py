"""What there is to prepare: files, and members of archives, in an order that every machine agrees on."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..errors import ConfigError, ImageReadError, ImageTooLargeError
from ..labels import PATIENT_COLUMNS
from ..prepare import IMAGE_SUFFIXES, PATH_COLUMNS, list_images

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
JOIN = "::"  # between an archive and its member, in names that people read


@dataclass(frozen=True)
class Source:
    """One image to read.

    Attributes:
        path: a file.
        member: name inside it, if it is an archive; empty otherwise.
        patient: from a manifest: the id, or the keyed hash of it, which alone is ever written down.
    """

    path: str
    member: str = ""
    patient: str = ""

    @property
    def name(self) -> str:
        return f"{self.path}{JOIN}{self.member}" if self.member else self.path


def list_sources(
    data: Sequence[str | os.PathLike], images: str | os.PathLike | None = None, exclude: Iterable[str | Path] = ()
) -> list[Source]:
    """Files, archives' members and manifests' rows, without repeats.

    Args:
        data: folders (searched recursively, archives in them included), image files, ``.zip`` and ``.tar`` archives
            (``.tar.gz`` and the like are read from their start by each process), CSV manifests with an image column
            and optionally a patient column.
        images: folder that relative paths of manifests start from; the manifest's own by default.
        exclude: folders to leave out of a search.

    Raises:
        ConfigError: something does not exist, holds no image, or is a damaged archive.
    """
    found: list[Source] = []
    for item in map(Path, data):
        if item.is_dir():
            found += _folder(item, exclude)
        elif is_archive(item):
            found += _members(item)
        elif item.suffix.lower() == ".csv":
            found += _manifest(item, images)
        else:
            found += [Source(str(path)) for path in list_images(item)]
    if not found:
        raise ConfigError(f"sources: {', '.join(map(str, data))} name no image")
    return list({source.name: source for source in found}.values())


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


def _folder(folder: Path, exclude: Iterable[str | Path]) -> list[Source]:
    shunned = {Path(name).resolve() for name in exclude}
    archives: list[Path] = []
    for here, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and (Path(here) / name).resolve() not in shunned
        )
        archives += [Path(here) / name for name in sorted(names) if is_archive(Path(name))]
    try:
        files = list_images(folder, exclude=shunned)
    except ConfigError:
        if not archives:
            raise
        files = []
    return [Source(str(path)) for path in files] + [member for path in archives for member in _members(path)]


def _members(archive: Path) -> list[Source]:
    """An archive's images, in its own order for tar (which is read from its start) and by name for zip."""
    try:
        if archive.name.lower().endswith(ZIP_SUFFIXES):
            with zipfile.ZipFile(archive) as opened:
                names = sorted(info.filename for info in opened.infolist() if not info.is_dir())
        else:
            with tarfile.open(archive) as opened:
                names = [info.name for info in opened if info.isfile()]
    except FileNotFoundError:
        raise ConfigError(f"sources: {archive} does not exist") from None
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, ValueError) as error:
        raise ConfigError(
            f"sources: {archive} is damaged or no archive ({error}); leave it out or fetch it again"
        ) from error
    return [Source(str(archive), name) for name in names if _looks_like_image(name)]


def _looks_like_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in (*IMAGE_SUFFIXES, "")


def _manifest(manifest: Path, images: str | os.PathLike | None) -> list[Source]:
    paths = list_images(manifest, images)
    patients: dict[str, str] = {}
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        column = next((name for name in PATIENT_COLUMNS if name in (reader.fieldnames or ())), None)
        if column is not None:
            image = next(name for name in PATH_COLUMNS if name in (reader.fieldnames or ()))
            root = Path(images) if images else manifest.parent
            patients = {str(root / row[image]): row[column] or "" for row in reader if row[image]}
    return [Source(str(path), patient=patients.get(str(path), "")) for path in paths]


# --- a source as a file -----------------------------------------------------------------------------------------------
@contextmanager
def as_file(source: Source, max_bytes: int) -> Iterator[str]:
    """A path that holds the source's bytes; a member is unpacked to a temporary file first.

    Raises:
        ImageReadError: the member is missing, damaged, encrypted, or its archive cannot be read.
        ImageTooLargeError: it declares, or turns out to have, more than ``max_bytes``.
    """
    if not source.member:
        yield source.path
        return
    with tempfile.TemporaryDirectory(prefix="hdxray-") as folder:
        unpacked = os.path.join(folder, "member" + PurePosixPath(source.member).suffix)
        try:
            with _open_member(source, max_bytes) as stream, open(unpacked, "wb") as out:
                shutil.copyfileobj(_Capped(stream, source.name, max_bytes), out)
        except ImageReadError:
            raise
        except KeyError:
            raise ImageReadError(source.name, "the archive has no such member any more") from None
        except Exception as error:  # what zipfile, tarfile and their decompressors raise on damage has no common base
            raise ImageReadError(source.name, f"cannot be unpacked ({type(error).__name__}: {error})") from error
        yield unpacked


def _open_member(source: Source, max_bytes: int):
    archive = _archive(source.path, os.stat(source.path).st_mtime_ns)
    info = archive.getinfo(source.member) if isinstance(archive, zipfile.ZipFile) else archive.getmember(source.member)
    size = info.file_size if isinstance(archive, zipfile.ZipFile) else info.size
    if size > max_bytes:
        raise ImageTooLargeError(source.name, f"declares {size} bytes; accepted: up to {max_bytes}")
    if isinstance(archive, zipfile.ZipFile):
        return archive.open(info)
    stream = archive.extractfile(info)
    if stream is None:
        raise KeyError(source.member)
    return stream


@lru_cache(maxsize=4)  # a worker's archives stay open: listing a large one takes longer than reading a member
def _archive(path: str, modified: int) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if path.lower().endswith(ZIP_SUFFIXES) else tarfile.open(path)


class _Capped(io.RawIOBase):
    """A stream that refuses to give more than some bytes, whatever the archive declared."""

    def __init__(self, stream, name: str, max_bytes: int) -> None:
        self.stream, self.name, self.left = stream, name, max_bytes

    def read(self, count: int = -1) -> bytes:
        data = self.stream.read(min(count, 1 << 20) if count > 0 else 1 << 20)
        self.left -= len(data)
        if self.left < 0:
            raise ImageTooLargeError(self.name, "unpacks to more bytes than it declares or are accepted")
        return data
