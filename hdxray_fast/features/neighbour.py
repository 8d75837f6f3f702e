"""A radiograph that is like another, and all of those."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Neighbour:
    """A radiograph of the table.

    Attributes:
        path: as the table has it.
        distance: 1 less the cosine of the two features, each less the mean of the table: 0 to 2.
        patient: hash of the patient; blank where the table has none.
        same_patient: it is the query's patient; ``None`` where that is not known.
        same_pixels: its stored pixels are the query's.
        view: ``"frontal"``, ``"lateral"``, ``"other"``, or blank where the table does not tell.
        labels: classes that hold; ``None`` where the labels do not have it, or there are none.
    """

    path: str
    distance: float
    patient: str = ""
    same_patient: bool | None = None
    same_pixels: bool = False
    view: str = ""
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Similar:
    """What :func:`.find_similar` found.

    Attributes:
        query: the file asked for, as the table has it if it does.
        neighbours: nearest first; without the query's own row.
        rows: of the table.
        patients: the table tells them apart.
        picture: the contact sheet; ``None`` if none was asked for.
        missing: neighbours whose file was not found or cannot be read, on the sheet an empty tile.
        view, labels: of the query, as of a neighbour.
        labelled: labels were given.
    """

    query: str
    neighbours: list[Neighbour]
    rows: int
    patients: bool
    picture: Path | None = None
    missing: list[str] = field(default_factory=list)
    view: str = ""
    labels: tuple[str, ...] | None = None
    labelled: bool = False
