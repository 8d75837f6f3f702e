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


def describe_not_frontal(found: Mapping[str, str], count: int) -> str:
    """What a terminal is told of the films that :func:`not_frontal` found among ``count``; nothing of none."""
    if not found:
        return ""
    views = ", ".join(f"{number} {view}" for view, number in sorted(Counter(found.values()).items()))
    show = "shows" if len(found) == 1 else "show"
    words = f"{len(found)} of {count} {show} no frontal chest, by header or pixels ({views})"
    return f"{words}: {first_names(list(found))}; leave them out, as prepare --view frontal does"
