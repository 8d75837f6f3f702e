"""The names that columns of manifests go by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from ..errors import ConfigError
from ..terminal import visible

PATH_COLUMNS = (
    "image", "path", "Path", "file", "filename", "image_path", "Image Index", "image_file", "image_name", "file_path",
    "file_name", "filepath", "bild", "bilddatei", "bildpfad", "datei", "dateiname", "dateipfad", "pfad", "fichier",
    "archivo", "imagen", "aufnahme",
)  # fmt: skip
PATIENT_COLUMNS = (
    "patient", "patient_id", "PatientID", "Patient ID", "subject_id", "patientId", "patient-id", "pat_id", "patid",
    "subject", "patient_no", "patient_nr", "patient_number", "pat_nr", "patienten_id", "patienten_nr",
    "patientennummer", "paciente",
)  # fmt: skip

LONGEST, MOST_SHOWN = 40, 40  # letters of a name, and names, that an error shows


def find_column(columns: Iterable[str], candidates: Sequence[str]) -> str | None:
    """The first of ``candidates`` among ``columns``; failing that, the first but for case and all
    that is neither letter nor digit: ``Pat.-Nr.`` is ``pat_nr``."""
    return _first_alike(columns, candidates, (str, _caseless, _letters))


def column_called(columns: Iterable[str], name: str) -> str | None:
    """The column of a name that a user gave, or of that name in another case; its signs count."""
    return _first_alike(columns, [name], (str, _caseless))


def _first_alike(
    columns: Iterable[str], candidates: Sequence[str], forms: Sequence[Callable[[str], str]]
) -> str | None:
    columns = list(columns)
    for form in forms:
        present = {form(name): name for name in reversed(columns)}
        if found := next((form(name) for name in candidates if form(name) in present), None):
            return present[found]
    return None


def _caseless(name: object) -> str:
    return str(name).strip().casefold()


def _letters(name: object) -> str:
    return re.sub(r"[\W_]+", "", str(name)).casefold()


def named_column(
    columns: Iterable[str], given: str | None, candidates: Sequence[str], argument: str, source: object
) -> str | None:
    """The column that a user named, whatever its case; where none was, that of :func:`find_column`.

    Args:
        columns: of a table.
        given: the user's name for it, or ``None``.
        candidates: names that it may go by.
        argument: that named it, for the error.
        source: the table's file, for the error.

    Raises:
        ConfigError: the table has no column of the user's name.
    """
    if given is None:
        return find_column(columns, candidates)
    columns = list(columns)
    if (found := column_called(columns, given)) is None:
        raise ConfigError(f"{argument}: {source} has no column {given!r}; {columns_in_words(columns)}")
    return found


def columns_in_words(columns: Iterable[str], known: Iterable[str] = ()) -> str:
    """What an error says of a table's columns: their names, if this is a header.

    A file without a header has its first patient there: without a single known name nothing of it is shown.

    Args:
        columns: as the file has them.
        known: names that tell a header, beside those of images and patients.
    """
    names = [str(name) for name in columns]
    bars = len(names) == 1 and "|" in names[0]
    hint = "; its columns are separated by bars: save it with commas, semicolons or tabs" if bars else ""
    if find_column(names, (*PATH_COLUMNS, *PATIENT_COLUMNS, *known)) is None:
        count = "one cell" if len(names) == 1 else f"{len(names)} cells"
        return f"its first line, which should name the columns, has {count} and no name that is known{hint}"
    shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in map(visible, names[:MOST_SHOWN])]
    return f"its columns are {', '.join(shown)}{', ...' if len(names) > MOST_SHOWN else ''}{hint}"


def twins_in(names: Iterable[str]) -> tuple[int, int] | None:
    """The first two, from 1 on, that have one name; those without a name are passed over."""
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name and first.setdefault(name, number) != number:
            return first[name], number
    return None


def hidden_in(names: Iterable[str]) -> int | None:
    """The first of the names, from 1 on, that holds characters a terminal obeys or does not show."""
    return next((number for number, name in enumerate(names, start=1) if visible(name) != name), None)
