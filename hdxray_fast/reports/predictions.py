"""Generated reports as files: what ``report generate`` writes and ``report evaluate`` reads."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..data.columns import find_column
from ..errors import ConfigError
from ..files import written_whole
from ..names import ESCAPES, escaped, unescaped
from .csv_rows import read_rows
from .layouts import ID_COLUMNS
from .studies import check_language

GENERATED_COLUMNS = ("generated", "prediction", "generated_report", "hypothesis")
REFERENCE_COLUMNS = ("reference", "report", "ground_truth")


@dataclass(frozen=True)
class Prediction:
    """A generated report.

    Attributes:
        id: of the study.
        generated: the text; may be empty.
        reference: the raw report, ``None`` if the file has none.
        language: ``"en"`` or ``"zh"``, ``""`` if the file does not say.
    """

    id: str
    generated: str
    reference: str | None = None
    language: str = ""


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write a CSV, or JSON if ``path`` ends so; the file appears whole or not at all.

    Ids, which may be paths, stand there :func:`.names.escaped`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(prediction), "id": escaped(prediction.id)} for prediction in predictions]
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".json":
            temporary.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "utf-8", ESCAPES)
            return
        with open(temporary, "w", newline="", encoding="utf-8", errors=ESCAPES) as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Prediction)])
            writer.writeheader()
            writer.writerows(rows)


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
        rows = [(f"row {number}", row) for number, row in enumerate(read_rows(path, "predictions"), start=2)]
    else:
        raise ConfigError(f"predictions: {path} is none of .csv, .json and .jsonl")
    if not rows:
        raise ConfigError(f"predictions: {path} is empty")
    made = [_prediction(row, f"predictions: {path}, {where}") for where, row in rows]
    twice = [name for name, count in Counter(prediction.id for prediction in made).items() if count > 1]
    if twice:
        raise ConfigError(f"predictions: {path}: {twice[0]!r} is there more than once ({len(twice)} such ids)")
    return made


def _read_json(path: Path, lines: bool) -> list[tuple[str, object]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if lines:
            numbered = enumerate(text.splitlines(), start=1)
            return [(f"line {number}", json.loads(line)) for number, line in numbered if line.strip()]
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"predictions: {path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"predictions: {path} is not a readable JSON file ({error})") from error
    if isinstance(content, dict):
        return [(f"id {name!r}", {"id": name, "generated": text}) for name, text in content.items()]
    if not isinstance(content, list):
        raise ConfigError(f"predictions: {path} holds a {type(content).__name__}, accepted are a list and an object")
    return [(f"entry {number}", row) for number, row in enumerate(content)]


def _prediction(row: object, where: str) -> Prediction:
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no object with id and generated")
    name, text = find_column(row, ID_COLUMNS), find_column(row, GENERATED_COLUMNS)
    reference = find_column(row, REFERENCE_COLUMNS)
    if name is None or text is None:
        raise ConfigError(
            f"{where} has {list(row)}; needed are 'id' and 'generated', and 'reference' if there is no data"
        )
    for key in filter(None, (text, reference)):
        if row[key] is not None and not isinstance(row[key], str):
            raise ConfigError(f"{where}: {key} is a {type(row[key]).__name__}, accepted is text")
    if row[name] in (None, ""):
        raise ConfigError(f"{where} has no id")
    language = row.get("language") or ""
    return Prediction(
        id=unescaped(str(row[name])),
        generated=row[text] or "",
        reference=None if reference is None else row[reference],
        language=check_language(language, f"{where}: language") if language else "",
    )
