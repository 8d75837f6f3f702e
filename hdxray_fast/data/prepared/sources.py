"""What there is to prepare: files, and members of archives, in an order that every machine agrees on."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import ConfigError
from ...names import unescaped
from ..columns import PATH_COLUMNS, PATIENT_COLUMNS, find_column
from ..listing import image_files, is_image_name, list_images, manifest_paths
from .archives import Member, is_archive, list_members, unpacked

JOIN = "::"  # between an archive and its member, in names that people read
ACCEPTED = "folders of radiographs, images, .zip and .tar archives, CSV manifests"


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
    data: Sequence[str | os.PathLike],
    images: str | os.PathLike | None = None,
    exclude: Iterable[str | Path] = (),
    on_skip: Callable[[str], None] = lambda name: None,
) -> list[Source]:
    """Files, archives' members and manifests' rows, without repeats.

    Args:
        data: folders (searched recursively, archives in them included), image files, ``.zip`` and ``.tar`` archives
            (``.tar.gz`` and the like are read from their start to their end by each part), CSV manifests with an image
            column and optionally a patient column.
        images: folder that relative paths of manifests start from; the manifest's own by default.
        exclude: folders to leave out of a search.
        on_skip: called with the name of each file or member that is left out for its suffix.

    Raises:
        ConfigError: something does not exist, holds no image, or is a damaged archive; one that is found in a folder
            becomes a source of its own, to be quarantined.
    """
    found: list[Source] = []
    skipped: list[str] = []
    for item in map(Path, data):
        before = len(found), len(skipped)
        if item.is_dir():
            found += _folder(item, exclude, skipped.append)
        elif not item.exists():
            raise ConfigError(f"sources: {item} does not exist; accepted are {ACCEPTED}")
        elif is_archive(item):
            found += _members(item, skipped.append)
        elif item.suffix.lower() == ".csv":
            found += _manifest(item, images)
        else:
            found.append(Source(str(item)))
        if len(found) == before[0] and not is_archive(item):
            raise _no_image([item], skipped[before[1] :])
    sources = {source.name: source for source in found}
    if not sources:
        raise _no_image(data, skipped)
    named = {*sources, *map(str, data)}
    for name in dict.fromkeys(skipped):
        if name not in named:
            on_skip(name)
    return list(sources.values())


def run_sources(
    data: str | os.PathLike, images: str | os.PathLike | None = None, exclude: Iterable[str | Path] = ()
) -> list[Source]:
    """What a run trains on: the members of an archive, or the files of :func:`hdxray_fast.data.listing.list_images`.

    Archives that lie in a folder are left out, as they were when a run of an earlier version was begun.

    Raises:
        ConfigError: ``data`` does not exist, is damaged, or holds no image.
    """
    if is_archive(Path(data)) and Path(data).is_file():
        return list_sources([data])
    return [Source(str(path)) for path in list_images(data, images, exclude)]


def _no_image(data: Sequence[str | os.PathLike], skipped: Sequence[str]) -> ConfigError:
    hint = f"; left out for the suffix: {some_names(skipped)}" if skipped else ""
    return ConfigError(f"sources: no image in {', '.join(map(str, data))}{hint}; accepted are {ACCEPTED}")


def some_names(names: Sequence[str], count: int | None = None) -> str:
    """How many names there are (``count``, or as many as given), and the first three."""
    count = len(names) if count is None else count
    return f"{count} ({', '.join(names[:3])}{', ...' if count > 3 else ''})"


def _folder(folder: Path, exclude: Iterable[str | Path], on_skip: Callable[[str], None]) -> list[Source]:
    others: list[Path] = []
    found = [Source(str(path)) for path in image_files(folder, exclude, others.append)]
    for path in sorted(others):
        if not is_archive(path):
            on_skip(str(path))
            continue
        try:
            found += _members(path, on_skip)
        except ConfigError:
            found.append(Source(str(path)))
    return found


def _members(archive: Path, on_skip: Callable[[str], None]) -> list[Source]:
    found = []
    for member in list_members(archive):
        source = Source(str(archive), member.name, "", member.offset, member.size)
        path = PurePosixPath(member.name)
        if any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        if is_image_name(path.name):
            found.append(source)
        else:
            on_skip(source.name)
    return found


def _manifest(manifest: Path, images: str | os.PathLike | None) -> list[Source]:
    paths = list(dict.fromkeys(manifest_paths(manifest, Path(images) if images else manifest.parent, "sources")))
    patients: dict[str, str] = {}
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        column = find_column(reader.fieldnames or (), PATIENT_COLUMNS)
        if column is not None:
            image = find_column(reader.fieldnames or (), PATH_COLUMNS)
            root = Path(images) if images else manifest.parent
            patients = {str(root / unescaped(row[image])): row[column] or "" for row in reader if row[image]}
    return [Source(str(path), patient=patients.get(str(path), "")) for path in paths]


@contextmanager
def as_file(source: Source, max_bytes: int) -> Iterator[str]:
    """A path that holds the source's bytes; see :func:`hdxray_fast.data.prepared.archives.unpacked`."""
    if not source.member:
        yield source.path
        return
    member = Member(source.member, source.offset, source.size)
    with unpacked(source.path, member, source.name, max_bytes) as path:
        yield path
