"""Files that cannot be read: told apart, written down, and left out, so that none of them stops the others."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ..errors import ConfigError
from ..files import written_whole
from ..regular_files import lines, open_regular, reason_of
from ..terminal import visible
from .csv_cells import read_table, write_table

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
    """Write ``path,error,reason`` rows; without any there is no file, and one of an earlier call goes.

    Paths may hold any bytes (:mod:`.csv_cells`).
    """
    rows = [astuple(bad) if isinstance(bad, Quarantined) else tuple(bad) for bad in quarantined]
    if not rows:
        Path(path).unlink(missing_ok=True)
        return
    with written_whole(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, COLUMNS, rows, names=("path",))


def append_quarantine(path: str | Path, quarantined: Iterable[Sequence[str]]) -> None:
    """Add rows to a list that :func:`write_quarantine` wrote; what stands there is not written again."""
    with Path(path).open("a", newline="", encoding="utf-8") as stream:
        write_table(stream, COLUMNS, quarantined, names=("path",), goes_on=True)


def read_quarantine(path: Path, argument: str = "out") -> list[tuple[str, ...]]:
    """Rows of a list that :func:`write_quarantine` wrote and that is about to be written anew; none without one.

    ``argument`` named its place, for errors.

    Raises:
        ConfigError: it is no such list.
    """
    if not path.exists():
        return []
    try:
        with open_regular(path, "r", newline="", encoding="utf-8-sig") as stream:
            head = next(csv.reader(lines(stream, path)), list(COLUMNS))
            stream.seek(0)
            rows = [tuple(row.values()) for row in read_table(stream, names=("path",))]
        if tuple(head) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
            raise csv.Error(f"its columns are not {', '.join(COLUMNS)}")
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigError(
            f"{argument}: {path} would be written over, and lists no unreadable files ({reason_of(error)}); "
            "choose another name, or move it away"
        ) from error
    return rows


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
