"""The radiographs of a table of features that are most like one: ``hdxray-fast similar``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.picture_folder import PictureFolder
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..errors import ArgumentError, ArgumentTypeError, ConfigError
from ..models.layers import check_count
from ..names import escaped, unescaped
from ..parquet_files import CheckedParquet, open_parquet
from ..regular_files import parse_json, reason_of, what_else
from ..weights.create import encoder_of_size
from ..weights.fingerprint import settings_of
from ..weights.shipped import PRETRAINED
from .embedding import Embedder
from .embedding_files import USUAL, fingerprint, shipped_name
from .feature_table import width_of
from .neighbour import Neighbour, Similar
from .neighbour_sheet import write_sheet
from .row_columns import SETTINGS_KEY, NoFeaturesError, as_of_now, require_columns, require_values, row_schema
from .stamps import Stamp
from .table_settings import OF_A_VERSION, differ_by_version, earlier_shipped
from .told_of import ToldOf, place_of

if TYPE_CHECKING:
    from ..models.encoder import Encoder

VIEW = "view"
MADE = ("pool", "keep")  # settings that a query is looked at with as the table says, whatever the encoder's own are
PATIENT = "patient"  # a column of hashes, as the index of a prepared set has one
ON_DISK = "features.parquet"  # as embed calls a table where it is told a folder
ROWS = 1024  # of features, in memory at once


def find_similar(
    query: str | os.PathLike,
    table: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    weights: str | os.PathLike | Encoder | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    patients: Mapping[str, str] | None = None,
    root: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    most: int = 11,
    device: str | None = None,
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    force: bool = False,
) -> Similar:
    """Find the radiographs whose features are nearest to one's.

    Args:
        query: a radiograph: one of the table, as it stands there, or any other, which the encoder looks at.
        table: ``features.parquet`` of :func:`.embed_files`; a column ``patient`` of hashes is read too. Features are
            read a thousand at a time.
        images: folder in which the table's radiographs are now; left out, they are where the table says.
        weights: those that the table was made with (others are refused), for a query that it does not hold; looked at
            as it says there. Left out, the encoder that comes with the package, if the table is of it.
        labels: of radiographs, by their paths, the classes that hold: they are told beside each.
        patients: likewise, the patient (blank: not known), where the table does not tell: whether it is the query's is
            told, and nothing else.
        root: folder that paths of ``labels`` and ``patients`` begin from: one that leads to no file is that of the one
            radiograph of the table whose path ends in the rest of it.
        out: folder for ``similar.png``, a contact sheet, and ``similar.csv`` (where openpyxl is installed, also
            ``similar.xlsx``); left out, nothing is written.
        most: neighbours.
        device: where the encoder runs; left out, a GPU if there is one.
        workers: processes that read files; 0 reads in this process, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
        force: replace the neighbours of another query, or of another table, in ``out``.

    Raises:
        ArgumentError: an argument is not as described, or the query cannot be read.
        ConfigError: the table is none, was made with other weights, or does not hold the query as it is now; or ``out``
            holds files of these names that ``similar`` did not make or, without ``force``, made in another call.
    """
    if not isinstance(query, str | os.PathLike):
        raise ArgumentTypeError(f"query: got {type(query).__name__}, accepted is the path of a radiograph")
    if not isinstance(labels, Mapping | None) or any(isinstance(names, str) for names in (labels or {}).values()):
        accepted = "a mapping of paths with the names of their classes"
        raise ArgumentTypeError(f"labels: got {type(labels).__name__}, accepted is {accepted}")
    if not isinstance(patients, Mapping | None):
        accepted = "a mapping of paths with their patients"
        raise ArgumentTypeError(f"patients: got {type(patients).__name__}, accepted is {accepted}")
    check_count("most", most)
    check_caps(timeout, max_memory)
    folder = None
    if out is not None:
        asked = {name: escaped(os.path.abspath(path)) for name, path in (("query", query), ("table", table))}
        asked |= {"most": most, "labels": _print_of(labels)}  # and of patients no trace
        folder = PictureFolder(
            Path(out), "similar", asked, dict.fromkeys(("similar.png", "similar.csv", "similar.xlsx"), ""), (), force
        )
        folder.refuse()
    with _opened(table) as file:
        width = width_of(file.schema)
        require_columns(file, row_schema({}, width, False))
        settings = parse_json((file.schema.metadata or {}).get(SETTINGS_KEY, b"{}"))
        columns = [name for name in ("size", "mtime_ns", "provenance_id", VIEW, PATIENT) if name in file.schema.names]
        facts = file.read(["path", *columns])
        require_values(facts)
        facts = facts.to_pydict()
        paths = [unescaped(path) for path in facts["path"]]
    prints = facts.get("provenance_id") or [""] * len(paths)
    views = [str(view or "") for view in facts.get(VIEW, [""] * len(paths))]
    row = held = _row_of(str(query), paths)
    if row is not None and not _is_as_it_was(str(query), row, facts):
        row = None
    encoder = None if weights is None else _encoder_of(table, settings, weights)
    if row is None:
        if encoder is None and (shipped := _shipped_encoder(settings)) is not None:
            encoder = _encoder_of(table, settings, shipped)
        if encoder is None:
            if earlier := _of_earlier_shipped(settings):
                raise ConfigError(
                    f"query: {query}: the table {table} does not hold it, and its features are {earlier}; remove "
                    f"{table} and make it anew: embed IMAGES --out {table}"
                )
            how = "does not hold it" if held is None else "holds it as it was before it was written anew"
            raise ConfigError(
                f"query: {query}: the table {table} {how}; give weights (those of the table), or embed it first"
            )
        reading = {"workers": min(workers, 1), "timeout": timeout, "max_memory": max_memory}
        feature, pixels, view = _embedded(str(query), encoder, settings, device, reading)
        if len(feature) != width:
            raise ConfigError(f"{table}: has features of {width} numbers, and the weights give {len(feature)}")
    else:
        feature, pixels, view = None, prints[row], views[row]
    with _opened(table) as file:
        distances = _distances(file, width, len(paths), feature, row)
    if row is not None:
        distances[row] = np.inf
    order = [int(place) for place in np.argsort(distances, kind="stable") if np.isfinite(distances[place])][:most]
    hashes = [str(patient or "") for patient in facts.get(PATIENT, [""] * len(paths))]
    own = hashes[row] if row is not None else ""
    folder_now = None if images is None else Path(images)
    told, persons = (ToldOf(known or {}, folder_now, root, [*paths, str(query)]) for known in (labels, patients))

    def is_same(place: int) -> bool | None:
        one, other = (own, hashes[place]) if own and hashes[place] else map(persons.of, (str(query), paths[place]))
        return one == other if one and other else None

    neighbours = [
        Neighbour(
            paths[place], max(0.0, float(distances[place])), hashes[place], is_same(place),
            bool(pixels) and prints[place] == pixels, views[place], told.of(paths[place]),
        )
        for place in order
    ]  # fmt: skip
    found = Similar(
        str(query), neighbours, len(paths), any(hashes), view=view, labels=told.of(str(query)),
        labelled=labels is not None,
    )  # fmt: skip
    if folder is None:
        return found
    if folder_now is not None and not folder_now.is_dir():
        raise ConfigError(f"images: {folder_now} is no folder; give the one that the table's radiographs are in")
    folder.claim()
    places = [place_of(path, folder_now) for path in (found.query, *(near.path for near in neighbours))]
    if os.path.isfile(found.query):
        places[0] = found.query
    picture, missing = write_sheet(found, places, folder.path, workers, timeout, max_memory)
    return replace(found, picture=picture, missing=missing)


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


def _row_of(query: str, paths: Sequence[str]) -> int | None:
    """The row of a query, however its path is spelt; ``None`` if there is none."""
    if query in paths:
        return paths.index(query)
    name, place = os.path.basename(query), os.path.abspath(query)
    return next((row for row, path in enumerate(paths) if path.endswith(name) and os.path.abspath(path) == place), None)


def _is_as_it_was(query: str, row: int, facts: dict) -> bool:
    """Whether a query has not changed since its row was made."""
    now = Stamp.of(query)  # a file that is gone keeps its row
    size, written = (facts[name][row] if name in facts else None for name in ("size", "mtime_ns"))
    if now is None or written is None or Stamp(size, written).is_of(query, now):
        return True
    # of an image of a prepared set what has changed is not known: in place of a time there is a CRC-32, and no file is
    # of the first seconds of 1970 but those of archives, to the second
    return 0 <= written < 1 << 32 and written % 10**9 != 0


def _shipped_encoder(settings: object) -> Encoder | None:
    """The encoder that comes with the package, at the table's size, if the table is of it."""
    try:
        encoder = encoder_of_size(PRETRAINED, _side_of(settings))
        return encoder if settings["weights"] == fingerprint(encoder) else None
    except (KeyError, TypeError, IndexError, ArgumentError):
        return None


