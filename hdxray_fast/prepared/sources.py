"""What there is to prepare: files, and members of archives, in an order that every machine agrees on."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ConfigError
from ..labels import PATIENT_COLUMNS
from ..prepare import IMAGE_SUFFIXES, PATH_COLUMNS, list_images
from .archives import Member, is_archive, list_members, unpacked

JOIN = "::"  # between an archive and its member, in names that people read


@dataclass(frozen=True)
class Source:
    """One image to read.

    Attributes:
        path: a file.
        member: name inside it, if it is an archive; empty otherwise.
        patient: from a manifest: the id, or the keyed hash of it, which alone is ever written down.
        offset, size: bytes, where the member lies in an uncompressed tar; -1 otherwise.
    """

    path: str
    member: str = ""
    patient: str = ""
    offset: int = -1
    size: int = -1

    @property
    def name(self) -> str:
        return f"{self.path}{JOIN}{self.member}" if self.member else self.path


def list_sources(
    data: Sequence[str | os.PathLike], images: str | os.PathLike | None = None, exclude: Iterable[str | Path] = ()
) -> list[Source]:
    """Files, archives' members and manifests' rows, without repeats.

    Args:
        data: folders (searched recursively, archives in them included), image files, ``.zip`` and ``.tar`` archives
            (``.tar.gz`` and the like are read from their start to their end by each part), CSV manifests with an image
            column and optionally a patient column.
        images: folder that relative paths of manifests start from; the manifest's own by default.
        exclude: folders to leave out of a search.

    Raises:
        ConfigError: something does not exist, holds no image, or is a damaged archive; one that is found in a folder
            becomes a source of its own, to be quarantined.
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
    found = [Source(str(path)) for path in files]
    for path in archives:
        try:
            found += _members(path)
        except ConfigError:
            found.append(Source(str(path)))
    return found


def _members(archive: Path) -> list[Source]:
    found = [member for member in list_members(archive) if _looks_like_image(member.name)]
    return [Source(str(archive), member.name, "", member.offset, member.size) for member in found]


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


@contextmanager
def as_file(source: Source, max_bytes: int) -> Iterator[str]:
    """A path that holds the source's bytes; see :func:`hdxray_fast.prepared.archives.unpacked`."""
    if not source.member:
        yield source.path
        return
    member = Member(source.member, source.offset, source.size)
    with unpacked(source.path, member, source.name, max_bytes) as path:
        yield path
