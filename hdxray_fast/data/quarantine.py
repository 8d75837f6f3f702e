"""Files that cannot be read: told apart, written down, and left out, so that none of them stops the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ..files import written_whole
from ..terminal import visible
from .csv_cells import write_table

COLUMNS = ("path", "error", "reason")
SHOWN = 3  # of the unreadable files, on a terminal


@dataclass(frozen=True)
class Quarantined:
    """One file that could not be turned into a canvas, and why.

    Attributes:
        path: the file, as the user gave it.
        error: kind of the error, such as ``ImageReadError``.
        reason: in words.
    """

    path: str
    error: str
    reason: str


def write_quarantine(path: str | Path, quarantined: Iterable[Quarantined | Sequence[str]]) -> None:
    """Write ``path,error,reason`` rows; an empty list leaves a file with the header alone.

    Paths may hold any bytes (:mod:`.csv_cells`).
    """
    rows = [astuple(bad) if isinstance(bad, Quarantined) else tuple(bad) for bad in quarantined]
    with written_whole(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, COLUMNS, rows, names=("path",))


def append_quarantine(path: str | Path, quarantined: Iterable[Sequence[str]]) -> None:
    """Add rows to a list that :func:`write_quarantine` wrote; what stands there is not written again."""
    with Path(path).open("a", newline="", encoding="utf-8") as stream:
        write_table(stream, COLUMNS, quarantined, names=("path",), goes_on=True)


def first_unreadable(files: Sequence[tuple[str, str]], count: int, listed: str | Path) -> str:
    """What a terminal is told: the first few files with their reasons, and where all of them are listed.

    Args:
        files: ``(path, reason)``, at least the first ``SHOWN``.
        count: of all files that cannot be read.
        listed: the list.
    """
    lines = [f"unreadable: {visible(path)}: {visible(reason)}" for path, reason in files[:SHOWN]]
    more = f"{count - SHOWN} more unreadable files; all of them" if count > SHOWN else "listed"
    return "\n".join([*lines, f"{more} in {listed}"])