def _of_earlier_shipped(settings: object) -> str:
    """What :func:`.earlier_shipped` says of a table that is not of the package's encoder as it is now."""
    try:
        now = _told_of(encoder_of_size(PRETRAINED, _side_of(settings)))
        apart = {*MADE, *OF_A_VERSION}
        alike = all(settings["encoder"].get(name) == value for name, value in now.items() if name not in apart)
        return earlier_shipped(settings) if alike else ""
    except (KeyError, TypeError, IndexError, AttributeError, ArgumentError):
        return ""


def _told_of(encoder: Encoder) -> dict:
    """Settings of an encoder as tables have them."""
    return json.loads(json.dumps(dict(item for item in settings_of(encoder.config).items() if item != USUAL)))


def _print_of(labels: Mapping[str, Sequence[str]] | None) -> str:
    """Tells labels of one call from those of another."""
    rows = sorted((escaped(str(path)), list(names)) for path, names in labels.items()) if labels else []
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] if labels else ""


def _side_of(settings: object) -> int:
    side = settings["encoder"]["img_size"]
    return side[0] if isinstance(side, list) else side


def _encoder_of(table, settings: object, weights) -> Encoder:
    """The encoder of weights that must be those of the table."""
    try:
        size, known = _side_of(settings), settings["weights"]
        if not {*MADE} <= {*settings}:
            raise KeyError
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{table}: does not say with which weights it was made; embed the images anew") from error
    encoder = encoder_of_size(weights, size)
    now = {**_told_of(encoder), "weights": fingerprint(encoder)}
    known = {**settings["encoder"], "weights": known}
    other = [name for name in now.keys() | known.keys() if name not in MADE and now.get(name) != known.get(name)]
    if differ_by_version(other) and shipped_name(encoder, now["weights"]) and (earlier := earlier_shipped(settings)):
        raise ConfigError(
            f"weights: are not those that {table} was made with, {earlier}; remove {table} and make it anew: embed "
            f"IMAGES --out {table}"
        )
    if other:
        raise ConfigError(
            f"weights: are not those that {table} was made with (other: {', '.join(sorted(other))}), and features of "
            "two encoders do not compare; give those, or embed the images with these"
        )
    return encoder


def _embedded(query: str, encoder: Encoder, settings: dict, device, reading: dict) -> tuple[np.ndarray, str, str]:
    """Feature, pixel hash and view of a file that the table does not hold, made as its rows were."""
    made = {name: settings[name] for name in MADE}
    job = Embedder(encoder, device=device, precision=settings.get("precision", "fp32"), **made)
    (found,) = job.batches([(query, query)], batch_size=1, **reading)
    if found.quarantined:
        raise ArgumentError(f"query: {query} cannot be read: {found.quarantined[0].reason}")
    return found.features[0], found.provenance_ids[0], found.views[0]


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
