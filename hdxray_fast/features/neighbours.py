"""The radiographs of a table of features that are most like one: ``hdxray-fast similar``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.csv_cells import write_table
from ..data.radiographs import read_small
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..errors import ArgumentError, ConfigError
from ..files import claim_names, written_whole
from ..images.overlay import ACCEPTED, FLAGGED, TILE, contact_sheet, plain_tile
from ..images.panels import write_image
from ..models.layers import check_count
from ..names import unescaped
from ..parquet_files import CheckedParquet, open_parquet
from ..regular_files import parse_json, reason_of, what_else
from ..weights.create import encoder_of_size
from ..weights.fingerprint import settings_of
from ..weights.shipped import PRETRAINED
from .embedding import Embedder
from .embedding_files import USUAL, fingerprint
from .feature_table import width_of
from .row_columns import SETTINGS_KEY, NoFeaturesError, as_of_now, require_columns, require_values, row_schema
from .stamps import Stamp

if TYPE_CHECKING:
    from ..models.encoder import Encoder

PATIENT = "patient"  # a column of hashes, as the index of a prepared set has one
ON_DISK = "features.parquet"  # as embed calls a table where it is told a folder
HASH_DIGITS = 8  # of a patient's hash, on the sheet
ROWS = 1024  # of features, in memory at once


@dataclass(frozen=True)
class Neighbour:
    """A radiograph of the table.

    Attributes:
        path: as the table has it.
        distance: 1 less the cosine of the two features, each less the mean of the table: 0 to 2.
        patient: hash of the patient; blank where the table has none.
        same_patient: it is the query's patient; ``None`` where that is not known.
        same_pixels: its stored pixels are the query's.
    """

    path: str
    distance: float
    patient: str = ""
    same_patient: bool | None = None
    same_pixels: bool = False


@dataclass(frozen=True)
class Similar:
    """What :func:`find_similar` found.

    Attributes:
        query: the file asked for, as the table has it if it does.
        neighbours: nearest first; without the query's own row.
        rows: of the table.
        patients: the table tells them apart.
        picture: the contact sheet; ``None`` if none was asked for.
        missing: neighbours whose file was not found or cannot be read, on the sheet an empty tile.
    """

    query: str
    neighbours: list[Neighbour]
    rows: int
    patients: bool
    picture: Path | None = None
    missing: list[str] = field(default_factory=list)


def find_similar(
    query: str | os.PathLike,
    table: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    weights: str | os.PathLike | Encoder | None = None,
    out: str | os.PathLike | None = None,
    most: int = 11,
    device: str | None = None,
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> Similar:
    """Find the radiographs whose features are nearest to one's.

    Args:
        query: a radiograph: one of the table, as it stands there, or any other, which the encoder looks at.
        table: ``features.parquet`` of :func:`.embed_files`; a column ``patient`` of hashes is read too. Features are
            read a thousand at a time.
        images: folder in which the table's radiographs are now; left out, they are where the table says.
        weights: those that the table was made with, for a query that it does not hold; looked at as it says there. Left
            out, the encoder that comes with the package, if the table is of it.
        out: folder for ``similar.png``, a contact sheet, and ``similar.csv``; left out, nothing is written.
        most: neighbours.
        device: where the encoder runs; left out, a GPU if there is one.
        workers: processes that read files; 0 reads in this process, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.

    Raises:
        ArgumentError: an argument is not as described, or the query cannot be read.
        ConfigError: the table is none, was made with other weights, or does not hold the query as it is now; or ``out``
            holds files of these names that ``similar`` did not make.
    """
    check_count("most", most)
    check_caps(timeout, max_memory)
    if out is not None:
        claim_names(Path(out), "similar", ("similar.png", "similar.csv"))
    with _opened(table) as file:
        width = width_of(file.schema)
        require_columns(file, row_schema({}, width, False))
        settings = parse_json((file.schema.metadata or {}).get(SETTINGS_KEY, b"{}"))
        columns = [name for name in ("size", "mtime_ns", "provenance_id", PATIENT) if name in file.schema.names]
        facts = file.read(["path", *columns])
        require_values(facts)
        facts = facts.to_pydict()
        paths = [unescaped(path) for path in facts["path"]]
    prints = facts.get("provenance_id") or [""] * len(paths)
    row = _row_of(str(query), paths, facts)
    if row is None:
        if weights is None and not _is_shipped(settings):
            held = "holds it as it was before it was written anew" if str(query) in paths else "does not hold it"
            raise ConfigError(
                f"query: {query}: the table {table} {held}; give weights (those of the table), or embed it first"
            )
        weights = PRETRAINED if weights is None else weights
        feature, pixels = _embedded(str(query), table, settings, weights, device)
        if len(feature) != width:
            raise ConfigError(f"{table}: has features of {width} numbers, and the weights give {len(feature)}")
    else:
        feature, pixels = None, prints[row]
    with _opened(table) as file:
        distances = _distances(file, width, len(paths), feature, row)
    if row is not None:
        distances[row] = np.inf
    order = [int(place) for place in np.argsort(distances, kind="stable") if np.isfinite(distances[place])][:most]
    patients = [str(patient or "") for patient in facts.get(PATIENT, [""] * len(paths))]
    own = patients[row] if row is not None else ""
    neighbours = [
        Neighbour(
            paths[place], float(distances[place]), patients[place],
            patients[place] == own if own and patients[place] else None, bool(pixels) and prints[place] == pixels,
        )
        for place in order
    ]  # fmt: skip
    found = Similar(str(query), neighbours, len(paths), any(patients))
    if out is None:
        return found
    return _draw(found, images, Path(out), workers, timeout, max_memory)


@contextmanager
def _opened(table: str | os.PathLike) -> Iterator[CheckedParquet]:
    """The table, to be read within; what goes wrong there names it."""
    import pyarrow

    path = Path(table)
    if not path.is_file():
        wrong = what_else(path) or "does not exist"
        raise ConfigError(f"{path}: {wrong}; name the table that embed wrote, such as {ON_DISK}")
    if path.suffix.lower() == ".csv":
        beside = path.with_suffix(".parquet")
        name = f"{beside}, which embed wrote with it" if beside.is_file() else f"one that embed --out {ON_DISK} writes"
        raise ConfigError(f"{path}: is a CSV, which does not say how its features were made; name {name}")
    try:
        with open_parquet(path) as file:
            yield file
    except NoFeaturesError as error:
        raise ConfigError(f"{table}: is no table of features ({error})") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{table}: cannot be read as Parquet ({reason_of(error)})") from error


def _row_of(query: str, paths: Sequence[str], facts: dict) -> int | None:
    """The row of a query that has not changed since; ``None`` if there is none."""
    row = paths.index(query) if query in paths else None
    if row is None:
        return None
    now = Stamp.of(query)  # a file that is gone keeps its row
    size, written = (facts.get(name, [None] * len(paths))[row] for name in ("size", "mtime_ns"))
    return row if now is None or written is None or Stamp(size, written).is_of(query, now) else None


def _is_shipped(settings: object) -> bool:
    """Whether a table is of the encoder that comes with the package."""
    try:
        return settings["weights"] == fingerprint(encoder_of_size(PRETRAINED, _side_of(settings)))
    except (KeyError, TypeError, IndexError, ArgumentError):
        return False


def _side_of(settings: object) -> int:
    side = settings["encoder"]["img_size"]
    return side[0] if isinstance(side, list) else side


def _embedded(query: str, table, settings: object, weights, device) -> tuple[np.ndarray, str]:
    """Feature and pixel hash of a file that the table does not hold, made as its rows were."""
    try:
        size, known = _side_of(settings), settings["weights"]
        made = {name: settings[name] for name in ("pool", "keep")}
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{table}: does not say with which weights it was made; embed the images anew") from error
    encoder = encoder_of_size(weights, size)
    now = {name: value for name, value in settings_of(encoder.config).items() if (name, value) != USUAL}
    now = json.loads(json.dumps({**now, "weights": fingerprint(encoder)}))
    known = {**settings["encoder"], "weights": known}
    other = [name for name in now.keys() | known.keys() if name not in made and now.get(name) != known.get(name)]
    if other:
        raise ConfigError(
            f"weights: are not those that {table} was made with (other: {', '.join(sorted(other))}), and features of "
            "two encoders do not compare; give those, or embed the images with these"
        )
    job = Embedder(encoder, device=device, precision=settings.get("precision", "fp32"), **made)
    (found,) = job.batches([(query, query)], batch_size=1)
    if found.quarantined:
        raise ArgumentError(f"query: {query} cannot be read: {found.quarantined[0].reason}")
    return found.features[0], found.provenance_ids[0]


def _distances(file: CheckedParquet, width: int, rows: int, feature: np.ndarray | None, row: int | None) -> np.ndarray:
    """Of each row's feature to ``feature``, or to that of ``row``: ``[rows] float64``."""
    import pyarrow

    alone = pyarrow.schema([row_schema({}, width, False).field("feature")])

    def batches():
        for batch in file.batches(ROWS, range(file.metadata.num_row_groups), ["feature"]):
            column = as_of_now(batch, alone, 0).column("feature").combine_chunks()
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

    total, first = np.zeros(width), 0
    for values in batches():
        total += values.sum(0, dtype=np.float64)
        if row is not None and first <= row < first + len(values):
            feature = values[row - first].copy()
        first += len(values)
    mean = total / max(1, rows)
    wanted = feature - mean
    wanted /= max(float(np.linalg.norm(wanted)), 1e-12)
    parts = []
    for values in batches():
        centred = values - mean
        lengths = np.maximum(np.linalg.norm(centred, axis=1), 1e-12)
        parts.append(1 - centred @ wanted / lengths)
    return np.concatenate([np.zeros(0), *parts])


