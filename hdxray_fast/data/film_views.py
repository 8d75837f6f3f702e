"""Films among others that are no frontal chests, which encoders and classifiers of frontal ones answer all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..terminal import first_names

NOT_FRONTAL = ("lateral", "other")  # views that are known to be none; "" is not known


def not_frontal(films: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Those of ``(name, view)`` whose view is known to be another than frontal: view by name."""
    return {name: view for name, view in films if view in NOT_FRONTAL}


def describe_view(view: str | None) -> str:
    """What is said beside one film: ``shows no frontal chest (lateral)``; nothing of a frontal or unknown view."""
    return f"shows no frontal chest ({view})" if view in NOT_FRONTAL else ""


def describe_not_frontal(
    found: Mapping[str, str], count: int, way_out: str = "leave them out, as prepare --view frontal does"
) -> str:
    """What a terminal is told of the films that :func:`not_frontal` found among ``count``; nothing of none.

    ``way_out`` says what can be done.
    """
    return f"{_counted(found, count)}: {first_names(list(found))}; {way_out}" if found else ""


def warn_of_learned(films: Iterable[tuple[str, str | None]]) -> list[str]:
    """A warning, if some of ``(name, view)`` that a training learns from and tests on show no frontal chest."""
    films = list(films)
    way_out = "they are learned from all the same; prepare leaves them out, and --prepared takes what it made"
    told = describe_not_frontal(not_frontal(films), len(films), way_out)
    return [f"warning: {told}"] if told else []


def describe_left_out(found: Mapping[str, str], count: int, listed: str) -> str:
    """What is said of films that were left out for their view, and are ``listed`` somewhere; nothing of none."""
    return f"{_counted(found, count)}: left out (--view frontal) and {listed}" if found else ""


def _counted(found: Mapping[str, str], count: int) -> str:
    views = ", ".join(f"{number} {view}" for view, number in sorted(Counter(found.values()).items()))
    show = "shows" if len(found) == 1 else "show"
    return f"{len(found)} of {count} {show} no frontal chest, by header or pixels ({views})"
