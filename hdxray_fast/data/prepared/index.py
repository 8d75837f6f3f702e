"""All shards to one data set: an index of what is good, lists of what is not, and a look at it."""

from __future__ import annotations

import csv
import filecmp
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from ...errors import ConfigError, TrainingError
from ...files import written_whole
from ...locks import locked
from ...names import unescaped
from ...parquet_files import count_rows
from ...regular_files import RUN_JSON, open_regular, read_json, reason_of
from ..csv_cells import read_table, write_table
from ..quarantine import SHOWN
from .duplicates import Copies, Near
from .index_files import IndexFiles
from .merged import NOTE, MergeNote
from .reading import LOOKUP
from .shards import ShardFolder, arrow, read_settings, write_json, writing
from .summary import PICTURES, LeftOut, write_pictures
from .tally import Tally
from .worker import FILTERED, OK, UNREADABLE

INDEX, QUARANTINE, DUPLICATES, SKIPPED, SUMMARY, TILES = (
    "index.parquet",
    "quarantine.csv",
    "duplicates.csv",
    "skipped.csv",
    "summary.json",
    "contacts.csv",
)
MERGED = (INDEX, LOOKUP, QUARANTINE, DUPLICATES, SUMMARY, TILES, *PICTURES)
NAMES = ("source", "same_pixels_as", "near_duplicate_of")  # columns of the lists
LISTS = {QUARANTINE: {"source", "status", "reason"}, DUPLICATES: {"source"}, SKIPPED: {"source"}}


def _note_of(out: Path) -> MergeNote:
    return MergeNote(out, ("settings.json", "sources.parquet", SKIPPED), MERGED)


def is_merged(out: Path) -> bool:
    """Whether the shards of a data set, as they are, were joined."""
    return _note_of(out).holds()


def merge(out: str | Path, *, again: bool = True) -> dict:
    """Join the shards of a data set; the same shards give the same files.

    They are gone through once, one after the other: what is held of an image are its name, its hashes and a few
    numbers. A merge that is killed leaves the set as it was, or one that says it is to be merged.

    Writes ``index.parquet`` (a row per image that is good and no duplicate of an earlier one), ``lookup.arrow`` (of it
    what a reader needs, to be mapped), ``quarantine.csv`` (source, status and reason of the rest), ``duplicates.csv``
    (copies with equal pixels, and near ones, which stay in the index), ``summary.json``, ``summary.png``,
    ``contacts.png``, ``left_out.png`` where images were left out for what they show, and ``contacts.csv``, which says
    of which file each tile of the two is.

    Args:
        out: folder of the data set.
        again: merge also where these very shards were merged already and nothing has changed since.

    Returns:
        The summary: counts by status and reason, sizes, contours, patients.

    Raises:
        ConfigError: ``out`` is no data set, or some of its shards are missing.
        ShardError: a shard is damaged.
        TrainingError: no image is good, or the disk is full.
    """
    out = Path(out)
    read_settings(out)  # is there a data set at all
    with writing(out), locked(out / ".merge.lock"):  # parts that end together merge one after the other
        note = _note_of(out)
        if not again and note.holds():
            return read_json(out / SUMMARY, RUN_JSON)
        _remove_leftovers(out)
        summary = _merge(out)
        note.write()
        return summary


def _remove_leftovers(out: Path) -> None:
    """Remove what a merge that was killed left behind; who holds the lock is the only one that writes these files."""
    for name in (*MERGED, NOTE):
        for path in out.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _merge(out: Path) -> dict:
    recipe, shards, numbers = _all_shards(out)
    pa = arrow()
    tally, left_out, good_names, bad = Tally(), LeftOut(), [], []
    with written_whole(out / LOOKUP) as lookup, written_whole(out / INDEX) as index, Copies(out) as copies:
        with IndexFiles(index, lookup) as files:
            for number in numbers:
                table = shards.read_facts(number)
                is_good = pa.compute.equal(table.column("status"), OK)
                good, others = table.filter(is_good), table.filter(pa.compute.invert(is_good))
                repeats = copies.add(good)
                keep = np.ones(len(good), bool)
                if not recipe["keep_duplicates"]:
                    keep[repeats] = False
                images = good.filter(pa.array(keep)).drop_columns(["status", "reason", "left_out"])
                files.add(images)
                tally.add(table, images)
                left_out.add(others)
                good_names.append(good.select(["source"]))
                bad.append(others.select(["source", "status", "reason"]))
        near = copies.near()
        if not _equal(lookup, out / LOOKUP):  # a kill from here on leaves a set that says it is to be merged
            (out / LOOKUP).unlink(missing_ok=True)
        listed = pa.concat_tables(bad)
        _write_lists(out, listed, pa.concat_tables(good_names).column("source"), copies, near)
        if not tally.good:
            first = "; ".join(f"{row['source']}: {row['reason']}" for row in islice(_rows(listed), SHOWN))
            raise TrainingError(
                f"{out}: none of the {tally.sources} sources can be used; the first: {first}; all are in "
                f"{out / QUARANTINE}"
            )
    summary = tally.summary(len(copies.repeats), len(near), read_skipped(out))
    write_json(out / SUMMARY, summary)
    shown = write_pictures(out, tally.columns(), recipe, summary) + left_out.write(out)
    write_rows(out / TILES, ("picture", "tile", "caption", "source"), shown)
    return summary


