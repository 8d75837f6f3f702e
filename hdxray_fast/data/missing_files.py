"""A table none of whose files is found: which folder was looked in, and which one may be meant."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ConfigError
from ..regular_files import what_else
from ..terminal import visible

UP = 3  # folders above the one that was looked in where the first file is looked for too
MOST_BELOW = 1000  # entries of it that are tried


def none_found(
    missing: Sequence[str], source: str, images: str | os.PathLike | None, also: Iterable[Path] = ()
) -> ConfigError:
    """The refusal of a table.

    Args:
        missing: paths, all that the table names.
        source: of the table.
        images: folder that its names were looked for in (``--images``); ``None`` for that of the table itself.
        also: other folders that were named, in which the first file is looked for too.
    """
    folder = Path(images) if images else Path(source).parent if Path(source).is_file() else Path(source)
    if images and not folder.is_dir():
        wrong = "is a file, not a folder" if folder.is_file() else what_else(folder) or "does not exist"
        hint = folder_meant(folder) or "it is the folder that names begin from"
        return ConfigError(f"images: {folder} {wrong}; {hint}")
    found = _meant(folder, missing[0], also)
    hint = f"is {found} meant?" if found else "images (--images) names the folder that their names begin from"
    if suffix := suffix_lacking(missing[0]):
        hint = f"there is one that ends in {visible(suffix)}: names in the table need their endings"
    if os.sep == "/" and "\\" in missing[0]:
        hint = "its names have the backslashes of Windows, write / in their place"
    if images:
        return ConfigError(
            f"images: none of the {len(missing)} images of {source} exists in {folder}, the first is looked for as "
            f"{missing[0]}; {hint}"
        )
    hint = f"is --images {shlex.quote(str(found))} meant?" if found else hint
    return ConfigError(f"{source}: none of the {len(missing)} images exists, the first is {missing[0]}; {hint}")


def folder_meant(folder: Path) -> str:
    """Asks for a folder of nearly this name, beside it; blank if there is none."""
    return name_meant(folder, folders=True)


def name_meant(path: Path, folders: bool = False) -> str:
    """Asks for a file or folder of nearly this name, beside it; blank if there is none."""
    beside = [entry.name for entry in _entries(path.parent) if not folders or os.path.isdir(entry.path)]
    near = difflib.get_close_matches(path.name, beside, 1)
    return f"is {path.parent / near[0]} meant?" if near else ""


def suffix_lacking(path: str) -> str:
    """The suffix of the only file that is called so but for its suffix; blank if there is none, or the name has one."""
    place = Path(path)
    if place.suffix or not place.name:
        return ""
    names = [Path(entry.name) for entry in _entries(place.parent)]
    found = [name.suffix for name in names if name.stem == place.name]
    return found[0] if len(found) == 1 else ""


def _meant(folder: Path, first: str, also: Iterable[Path]) -> Path | None:
    """One of ``also``, or a folder above or right below, in which the first file is found."""
    if not Path(first).is_relative_to(folder):
        return None
    name = Path(first).relative_to(folder)
    above = [Path(os.path.abspath(folder))]
    above += list(above[0].parents)[:UP]
    below = [Path(entry.path) for entry in _entries(folder) if os.path.isdir(entry.path)]
    return next((place for place in (*also, *above[1:], *sorted(below)) if (place / name).is_file()), None)


def _entries(folder: Path) -> list[os.DirEntry]:
    """At most ``MOST_BELOW`` entries of a folder; none of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry, _ in zip(entries, range(MOST_BELOW), strict=False)]
    except OSError:
        return []
