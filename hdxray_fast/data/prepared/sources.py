"""What there is to prepare: files, and members of archives, in an order that every machine agrees on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from ...errors import ConfigError
from ...progress import note
from ...terminal import are, first_names, visible
from ..listing import image_names, in_order, is_image_name, list_images, manifest_rows, wrong_with
from ..missing_files import none_found
from ..reader_pool import MAX_MEMORY, TIMEOUT, Failed
from ..table_text import TABLE_FILES
from .archive_lists import list_archives
from .archives import MAX_MEMBERS, Member, is_archive, unpacked

JOIN = "::"  # between an archive and its member, in names that people read
ACCEPTED = "folders of radiographs, images, .zip and .tar archives, CSV manifests"


@dataclass(frozen=True, slots=True)
class Source:
    """One image to read.

    Attributes:
        path: a file.
        member: name inside it, if it is an archive; empty otherwise.
        patient: from a manifest: the id, or the keyed hash of it, which alone is ever written down.
        offset: bytes, where the member lies in an uncompressed tar; -1 otherwise.
        size: bytes of a member of a tar; -1 otherwise.
        refused: of an archive that could not be listed, or holds no image: kind of the error, colon, reason.
    """

    path: str
    member: str = ""
    patient: str = ""
    offset: int = -1
    size: int = -1
    refused: str = ""

    @property
    def name(self) -> str:
        return f"{self.path}{JOIN}{self.member}" if self.member else self.path


def list_sources(
    data: Sequence[str | os.PathLike],
    images: str | os.PathLike | None = None,
    exclude: Iterable[str | Path] = (),
    on_skip: Callable[[str], None] = lambda name: None,
    *,
    image_column: str | None = None,
    patient_column: str | None = None,
    workers: int = 1,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    max_members: int = MAX_MEMBERS,
) -> list[Source]:
    """Files, archives' members and manifests' rows, without repeats.

    Args:
        data: folders (searched recursively, archives in them included), image files, ``.zip`` and ``.tar`` archives
            (``.tar.gz`` and the like are read from their start to their end by each part), CSV manifests with an image
            column and optionally a patient column.
        images: folder that relative paths of manifests start from; the manifest's own by default.
        exclude: folders to leave out of a search.
        on_skip: called with the name of each file or member that is left out for its suffix.
        image_column, patient_column: of manifests, where these columns go by none of the usual names.
        workers, timeout, max_memory, max_members: of archives, as for :func:`.archive_lists.list_archives`.

    Raises:
        ConfigError: something does not exist, holds no image, or names none that is there; or there are only archives
            that cannot be listed. An archive that cannot be listed, or holds no image, is a source of its own among
            others, to be quarantined.
        MissingDependencyError: there are archives and workers, and pebble or loky is not installed.
    """
    items = list(map(Path, data))
    folders = [item for item in items if item.is_dir()]
    manifest = partial(
        _manifest, images=images, folders=folders, image_column=image_column, patient_column=patient_column
    )
    named: list[tuple[Path, list[_Found]]] = [(item, _named(item, exclude, manifest)) for item in items]
    archives = list(dict.fromkeys(one.path for _, found in named for one in found if isinstance(one, _Archive)))
    lists = list_archives(archives, workers=workers, timeout=timeout, max_memory=max_memory, max_members=max_members)
    sources: dict[str, Source] = {}
    key = os.path.abspath if items[1:] else str  # a folder and a manifest may name one file in two ways
    skipped: list[str] = []
    without: list[Source] = []  # archives that can be listed, and have nothing to read
    for item, found in named:
        before, empty = len(skipped), True
        for one in found:
            if isinstance(one, Source):
                known = sources.setdefault(key(one.name), one)
                if one.patient and one is not known:  # which a folder does not tell
                    sources[key(one.name)] = replace(known, patient=one.patient)
                empty = False
            elif isinstance(one, _Archive):
                members = _members(one.path, lists[one.path], skipped.append)
                sources.update((key(source.name), source) for source in members)
                empty = empty and not members
                if not members:
                    without.append(Source(str(one.path), refused=_holds_no_image(len(lists[one.path]))))
            else:
                skipped.append(one)
        if empty and not is_archive(item):
            raise _no_image([item], skipped[before:])
    if not sources:
        raise _no_image(data, skipped)
    if all(source.refused for source in sources.values()):
        first = next(iter(sources.values()))
        raise ConfigError(f"sources: {first.path} {first.refused.partition(': ')[2]}; leave it out or fetch it again")
    sources.update((key(source.name), source) for source in without)
    taken = {*(source.name for source in sources.values()), *map(str, data)}
    for name in dict.fromkeys(skipped):
        if name not in taken:
            on_skip(name)
    return list(sources.values())


def require_source(item: Path) -> None:
    """Raise a ConfigError if it is not there."""
    if not item.exists():
        raise ConfigError(f"sources: {item} {wrong_with(item, f'accepted are {ACCEPTED}')}")


def run_sources(
    data: str | os.PathLike | Sequence[str | os.PathLike],
    images: str | os.PathLike | None = None,
    exclude: Iterable[str | Path] = (),
    *,
    image_column: str | None = None,
    workers: int = 1,
) -> list[Source]:
    """What a run trains on: the members of an archive, or the files of :func:`hdxray_fast.data.listing.list_images`; of
    several one after the other, each file once.

    Archives that lie in a folder are left out, as they were when a run of an earlier version was begun, which is said.
    An archive is listed by a worker with the default caps on time and memory; with ``workers=0`` in this process.

    Raises:
        ConfigError: ``data`` does not exist, is damaged, or holds no image.
    """
    if not isinstance(data, str | os.PathLike):
        options = {"image_column": image_column, "workers": workers}
        found: dict[str, Source] = {}
        for source in (source for one in data for source in run_sources(one, images, exclude, **options)):
            found.setdefault(os.path.abspath(source.name), source)
        return list(found.values())
    if is_archive(Path(data)) and Path(data).exists() and not Path(data).is_dir():
        return list_sources([data], workers=min(workers, 1))
    skipped: list[Path] = []
    files = list_images(data, images, exclude, image_column=image_column, on_skip=skipped.append)
    if archives := [os.path.relpath(path, data) for path in skipped if is_archive(path)]:
        note(
            f"{visible(data)}: {are(len(archives), 'archive')} passed over ({first_names(archives)}); name archives "
            "themselves, or prepare the folder, which reads them too"
        )
    return [Source(str(path)) for path in files]


def _no_image(data: Sequence[str | os.PathLike], skipped: Sequence[str]) -> ConfigError:
    hint = f"; left out for the suffix: {some_names(skipped)}" if skipped else ""
    return ConfigError(f"sources: no image in {', '.join(map(str, data))}{hint}; accepted are {ACCEPTED}")


def some_names(names: Sequence[str], count: int | None = None) -> str:
    """How many names there are (``count``, or as many as given), and the first three."""
    count = len(names) if count is None else count
    return f"{count} ({', '.join(names[:3])}{', ...' if count > 3 else ''})"


@dataclass(frozen=True)
class _Archive:
    """An archive that is to be listed with all the others."""

    path: Path


_Found = Source | _Archive | str  # what a name stands for; a bare name is left out for its suffix


def _named(item: Path, exclude: Iterable[str | Path], manifest: Callable[[Path], list[_Found]]) -> list[_Found]:
    if item.is_dir():
        return _folder(item, exclude)
    require_source(item)
    if is_archive(item):
        return [_Archive(item)]
    return manifest(item) if item.suffix.lower() in TABLE_FILES else [Source(str(item))]


def _folder(folder: Path, exclude: Iterable[str | Path]) -> list[_Found]:
    others: list[str] = []
    found: list[_Found] = [Source(name) for name in image_names(folder, exclude, others.append)]
    others.sort(key=in_order)
    return found + [_Archive(Path(name)) if is_archive(Path(name)) else name for name in others]


def _holds_no_image(files: int) -> str:
    names = f"none of its {files} files has the name of one" if files else "it is empty"
    return f"UnsupportedImageError: holds no image: {names}"


def _members(archive: Path, members: list[Member] | Failed, on_skip: Callable[[str], None]) -> list[Source]:
    if isinstance(members, Failed):
        return [Source(str(archive), refused=f"{members.error}: {members.reason}")]
    found = []
    for member in members:
        source = Source(str(archive), member.name, "", member.offset, member.size)
        path = PurePosixPath(member.name)
        if any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        if is_image_name(path.name):
            found.append(source)
        else:
            on_skip(source.name)
    return found


def _manifest(
    manifest: Path,
    images: str | os.PathLike | None,
    folders: Sequence[Path],
    image_column: str | None,
    patient_column: str | None,
) -> list[_Found]:
    root = Path(images) if images else manifest.parent
    named = manifest_rows(manifest, root, "sources", image_column, patient_column)
    if named and not any(map(os.path.exists, named)):
        raise none_found(list(named), str(manifest), images, folders)
    return [Source(name, patient=patient) for name, patient in named.items()]


@contextmanager
def as_file(source: Source, max_bytes: int) -> Iterator[str]:
    """A path that holds the source's bytes; see :func:`hdxray_fast.data.prepared.archives.unpacked`."""
    if not source.member:
        yield source.path
        return
    member = Member(source.member, source.offset, source.size)
    with unpacked(source.path, member, source.name, max_bytes) as path:
        yield path