def _all_shards(out: Path) -> tuple[dict, ShardFolder, range]:
    """Recipe and shards of a data set, none of which is missing, and their numbers."""
    settings = read_settings(out)
    if settings.get("cache"):
        raise ConfigError(f"{out}: is the cache of a training run, which has no parts")
    if settings.get("chunks"):
        raise ConfigError(f"{out}: holds chunks that hdxray-fast stream wrote; its last part joins them")
    pa = arrow()
    try:
        sources = count_rows(out / "sources.parquet")
        if not sources:
            raise ValueError("it lists none")
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: words that are no UTF-8
        raise ConfigError(
            f"{out / 'sources.parquet'}: is missing or damaged ({reason_of(error)}); run prepare again"
        ) from error
    shards = ShardFolder(out / "shards")
    numbers = range(-(-sources // settings["recipe"]["shard_size"]))
    missing = [number for number in numbers if not os.path.lexists(shards.facts(number))]
    if missing:
        raise ConfigError(
            f"{out}: {len(missing)} of {len(numbers)} shards are missing (the first is {missing[0]}); prepare makes "
            "them"
        )
    return settings["recipe"], shards, numbers


def _write_lists(out: Path, bad, good, copies: Copies, near: dict[int, Near]) -> None:
    """``bad``: source, status and reason of what is not good; ``good``: the sources of what is, by row."""
    write_rows(
        out / QUARANTINE, ("source", "status", "reason"),
        ((unescaped(row["source"]), row["status"], row["reason"]) for row in _rows(bad)),
    )  # fmt: skip
    alike = {row: (first, "") for row, first in copies.repeats.items()}
    alike |= {row: (first, f"{likeness:.2f}") for row, (first, likeness) in near.items()}

    def line(row: int) -> tuple[str, str, str, str]:
        first, likeness = alike[row]
        name, earlier = (unescaped(good[place].as_py()) for place in (row, first))
        return (name, "", earlier, likeness) if likeness else (name, earlier, "", "")

    write_rows(
        out / DUPLICATES, ("source", "same_pixels_as", "near_duplicate_of", "likeness"), map(line, sorted(alike))
    )


def _rows(table) -> Iterator[dict]:
    """Row by row: few of them become Python's at once."""
    for batch in table.to_batches():
        yield from batch.to_pylist()


def _equal(one: Path, other: Path) -> bool:
    """Whether two files, the second of which need not be there, hold the same bytes."""
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file, whole or not at all; names in it may hold any bytes."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, header, rows, names=NAMES)


def read_unreadable(out: Path) -> list[tuple[str, str]]:
    """Source and reason of everything that could not be read, as :func:`merge` listed it."""
    return [(row["source"], row["reason"]) for row in _read_list(out / QUARANTINE) if row["status"] == UNREADABLE]


def read_filtered(out: Path) -> dict[str, str]:
    """Reason by source of everything that was left out on purpose: for its view or part of the body."""
    path = out / QUARANTINE
    if not os.path.lexists(path):  # a cache has none
        return {}
    return {row["source"]: row["reason"] for row in _read_list(path) if row["status"] == FILTERED}


def read_skipped(out: Path) -> list[str]:
    """Names that were left out for their suffix when the sources were listed."""
    path = out / SKIPPED
    if not os.path.lexists(path):  # a set of an earlier version
        return []
    return [row["source"] for row in _read_list(path)]


def read_set_aside(out: Path) -> list[str]:
    """Names of the sources that a data set holds no image of: unreadable, filtered, repeats of another, left out."""
    names = read_skipped(out)
    for path in (out / QUARANTINE, out / DUPLICATES):
        if os.path.lexists(path):  # a cache has neither
            names += [row["source"] for row in _read_list(path) if row.get("same_pixels_as") != ""]
    return names  # near duplicates are in the index


def _read_list(path: Path) -> list[dict[str, str]]:
    try:
        with open_regular(path, "r", newline="", encoding="utf-8-sig") as stream:
            return read_table(stream, NAMES, LISTS[path.name])
    except (OSError, UnicodeError, csv.Error) as error:
        way = "remove it" if path.name == SKIPPED else f"hdxray-fast merge {path.parent} writes it again"
        raise ConfigError(f"{path}: is missing or damaged ({reason_of(error)}); {way}") from error
