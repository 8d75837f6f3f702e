"""Which files are meant: folders, manifests and single files to paths, in an order that no file system decides.

This module never imports torch, so that worker processes start fast and stay small.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import ArgumentTypeError, ConfigError
from ..files import OWNER_FILE
from ..regular_files import lines, reason_of, what_else
from .columns import PATH_COLUMNS, PATIENT_COLUMNS, columns_in_words, named_column
from .csv_cells import name_of
from .missing_files import folder_meant
from .picture_folder import drawn_in
from .table_text import TABLE_FILES, open_text_table

IMAGE_SUFFIXES = frozenset(
    (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy")
)


# Files that tell a folder of ours: of a training, of a prepared set, of a cache
OURS = ({"log.jsonl", "config.json"}, {"settings.json", "sources.parquet"}, {"settings.json", "lookup.arrow"})
# Pictures in folders that commands have marked as theirs, beside those that are written down there
RESULTS = {"curves.png", "errors.png", "forest.png", "fractions.png"}


def as_paths(paths: object, argument: str = "paths", instead: str = "") -> list[str | os.PathLike]:
    """One path, or several, as a list.

    Args:
        paths: what was given for ``argument``.
        instead: what takes anything else, for the error.

    Raises:
        ArgumentTypeError: something is no path.
    """
    found = [paths] if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable) else list(paths)
    if strange := [path for path in found if not isinstance(path, str | os.PathLike)]:
        accepted = "accepted are paths of files and folders"
        raise ArgumentTypeError(f"{argument}: got {type(strange[0]).__name__}, {accepted}{instead and f'; {instead}'}")
    return found


def list_images(
    data: str | Path,
    images: str | Path | None = None,
    exclude: Iterable[str | Path] = (),
    argument: str = "data",
    image_column: str | None = None,
    on_skip: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """The radiographs that ``data`` names, in an order that does not depend on the file system.

    Args:
        data: a folder (searched recursively as by :func:`image_files`), one image file, or a CSV manifest with one of
            the columns ``image``, ``path``, ``file``, ``filename``, ``image_path``, where a name that is not UTF-8
            stands :func:`.names.escaped`.
        images: folder that relative paths of a manifest start from; the manifest's own folder by default.
        exclude: folders to leave out of a search: where results go, lest they be taken for radiographs. Folders of
            pre-training runs and of prepared data sets are left out in any case, and pictures that commands drew.
        argument: what the caller calls ``data``, for errors.
        image_column: the column of a manifest's files, where it goes by none of the usual names.
        on_skip: called with each file of a folder that is left out for its suffix.

    Returns:
        Paths, sorted for a folder and in the manifest's order otherwise, without repeats.

    Raises:
        ConfigError: ``data`` does not exist, holds no image, or the manifest has no such column.
    """
    root = Path(data)
    if root.is_dir():
        if any(os.path.realpath(root) == os.path.realpath(folder) for folder in exclude):
            raise ConfigError(
                f"{argument}: {root} is where results go, which is not read; give another folder for them"
            )
        found = image_files(root, exclude, on_skip)
    elif root.is_file() and root.suffix.lower() in TABLE_FILES:
        found = manifest_paths(root, Path(images) if images else root.parent, argument, image_column)
    elif root.is_file():
        found = [root]
    else:
        accepted = "give a folder of radiographs, one image, or a CSV manifest"
        raise ConfigError(f"{argument}: {root} {wrong_with(root, accepted)}")
    if not found:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"{argument}: {root} names no image; accepted are {kinds} and DICOM files without a suffix")
    return list(dict.fromkeys(found))


def wrong_with(path: Path, accepted: str, meant_by: Callable[[Path], str] = folder_meant) -> str:
    """Why nothing can be read there, and what may be meant (a folder, left to itself), or else what is accepted."""
    meant = "" if os.path.lexists(path) else meant_by(path)
    return f"{what_else(path) or 'does not exist'}; {meant or accepted}"


def image_files(
    root: Path, exclude: Iterable[str | Path] = (), on_skip: Callable[[Path], None] = lambda path: None
) -> list[Path]:
    """The files of a folder and of its subfolders whose names may be those of images, sorted.

    Links to folders are followed, each folder once. Hidden files and what this package wrote are left out.

    Args:
        root: the folder.
        exclude: folders to leave out.
        on_skip: called with each file that is left out for its suffix.

    Raises:
        ConfigError: a folder cannot be searched: what it holds would be missed in silence.
    """
    return [Path(name) for name in image_names(root, exclude, lambda name: on_skip(Path(name)))]


def image_names(
    root: Path, exclude: Iterable[str | Path] = (), on_skip: Callable[[str], None] = lambda name: None
) -> list[str]:
    """As :func:`image_files`, but names: a path takes several times their memory."""
    found = []
    here = len(os.path.join(os.curdir, "")) if str(root) == os.curdir else 0  # "./a" is called "a"
    for folder, name in _walk(root, {os.path.realpath(folder) for folder in exclude}):
        if name.startswith(".") or name.endswith((".contour.png", ".contour.json")):
            continue
        if is_image_name(name):
            found.append(os.path.join(folder, name)[here:])
        else:
            on_skip(os.path.join(folder, name)[here:])
    return sorted(found, key=in_order)


def in_order(name: str) -> str:
    """What names of files are sorted by, as paths are: folder by folder, and not ``a.b`` before what is in ``a``."""
    return os.path.normcase(name).replace(os.sep, "\0")


class SameNameError(ConfigError):
    """Two files have the one name that a table gives."""


class FilesByName:
    """Files below a folder, for tables that give names without folders.

    Args:
        root: searched recursively.
        suffixes: of the files, in small letters.
    """

    def __init__(self, root: Path, suffixes: Iterable[str]) -> None:
        wanted = tuple(suffixes)
        self._places: dict[str, list[Path]] = {}
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in wanted:
                self._places.setdefault(path.stem, []).append(path)

    def find(self, stem: str) -> Path | None:
        """The file of that name without its suffix; ``None`` if there is none.

        Raises:
            SameNameError: several folders have one, and any choice would be a guess.
        """
        places = self._places.get(stem, [])
        if len(places) > 1 and len({path.resolve().parent for path in places}) > 1:
            raise SameNameError(
                f"images: {places[0]} and {places[-1]} have one name, and the table does not tell which is meant; name "
                "the folder of one of them with images"
            )
        return places[-1] if places else None


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of an image or none, as DICOM files often do: ``1.2.840.17`` is a name by UID."""
    at = name.rfind(".")
    suffix = name[at:].lower() if 0 < at < len(name) - 1 else ""
    return suffix in IMAGE_SUFFIXES or not suffix or suffix[1:].isdecimal()


