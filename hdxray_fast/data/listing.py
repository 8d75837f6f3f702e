"""Which files are meant: folders, manifests and single files to paths, in an order that no file system decides.

This module never imports torch, so that worker processes start fast and stay small.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from ..errors import ConfigError
from ..regular_files import lines, open_regular, reason_of, what_else
from .columns import PATH_COLUMNS, PATIENT_COLUMNS, columns_in_words, find_column
from .csv_cells import name_of

IMAGE_SUFFIXES = frozenset(
    (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy")
)


# Files that tell a folder of ours: of a training, of a prepared set, of a cache
OURS = ({"log.jsonl", "config.json"}, {"settings.json", "sources.parquet"}, {"settings.json", "lookup.arrow"})


def list_images(
    data: str | Path, images: str | Path | None = None, exclude: Iterable[str | Path] = (), argument: str = "data"
) -> list[Path]:
    """The radiographs that ``data`` names, in an order that does not depend on the file system.

    Args:
        data: a folder (searched recursively as by :func:`image_files`), one image file, or a CSV manifest with one of
            the columns ``image``, ``path``, ``file``, ``filename``, ``image_path``, where a name that is not UTF-8
            stands :func:`.names.escaped`.
        images: folder that relative paths of a manifest start from; the manifest's own folder by default.
        exclude: folders to leave out of a search: where results go, lest they be taken for radiographs. Folders of
            pre-training runs, of prepared data sets and of contour overlays are left out in any case.
        argument: what the caller calls ``data``, for errors.

    Returns:
        Paths, sorted for a folder and in the manifest's order otherwise, without repeats.

    Raises:
        ConfigError: ``data`` does not exist, holds no image, or the manifest has no such column.
    """
    root = Path(data)
    if root.is_dir():
        found = image_files(root, exclude)
    elif root.is_file() and root.suffix.lower() == ".csv":
        found = manifest_paths(root, Path(images) if images else root.parent, argument)
    elif root.is_file():
        found = [root]
    else:
        raise ConfigError(
            f"{argument}: {root} {what_else(root) or 'does not exist'}; give a folder of radiographs, one image, or a "
            "CSV manifest"
        )
    if not found:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"{argument}: {root} names no image; accepted are {kinds} and DICOM files without a suffix")
    return list(dict.fromkeys(found))


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
    found = []
    for path in _walk(root, {Path(folder).resolve() for folder in exclude}):
        if path.name.startswith(".") or path.name.endswith((".contour.png", ".contour.json")):
            continue
        if is_image_name(path.name):
            found.append(path)
        else:
            on_skip(path)
    return sorted(found)


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
    suffix = PurePath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or not suffix or suffix[1:].isdecimal()


def _refuse(error: OSError) -> None:
    raise ConfigError(
        f"{error.filename}: cannot be searched ({error.strerror}); give access to it, or name the others one by one"
    ) from error


def _walk(root: Path, exclude: set[Path]) -> Iterable[Path]:
    above = {root.resolve(), *root.resolve().parents}
    seen: set[Path] = set()
    pending = [root]  # links wait until the folders proper are through, so that a file keeps the name where it lies
    while pending:
        for folder, subfolders, names in os.walk(pending.pop(0), onerror=_refuse):
            here = Path(folder)
            real = here.resolve()
            if real in exclude or real in seen or any(marks <= set(names) for marks in OURS):
                subfolders.clear()
                continue
            seen.add(real)
            overlays = any(name.endswith(".contour.json") for name in names)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            links = (here / name for name in subfolders if (here / name).is_symlink())
            pending += (link for link in links if link.resolve() not in above)  # others are loops
            yield from (here / name for name in names if not (overlays and name.startswith("contacts")))


def manifest_paths(manifest: Path, root: Path, argument: str = "data") -> list[Path]:
    """The files that a CSV manifest names, below ``root`` where relative; errors are about ``argument``."""
    return [path for path, _ in _manifest_rows(manifest, root, argument)]


def manifest_patients(manifest: Path, argument: str = "data") -> dict[str, str]:
    """The patient of each file that a CSV manifest names; without a column of patients, the file as it is named."""
    return {str(path): patient for path, patient in _manifest_rows(manifest, manifest.parent, argument)}


def _manifest_rows(manifest: Path, root: Path, argument: str) -> list[tuple[Path, str]]:
    try:
        with open_regular(manifest, "r", newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(lines(stream, manifest))
            column = find_column(reader.fieldnames or (), PATH_COLUMNS)
            if column is None:
                raise ConfigError(
                    f"{argument}: {manifest} has no column of images: {columns_in_words(reader.fieldnames or ())}; one "
                    f"of {list(PATH_COLUMNS)} is needed, and commas between columns"
                )
            patient = find_column(reader.fieldnames or (), PATIENT_COLUMNS) or column
            pairs = ((row[column], (row[patient] or "").strip()) for row in reader if row[column])
            return [(root / name_of(name), name_of(person)) for name, person in pairs]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{argument}: {manifest} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{argument}: {manifest} is not a readable CSV file ({reason_of(error)})") from error
