"""Images of a prepared data set under the names that a run has for them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from ..quarantine import Quarantined
from .index import read_filtered, read_set_aside
from .reading import PreparedSet, PreparedSubset, is_prepared
from .sources import JOIN


def open_prepared(folder: str | os.PathLike, **settings: int | str) -> PreparedSet:
    """A prepared data set whose images are checked as they are read, if it was prepared as a run has it.

    Args:
        folder: of the data set.
        **settings: the run's ``img_size`` and, where it matters, ``contour``.

    Raises:
        ConfigError: it is none, its parts are not merged, or it was prepared otherwise.
    """
    images = PreparedSet(folder, verify=True)
    require_recipe(images.recipe, folder, **settings)
    return images


def require_recipe(recipe: dict, place: str | os.PathLike, **settings: int | str) -> None:
    """Raise a ConfigError if the data set at ``place`` was prepared otherwise than a run's ``settings`` say."""
    for name, wanted in settings.items():
        found = recipe["size" if name == "img_size" else name]
        if wanted != found:
            raise ConfigError(
                f"{name}: the data set in {place} was prepared with {found}, and not with {wanted}; give "
                f"{name}={found}, or prepare it anew"
            )


def require_for_model(images: PreparedSet, img_size: int, contour: str, resizes: bool = False) -> None:
    """Raise a ConfigError if a data set was prepared otherwise than a model reads files; ``resizes``: the call has an
    ``img_size`` of its own, which would mend it.
    """
    for name, wanted, found in (
        ("img_size", img_size, images.size),
        ("contour", contour, images.recipe["contour"]),
    ):
        if wanted != found:
            other = f"give img_size={found}, or " if resizes and name == "img_size" else ""
            raise ConfigError(
                f"{images.folder}: was prepared with {name}={found}, and the model reads files with {wanted}; {other}"
                f"prepare it anew with {name}={wanted}, or give the files"
            )


def find_prepared(paths: Sequence[str], images: PreparedSet, listed: Sequence[str] = ()) -> PreparedSubset:
    """The images of ``paths`` that a prepared data set holds, in their order and called as they are.

    A path and a source are the same if they name one place on the disk; failing that, if their last names are equal and
    nothing else is called so: no other path, and no other source, be it one that the data set set aside (data sets that
    were moved, or prepared from archives). No image is ever that of two paths.

    Args:
        paths: images wanted.
        images: the data set.
        listed: all paths of the manifest, where ``paths`` are some of them.

    Raises:
        ConfigError: two of the paths name one file.
    """
    taken: dict[int, str] = {}
    for path, row in _matches(paths, images.sources(), images, listed).items():
        if taken.setdefault(row, path) != path:
            raise ConfigError(f"data: {taken[row]} and {path} are one file; list each image once")
    return images.subset(list(taken), list(taken.values()))


def find_filtered(paths: Sequence[str], images: PreparedSet, listed: Sequence[str] = ()) -> dict[str, str]:
    """Those of ``paths`` that the data set left out on purpose, for their view or part of the body, and the reason;
    they are known, among all that are ``listed``, as :func:`find_prepared` says."""
    if not (reasons := read_filtered(images.folder)):
        return {}
    sources = list(reasons)
    return {path: reasons[sources[row]] for path, row in _matches(paths, sources, images, listed).items()}


def _matches(
    paths: Sequence[str], sources: Sequence[str], images: PreparedSet, listed: Sequence[str] = ()
) -> dict[str, int]:
    """The rows of ``sources``, of a data set, that ``paths`` are, as :func:`find_prepared` knows them."""
    place = {os.path.abspath(source): row for row, source in enumerate(sources)}
    called = {_last_name(source): row for row, source in enumerate(sources)}
    holders = Counter(map(_last_name, {*images.sources(), *read_set_aside(images.folder)}))
    wanted = Counter(map(_last_name, {os.path.abspath(path) for path in (*paths, *listed)}))
    found: dict[str, int] = {}
    for path in paths:
        name = _last_name(path)
        row = place.get(os.path.abspath(path), -1)
        if row < 0 and holders[name] == wanted[name] == 1:
            row = called.get(name, -1)
            row = -1 if row >= 0 and _differ(path, sources[row]) else row
        if row >= 0:
            found[path] = row
    return found


def find_some(
    paths: Sequence[str], images: PreparedSet, source: str, listed: Sequence[str] = ()
) -> tuple[PreparedSubset, list[Quarantined]]:
    """:func:`find_prepared`, and those that are not there.

    Args:
        paths, images, listed: as there.
        source: that names the paths, for errors.

    Raises:
        ConfigError: none of them is there; or as :func:`find_prepared`.
    """
    found = find_prepared(paths, images, listed)
    if not len(found):
        raise ConfigError(
            f"prepared: {images.folder} holds none of the images of {source}; they are known by their paths, or by "
            "names that no others have"
        )
    there, reason = set(found.sources()), f"not in the prepared data set {images.folder}"
    return found, [Quarantined(path, "NotPrepared", reason) for path in paths if path not in there]


def _differ(path: str, source: str) -> bool:
    """Whether two files are both there and not equally long: then neither is the other, moved."""
    try:
        return os.path.getsize(path) != os.path.getsize(source)
    except OSError:
        return False


def _last_name(path: str) -> str:
    return re.split(rf"[/\\]|{JOIN}", path)[-1]


def refuse_prepared(data: str | os.PathLike, what: str) -> None:
    """Raise a ConfigError if the folder ``data``, which is to hold ``what``, is a prepared data set."""
    if is_prepared(data):
        raise ConfigError(
            f"data: {Path(data)} is a prepared data set, which holds no {what}; prepared: name it there, and the "
            f"table of {what} here"
        )