def _walk(root: Path, exclude: set[str]) -> Iterator[tuple[str, str]]:
    """Folder and name of each file. What a folder's own entries tell is not asked again: a million files take as many
    questions as there are folders, which counts where each goes over a network."""
    at_root = os.path.realpath(root)
    above = {at_root, *map(str, Path(at_root).parents)}
    seen: set[str] = set()
    pending = [(str(root), at_root)]  # links wait until the folders proper are through: a file keeps the name of where
    while pending:  # it lies
        here = [pending.pop(0)]
        while here:
            folder, real = here.pop()
            if real in exclude or real in seen:
                continue
            subfolders, names = _entries(folder)
            if any(marks <= names for marks in OURS):
                continue
            seen.add(real)
            for name, is_link in sorted(subfolders):
                if is_link:
                    target = os.path.realpath(os.path.join(folder, name))
                    if target not in above:  # others are loops
                        pending.append((os.path.join(folder, name), target))
            here += [
                (os.path.join(folder, name), os.path.join(real, name))
                for name, is_link in sorted(subfolders, reverse=True) if not is_link
            ]  # fmt: skip
            names -= drawn_in(Path(folder), names)
            if OWNER_FILE in names:
                names -= RESULTS
                names = {name for name in names if not name.endswith(".report.png")}
            overlays = any(name.endswith(".contour.json") for name in names)
            yield from ((folder, name) for name in names if not (overlays and name.startswith("contacts")))


def _entries(folder: str) -> tuple[list[tuple[str, bool]], set[str]]:
    """Subfolders that are not hidden, and whether each is a link; and the names of everything that is no folder."""
    subfolders, names = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link that leads nowhere one may look
                    is_folder = False
                if not is_folder:
                    names.add(entry.name)
                elif not entry.name.startswith("."):
                    subfolders.append((entry.name, entry.is_symlink()))
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be searched ({error.strerror}); give access to it, or name the others one by one"
        ) from error
    return subfolders, names


def manifest_paths(manifest: Path, root: Path, argument: str = "data", image_column: str | None = None) -> list[Path]:
    """The files that a CSV manifest names, below ``root`` where relative; errors are about ``argument``."""
    return [root / name for name, _ in _manifest_rows(manifest, argument, image_column)]


def manifest_patients(manifest: Path, argument: str = "data", image_column: str | None = None) -> dict[str, str]:
    """The patient of each file that a CSV manifest names; without a column of patients, the file as it is named."""
    return {
        str(manifest.parent / name): name.strip() if patient is None else name_of(patient.strip())
        for name, patient in _manifest_rows(manifest, argument, image_column)
    }


def manifest_rows(
    manifest: Path,
    root: Path,
    argument: str = "data",
    image_column: str | None = None,
    patient_column: str | None = None,
) -> dict[str, str]:
    """Each file that a CSV manifest names, once, and its patient: that of its last row; blank if it is not told."""
    rows = _manifest_rows(manifest, argument, image_column, patient_column)
    return {str(root / name): name_of((patient or "").strip()) for name, patient in rows}


def _manifest_rows(
    manifest: Path, argument: str, image_column: str | None, patient_column: str | None = None
) -> list[tuple[str, str | None]]:
    """Names of files, and cells of their patients; ``None`` where there is no such column."""
    try:
        with open_text_table(manifest) as (stream, separator):
            reader = csv.DictReader(lines(stream, manifest), delimiter=separator)
            columns = reader.fieldnames or ()
            column = named_column(columns, image_column, PATH_COLUMNS, "image_column", manifest)
            if column is None:
                raise ConfigError(
                    f"{argument}: {manifest} has no column of images: {columns_in_words(columns)}; call it 'image' or "
                    "'path', with commas, semicolons or tabs between columns, or name it with image_column "
                    "(--image-column)"
                )
            patient = named_column(columns, patient_column, PATIENT_COLUMNS, "patient_column", manifest)
            if twice := [name for name in (column, patient) if name and list(columns).count(name) > 1]:
                raise ConfigError(f"{argument}: {manifest} has two columns {twice[0]!r}; rename or remove one")
            rows = (row for row in reader if row[column])
            return [(name_of(row[column]), None if patient is None else row[patient] or "") for row in rows]
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{argument}: {manifest} is not a readable CSV file ({reason_of(error)})") from error
