"""Generated reports as files: what ``report generate`` writes and ``report evaluate`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..data.columns import columns_in_words, find_column
from ..data.csv_cells import unquoted, write_table
from ..errors import ConfigError
from ..files import written_whole
from ..names import ESCAPES, escaped, unescaped
from ..regular_files import parse_json, read_text, reason_of
from .csv_rows import read_rows
from .layouts import ID_COLUMNS
from .studies import language_at

GENERATED_COLUMNS = ("generated", "prediction", "generated_report", "hypothesis")
REFERENCE_COLUMNS = ("reference", "report", "ground_truth")
PATHS = ("id", "image")  # which may hold any bytes
WRITTEN = ("id", "generated", "reference", "language")
IF_KNOWN = ("view", "image")  # columns where any is known


@dataclass(frozen=True)
class Prediction:
    """A generated report.

    Attributes:
        id: of the study.
        generated: the text; may be empty.
        reference: the raw report, ``None`` if the file has none.
        language: ``"en"`` or ``"zh"``, ``""`` if the file does not say.
        view: of the radiographs that were read, joined by ``|``; ``""`` if nothing says; written, not read.
        image: names of the radiographs' files, joined likewise; written, not read.
        place: where it stands in its file, for messages, which hold no id; not written.
    """

    id: str
    generated: str
    reference: str | None = None
    language: str = ""
    view: str = field(default="", compare=False)
    image: str = field(default="", compare=False)
    place: str = field(default="", compare=False)


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write a CSV, or JSON if ``path`` ends so; the file appears whole or not at all.

    Ids, which may be paths, and names stand there :func:`.names.escaped`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions = list(predictions)
    columns = (*WRITTEN, *(name for name in IF_KNOWN if any(getattr(one, name) for one in predictions)))
    rows = [{name: getattr(prediction, name) for name in columns} for prediction in predictions]
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".json":
            rows = [{**row, **{name: escaped(row[name]) for name in PATHS if name in row}} for row in rows]
            temporary.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "utf-8", ESCAPES)
            return
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            write_table(stream, columns, rows, names=PATHS)


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read generated reports.

    Args:
        path: a CSV with the columns ``id``, ``generated`` and optionally ``reference`` and ``language``; a JSON list of
            objects with such keys, or one object from id to text; or JSON lines.

    Raises:
        ConfigError: the file cannot be read, lacks what is needed, or has an id twice; the message names the place.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        rows = _read_json(path, lines=suffix == ".jsonl")
    elif suffix == ".csv":
        rows = [
            (f"row {row.number}", {unquoted(name): unquoted(cell) for name, cell in row.items()})
            for row in read_rows(path, "predictions")
        ]
    else:
        raise ConfigError(f"predictions: {path} is none of .csv, .json and .jsonl")
    if not rows:
        raise ConfigError(f"predictions: {path} is empty")
    made = [_prediction(row, f"predictions: {path}", where) for where, row in rows]
    first: dict[str, Prediction] = {}
    if twice := [prediction for prediction in made if first.setdefault(prediction.id, prediction) is not prediction]:
        both = f"{first[twice[0].id].place} and {twice[0].place}"
        raise ConfigError(f"predictions: {path}: {both} have one id, which is there more than once")
    return made


def _read_json(path: Path, lines: bool) -> list[tuple[str, object]]:
    try:
        text = read_text(path, None, encoding="utf-8-sig")
        if lines:
            numbered = enumerate(text.splitlines(), start=1)
            return [(f"line {number}", parse_json(line)) for number, line in numbered if line.strip()]
        content = parse_json(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"predictions: {path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"predictions: {path} is not a readable JSON file ({reason_of(error)})") from None
    if isinstance(content, dict):
        pairs = enumerate(content.items())
        return [(f"entry {number}", {"id": name, "generated": text}) for number, (name, text) in pairs]
    if not isinstance(content, list):
        raise ConfigError(f"predictions: {path} holds a {type(content).__name__}, accepted are a list and an object")
    return [(f"entry {number}", row) for number, row in enumerate(content)]


def _prediction(row: object, source: str, place: str) -> Prediction:
    where = f"{source}, {place}"
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no object with id and generated")
    name, text = find_column(row, ID_COLUMNS), find_column(row, GENERATED_COLUMNS)
    reference = find_column(row, REFERENCE_COLUMNS)
    if name is None or text is None:
        columns = (*ID_COLUMNS, *GENERATED_COLUMNS, *REFERENCE_COLUMNS)
        there = columns_in_words(row, columns)
        if not place.startswith("row") and find_column(row, columns) is None:
            there = "the object has no key that is known"
        raise ConfigError(f"{where}: {there}; needed are 'id' and 'generated', and 'reference' if there is no data")
    for key in filter(None, (text, reference)):
        if row[key] is not None and not isinstance(row[key], str):
            raise ConfigError(f"{where}: {key} is a {type(row[key]).__name__}, accepted is text")
    if row[name] is None or not (own := str(row[name]).strip()):  # as ids of studies are read
        raise ConfigError(f"{where} has no id")
    language = row.get("language") or ""
    return Prediction(
        id=unescaped(own),
        generated=row[text] or "",
        reference=None if reference is None else row[reference],
        language=language_at(language, where) if language else "",
        place=place,
    )
