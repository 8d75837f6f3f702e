"""Shards on disk: a file of pixels and a Parquet file of facts each, that appear together or not at all.

`reading.py` reads pixels back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ... import regular_files
from ...errors import ConfigError, HDXrayError, MissingDependencyError, TrainingError
from ...extras import install
from ...files import begin_file, place_of, written_whole
from ...images.perceptual_hash import LENGTH, SIDE
from ...names import escaped, unescaped
from ...parquet_files import read_parquet
from ...terminal import visible
from .slots import put
from .worker import OK, PATCH, UNREADABLE, Row

FORMAT, FORMAT_VERSION = "hdxray_fast.prepared", 1
SETTINGS = "settings.json"
FORMATS = ("raw", "png", "jpeg")  # of pixels


class ShardError(HDXrayError, OSError):
    """A shard of a prepared data set is missing or damaged."""


def arrow():
    """pyarrow with its Parquet part, or an error that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"prepared data sets need pyarrow: {install('train')}") from error
    return pyarrow


def schema():
    """Columns of a shard's facts; those of an image that is not ok are null, its ``valid_box`` is ``NO_BOX``.

    ``source`` is a name as :func:`.names.escaped` writes it. ``offset`` and ``length`` (bytes) say where its pixels lie
    in the shard's file, ``crc32`` guards them, ``inside`` is the packed inside grid (``numpy.packbits``, patches of 16
    pixels), ``polygon`` x and y in turn in canvas pixels, ``pixel * scale + shift`` has mean 0 and deviation 1 over the
    valid patches, ``patient`` is a keyed hash, ``height`` and ``width`` are those of the stored image, ``provenance``
    tells as JSON how its pixels became those of the canvas: decoder, transfer syntax, window, polarity, spacing.
    ``view``, its evidence and probability are those of :class:`hdxray_fast.ChestView`; ``body_part`` is a word of known
    lists, or one that several patients share, or "unknown"; ``left_out`` is a small JPEG of what was left out for its
    view or body part. ``thumbnail`` (``[48, 48] uint8``, rows in turn) and ``perceptual_hash`` (``[90] int8``):
    :mod:`hdxray_fast.images.perceptual_hash`.
    """
    pa = arrow()
    return pa.schema(
        [
            ("source", pa.string()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("shard", pa.int32()),
            ("offset", pa.int64()),
            ("length", pa.int64()),
            ("crc32", pa.uint32()),
            ("valid_box", pa.list_(pa.int32(), 4)),
            ("polygon", pa.list_(pa.float32())),
            ("inside", pa.binary()),
            ("inside_share", pa.float32()),
            ("confidence", pa.float32()),
            ("method", pa.string()),
            ("flagged", pa.bool_()),
            ("scale", pa.float32()),
            ("shift", pa.float32()),
            ("pixel_sha256", pa.string()),
            ("patient", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("format", pa.string()),
            ("view", pa.string()),
            ("flags", pa.list_(pa.string())),
            ("provenance", pa.string()),
            ("view_evidence", pa.string()),
            ("view_probability", pa.float32()),
            ("body_part", pa.string()),
            ("left_out", pa.binary()),
            ("thumbnail", pa.binary(SIDE * SIDE)),
            ("perceptual_hash", pa.binary(LENGTH)),
        ],
        metadata={"format": FORMAT, "format_version": str(FORMAT_VERSION)},
    )


# Arrow before 26, the last for Python 3.10 among them, cannot read back a null in place of a list of fixed size
NO_BOX = (0, 0, 0, 0)

# columns that shards of earlier versions lack: null there
LATER = ("view_evidence", "view_probability", "body_part", "left_out", "thumbnail", "perceptual_hash")


def _of_now(table):
    """Facts with the columns that came later, null where a shard was written before them."""
    pa = arrow()
    for field in schema():
        if field.name in LATER and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema().names) if set(schema().names) == set(table.column_names) else table


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What goes wrong while a data set is written, such as a full disk, as an error that says how to go on."""
    try:
        yield
    except HDXrayError:
        raise
    except OSError as error:
        at, why = place_of(error, out), error.strerror or error
        raise TrainingError(f"{at}: cannot be written ({why}); what is done is kept, start again to go on") from error


LOOKED_UP = ("shard", "offset", "length", "crc32", "valid_box", "polygon", "inside", "scale", "shift")
LOOKUP_ROWS = 1 << 16  # of a batch in the file


def write_lookup(index, path: Path, more: Sequence[str] = ()) -> None:
    """Those columns of an index (and ``more``) as an uncompressed Arrow file, whose pages all processes that map it
    share."""
    pa = arrow()
    table = index.select([*LOOKED_UP, *more])
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        for start in range(0, len(table), LOOKUP_ROWS):
            part = table.slice(start, LOOKUP_ROWS).combine_chunks()
            for batch in part.to_batches():  # one, since a column of so few rows stays below 2 GiB
                writer.write_batch(batch)


PICTURES = 16  # of a shard and a reason: enough for the sheet of what was left out
SHARED = 3  # patients of a shard (or images without one) that make a word of their headers nobody's own


def _hide_rare_words(facts: list[dict]) -> None:
    """Body parts that no list holds are free text: they are written only where several patients share them.

    A row that was kept when a shard is made again has its word as it was written then.
    """
    owners: dict[str, set] = {}
    for fact in facts:
        if word := fact.get("body_part") or "":
            owners.setdefault(f"?{word.removeprefix('?')}", set()).add(fact.get("patient") or fact["source"])
    for fact in facts:
        word = fact.get("body_part")
        if word in owners:
            fact["body_part"] = word[1:] if len(owners[word]) >= SHARED and word[1:] else "unknown"


@dataclass
class Outcome:
    """What became of the sources of a shard.

    Attributes:
        counts: of them by ``"ok"``, ``"unreadable"`` and ``"filtered"``.
        unreadable: names, and the reasons.
    """

    counts: Counter
    unreadable: list[tuple[str, str]]


def chunk_name(number: int) -> str:
    """Of a file of litdata's that holds the images of a shard."""
    return f"chunk-0-{number}.bin"


class ChunkFolder:
    """What :func:`.write_stream` wrote: litdata's chunks take the place of shards."""

    remake = "copy the chunk again, or remove its folder and write it anew (hdxray-fast stream)"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pixels(self, number: int) -> Path:
        return self.folder / chunk_name(number)


class ShardFolder:
    """``shards/`` of a data set: ``00000.bin`` and ``00000.parquet``, ``00001.bin``, ..."""

    remake = "remove the shard's two files and run prepare again"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pixels(self, number: int) -> Path:
        return self.folder / f"{number:05d}.bin"

    def facts(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def begin(self, number: int) -> Path:
        """The file that is to become a shard's pixels, for workers to write to."""
        return begin_file(self.pixels(number))

    def write(self, number: int, rows: Iterable[Row], begun: Path | None = None) -> Outcome:
        """Write a shard from rows in their order. The facts come last: a shard without them is not there.

        Args:
            number: of the shard.
            rows: with their pixels, or with these in ``begun``, each in a slot behind the slot of the one before.
            begun: of :meth:`begin`; renamed or removed here.
        """
        pa = arrow()
        table, pictures = [], Counter()
        with (
            written_whole(self.facts(number)) as facts,
            written_whole(self.pixels(number), begun=begun) as pixels,
        ):
            with pixels.open("r+b", buffering=0) as stream:
                end = 0
                for row in rows:
                    fact = {"source": escaped(row.source), "status": row.status, "reason": visible(row.reason)}
                    fact |= {"shard": number, "valid_box": NO_BOX, **row.facts}
                    pictures[row.reason] += 1
                    if pictures[row.reason] > PICTURES:
                        fact.pop("left_out", None)
                    if row.status == OK:
                        fact |= {"offset": end, "length": put(stream, row, end)}
                        end += fact["length"]
                    table.append(fact)
                stream.truncate(end)
            _hide_rare_words(table)
            pa.parquet.write_table(pa.Table.from_pylist(table, schema=schema()), facts)
            self.facts(number).unlink(missing_ok=True)  # of a shard that is made again: they tell of other pixels
        bad = [(unescaped(fact["source"]), fact["reason"]) for fact in table if fact["status"] == UNREADABLE]
        return Outcome(Counter(fact["status"] for fact in table), bad)

    def read_facts(self, number: int):
        """A shard's facts.

        Raises:
            ShardError: the shard is missing, damaged, or its pixels are not as long as its facts say.
        """
        table = _of_now(self._read(number))
        if not table.schema.equals(schema()):
            raise ShardError(f"{self.facts(number)}: is no shard of this version of the package")
        expected = arrow().compute.sum(table.column("length")).as_py() or 0
        found = self.pixels(number).stat().st_size if self.pixels(number).exists() else 0
        if found != expected:
            raise ShardError(
                f"{self.pixels(number)}: has {found} bytes, its facts tell of {expected}; remove both and run prepare "
                "again"
            )
        return table

    def facts_at(self, number: int, offset: int, columns: Sequence[str]) -> dict:
        """Some facts of the image of a shard whose pixels begin at a byte of its file; errors as for
        :meth:`read_facts`."""
        table = self._read(number, ["offset", *columns])
        found = table.filter(arrow().compute.equal(table.column("offset"), offset)).slice(0, 1).to_pylist()
        if not found:
            raise ShardError(f"{self.facts(number)}: was made anew meanwhile; merge again")
        return found[0]

    def _read(self, number: int, columns: list[str] | None = None):
        pa = arrow()
        path = self.facts(number)
        try:
            table = read_parquet(path, columns)
            table.validate(full=True)  # offsets that lead out of it would be followed
        except FileNotFoundError:
            raise ShardError(
                f"{path}: is missing; run prepare again with the same settings, it makes what is missing"
            ) from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ShardError(
                f"{path}: is damaged ({regular_files.reason_of(error)}); remove it and run prepare again"
            ) from error
        return table

    def outcome(self, number: int, rows: int) -> Outcome | None:
        """What became of the sources of a shard; ``None`` unless it has so many and is whole, as far as sizes tell."""
        if not self.facts(number).exists():
            return None
        try:
            table = self.read_facts(number)
        except ShardError:
            return None
        if len(table) != rows:
            return None
        unreadable = table.filter(arrow().compute.equal(table.column("status"), UNREADABLE))
        bad = zip(*(unreadable.column(name).to_pylist() for name in ("source", "reason")), strict=True)
        return Outcome(
            Counter(table.column("status").to_pylist()), [(unescaped(source), reason) for source, reason in bad]
        )

    def clean(self, numbers: Iterable[int]) -> None:
        """Remove what interrupted writes of these shards left behind."""
        prefixes = {f".{number:05d}." for number in numbers}
        for path in self.folder.glob(".*.tmp"):
            if path.name[: path.name.index(".", 1) + 1] in prefixes:
                path.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> dict:
    """What ``settings.json`` says, each of what is used of it of its own kind.

    Raises:
        ConfigError: it is missing or damaged, or the folder is no prepared data set of this version.
    """
    path = folder / SETTINGS
    try:
        found = regular_files.read_json(path, regular_files.RUN_JSON)
    except FileNotFoundError:
        raise ConfigError(f"{path}: is missing; a prepared data set is a folder that prepare wrote") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: is damaged or cannot be read ({regular_files.reason_of(error)}); fetch it from where the data "
            "set was made, or prepare it anew"
        ) from error
    return check_settings(found, path, folder)


def check_settings(found: object, path: Path | str, folder: Path | str) -> dict:
    """``found`` if it is what :func:`read_settings` gives; ``path`` and ``folder`` are named by its errors."""
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is damaged or cannot be read (holds no object)")
    if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
        raise ConfigError(f"{folder}: is no prepared data set of this version")
    if what := _other_kind(found):
        raise ConfigError(f"{path}: is damaged ({what}); fetch it from where the data set was made")
    return found


def _other_kind(settings: dict) -> str:
    recipe, names = settings.get("recipe"), settings.get("sources", [])
    if not isinstance(recipe, dict):
        return "its recipe is no object"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "its sources are no list of names"
    fits = {
        "size": lambda value: type(value) is int and value >= PATCH,
        "format": lambda value: value in FORMATS,
        "bits": lambda value: type(value) is int and value in (8, 16),
        "contour": lambda value: isinstance(value, str),
        "shard_size": lambda value: type(value) is int and value >= 1,
        "keep_duplicates": lambda value: isinstance(value, bool),
    }
    wrong = [name for name, holds in fits.items() if not holds(recipe.get(name))]
    return f"its recipe has no {wrong[0]} that prepare writes" if wrong else ""
