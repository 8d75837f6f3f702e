"""Models to be compared, by name, and the runs of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files import make_folder, refuse_foreign
from .comparison_folder import FILES, MAKER

Place = str | os.PathLike


def name_runs(models: Mapping[str, Place | Sequence[Place]] | Sequence[Place]) -> dict[str, list[str]]:
    """The files or folders of each model's runs.

    Args:
        models: names with a path or, for several runs of a model that differ in their seed, paths; or a list of
            ``"name=path,path"``, ``"path,path"`` and ``"path"``, which are named by the last part of the first path.

    Raises:
        ConfigError: fewer than two models, one without a run, a name or a run twice.
    """
    if isinstance(models, Mapping):
        pairs = [
            (str(name), [str(runs)] if isinstance(runs, (str, os.PathLike)) else [str(run) for run in runs])
            for name, runs in models.items()
        ]
    else:
        pairs = [_of_word(str(word)) for word in ([models] if isinstance(models, (str, os.PathLike)) else models)]
    if len(pairs) < 2:
        raise ConfigError(f"models: got {len(pairs)}, needed are two or more to compare")
    found: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for name, runs in pairs:
        if not name or not runs or not all(runs):
            raise ConfigError(f"models: {name or 'a model'} has no run; write name=path, or name=path,path for several")
        if name in found:
            raise ConfigError(f"models: two are named {name!r}; write name=path to tell them apart")
        for run in runs:
            if (other := seen.setdefault(os.path.realpath(run), name)) != name or runs.count(run) > 1:
                raise ConfigError(f"models: {run} is given twice ({other}, {name}); give each run once")
        found[name] = runs
    return found


def begin_comparison(
    models: Mapping[str, Place | Sequence[Place]] | Sequence[Place], out: Place | None, bootstraps: int
) -> dict[str, list[str]]:
    """As :func:`name_runs`; what cannot be computed or written is refused before anything is read."""
    if bootstraps < 1:
        raise ConfigError(f"bootstraps: got {bootstraps}, accepted are whole numbers from 1 on")
    named = name_runs(models)
    if out is not None:
        refuse_foreign(Path(out), MAKER, FILES)
        make_folder(Path(out))
    return named


def _of_word(word: str) -> tuple[str, list[str]]:
    if Path(word).exists():
        return _usual_name(word), [word]
    name, equals, listed = word.partition("=")
    runs = (listed if equals else word).split(",")
    return (name if equals else _usual_name(runs[0])), runs


def _usual_name(path: str) -> str:
    place = Path(os.path.abspath(path))
    return place.stem if place.suffix and not place.is_dir() else place.name