def place_of(path: str, images: Path | None) -> str | None:
    """Where a radiograph of the table is: where it says, or under ``images`` by as much of its path as is there."""
    if images is None:
        return path if os.path.isfile(path) else None
    parts = [part for part in Path(path).parts if part not in ("..", Path(path).anchor)]
    tails = (images.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((str(tail) for tail in tails if tail.is_file()), None)


def _draw(found: Similar, images, folder: Path, workers: int, timeout: float, max_memory: int) -> Similar:
    root = None if images is None else Path(images)
    if root is not None and not root.is_dir():
        raise ConfigError(f"images: {root} is no folder; give the one that the table's radiographs are in")
    query = found.query if os.path.isfile(found.query) else place_of(found.query, root)
    places = [query, *(place_of(near.path, root) for near in found.neighbours)]
    there = [place for place in places if place is not None]
    pictures = dict(zip(there, read_small(there, TILE, workers, timeout, max_memory), strict=True))
    tiles, missing = [], []
    for place, near in zip(places, [None, *found.neighbours], strict=True):
        grey = None if place is None else pictures[place]
        path = found.query if near is None else near.path
        if grey is None and near is not None:
            missing.append(path)
        words = ["query", Path(path).name] if near is None else _words(near)
        words += ["not found" if place is None else "cannot be read"] * (grey is None)
        colour = FLAGGED if near is None or near.same_patient or near.same_pixels else ACCEPTED
        tiles.append(plain_tile(np.full((TILE, TILE), 40, np.uint8) if grey is None else grey, *words, colour=colour))
    height = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=24) for tile in tiles]
    picture = folder / "similar.png"
    write_image(picture, contact_sheet(tiles))
    with (
        written_whole(folder / "similar.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        rows = [
            (rank, near.path, f"{near.distance:.6f}", near.patient, _told(near.same_patient), _told(near.same_pixels))
            for rank, near in enumerate(found.neighbours, start=1)
        ]
        columns = ("rank", "path", "distance", "patient", "same_patient", "same_pixels")
        write_table(stream, columns, rows, names=("path",))
    return Similar(found.query, found.neighbours, found.rows, found.patients, picture, missing)


def _words(near: Neighbour) -> list[str]:
    """Captions of a neighbour's tile."""
    whose = f"patient {near.patient[:HASH_DIGITS]}" if near.patient else ""
    whose = "the same patient" if near.same_patient else whose
    same = "the same pixels" if near.same_pixels else ""
    about = ", ".join(word for word in (whose, same) if word)
    return [f"distance {near.distance:.3f}", Path(near.path).name, *([about] if about else [])]


def _told(value: bool | None) -> str:
    return "" if value is None else str(int(value))
