"""All shards to one data set: an index of what is good, lists of what is not, and a look at it."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from ...errors import ConfigError, TrainingError
from ...files import size_in_words, written_whole
from ...locks import locked
from ...names import escaped, unescaped
from ...parquet_files import count_rows
from ...regular_files import open_regular, reason_of
from ...terminal import visible
from ..csv_cells import read_table, write_table
from ..quarantine import SHOWN
from .duplicates import Near, equal_pixels, near_duplicates
from .shards import ShardFolder, arrow, read_settings, write_json, write_lookup, writing
from .sources import some_names
from .summary import PICTURES, write_left_out, write_pictures
from .worker import OK, UNREADABLE

INDEX, LOOKUP, QUARANTINE, DUPLICATES, SKIPPED, SUMMARY = (
    "index.parquet",
    "lookup.arrow",
    "quarantine.csv",
    "duplicates.csv",
    "skipped.csv",
    "summary.json",
)
MERGED = (INDEX, LOOKUP, QUARANTINE, DUPLICATES, SKIPPED, SUMMARY, *PICTURES)
NAMES = ("source", "same_pixels_as", "near_duplicate_of")  # columns of the lists
LISTS = {QUARANTINE: {"source", "status", "reason"}, DUPLICATES: {"source"}, SKIPPED: {"source"}}


def merge(out: str | Path) -> dict:
    """Join the shards of a data set; the same shards give the same files.

    Writes ``index.parquet`` (a row per image that is good and no duplicate of an earlier one), ``lookup.arrow`` (of it
    what a reader needs, to be mapped), ``quarantine.csv`` (source, status and reason of the rest), ``duplicates.csv``
    (copies with equal pixels, and near ones, which stay in the index), ``summary.json``, ``summary.png`` and
    ``contacts.png``.

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
        return _merge(out)


def _merge(out: Path) -> dict:
    settings = read_settings(out)
    if settings.get("cache"):
        raise ConfigError(f"{out}: is the cache of a training run, which has no parts")
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
    table = pa.concat_tables([shards.read_facts(number) for number in numbers])
    good = table.filter(pa.compute.equal(table.column("status"), OK))
    repeats = equal_pixels(good)
    near = near_duplicates(good, without=list(repeats))
    _write_lists(out, table, good, repeats, near)
    if not len(good):
        bad = zip(*(table.column(name).to_pylist() for name in ("source", "reason")), strict=True)
        first = "; ".join(f"{source}: {reason}" for source, reason in islice(bad, SHOWN))
        raise TrainingError(
            f"{out}: none of the {len(table)} sources can be used; the first: {first}; all are in {out / QUARANTINE}"
        )
    keep = np.ones(len(good), bool)
    if not settings["recipe"]["keep_duplicates"]:
        keep[list(repeats)] = False
    index = good.filter(pa.array(keep)).drop_columns(["status", "reason", "left_out"])
    with written_whole(out / INDEX) as temporary:
        pa.parquet.write_table(index, temporary)
    with written_whole(out / LOOKUP) as temporary:
        write_lookup(index, temporary)
    summary = _summary(table, index, len(repeats), len(near), read_skipped(out))
    write_json(out / SUMMARY, summary)
    write_pictures(out, index, settings["recipe"], summary)
    write_left_out(out, table)
    return summary


def _write_lists(out: Path, table, good, repeats: dict[int, int], near: dict[int, Near]) -> None:
    columns = [table.column(name).to_pylist() for name in ("source", "status", "reason")]
    bad = [(unescaped(name), *why) for name, *why in zip(*columns, strict=True) if why[0] != OK]
    names = [unescaped(name) for name in good.column("source").to_pylist()]
    copies = {row: (names[row], names[first], "", "") for row, first in repeats.items()}
    copies |= {row: (names[row], "", names[first], f"{likeness:.2f}") for row, (first, likeness) in near.items()}
    for name, header, rows in (
        (QUARANTINE, ("source", "status", "reason"), bad),
        (
            DUPLICATES,
            ("source", "same_pixels_as", "near_duplicate_of", "likeness"),
            [copies[row] for row in sorted(copies)],
        ),
    ):
        write_rows(out / name, header, rows)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file, whole or not at all; names in it may hold any bytes."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, header, rows, names=NAMES)


def read_unreadable(out: Path) -> list[tuple[str, str]]:
    """Source and reason of everything that could not be read, as :func:`merge` listed it."""
    return [(row["source"], row["reason"]) for row in _read_list(out / QUARANTINE) if row["status"] == UNREADABLE]


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
    needed = LISTS[path.name]
    try:
        with open_regular(path, "r", newline="", encoding="utf-8") as stream:
            rows = read_table(stream, names=NAMES)
        if not all(needed <= row.keys() for row in rows):
            raise csv.Error(f"its columns are not {', '.join(sorted(needed))}")
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: is missing or damaged ({reason_of(error)}); hdxray-fast merge {path.parent} writes it again"
        ) from error
    return rows


def _summary(table, index, duplicates: int, near: int, skipped: list[str]) -> dict:
    status = Counter(table.column("status").to_pylist())
    reasons = Counter(reason for reason in table.column("reason").to_pylist() if reason)
    patients = [patient for patient in index.column("patient").to_pylist() if patient]
    confidence, share = (_quantiles(index.column(name)) for name in ("confidence", "inside_share"))
    return {
        "sources": len(table),
        "images": len(index),
        **{name: status.get(name, 0) for name in ("ok", "unreadable", "filtered")},
        "duplicates": duplicates,
        "near_duplicates": near,
        "skipped": len(skipped),
        "skipped_first": [escaped(name) for name in skipped[:3]],
        "patients": len(set(patients)),
        "images_without_patient": len(index) - len(patients),
        "flagged_contours": int(np.sum(index.column("flagged").to_numpy())),
        "bytes": int(np.sum(index.column("length").to_numpy())),
        "confidence": confidence,
        "inside_share": share,
        "flags": dict(Counter(flag for flags in index.column("flags").to_pylist() for flag in flags).most_common()),
        "views": _views(table),
        "body_parts": dict(Counter(part or "" for part in table.column("body_part").to_pylist() if part is not None)),
        "formats": dict(Counter(index.column("format").to_pylist()).most_common()),
        "reasons": dict(reasons.most_common(20)),
    }


def _views(table) -> dict:
    """Images by view and evidence, such as ``{"lateral (pixels)": 7, "not known": 2}``."""
    pairs = zip(*(table.column(name).to_pylist() for name in ("view", "view_evidence")), strict=True)
    named = (f"{view} ({evidence})" if view else "not known" for view, evidence in pairs if evidence is not None)
    return dict(Counter(named).most_common())


def _quantiles(column) -> dict:
    values = np.quantile(column.to_numpy(), (0, 0.05, 0.5, 0.95, 1))
    return dict(zip(("min", "p05", "median", "p95", "max"), (round(float(v), 4) for v in values), strict=True))


def describe(summary: dict) -> str:
    """What the command prints."""
    lines = [
        f"{summary['images']} images of {summary['sources']} sources "
        f"({summary['unreadable']} unreadable, {summary['filtered']} filtered, {summary['duplicates']} duplicates), "
        f"{size_in_words(summary['bytes'])}",
        f"patients: {summary['patients']} known by a hash, {summary['images_without_patient']} images without",
        f"contours: confidence {summary['confidence']['median']:.2f} (5 % below {summary['confidence']['p05']:.2f}), "
        f"{summary['flagged_contours']} flagged; {summary['inside_share']['median']:.0%} of the patches inside",
    ]
    if summary["flags"]:
        lines.append("flags: " + ", ".join(f"{count} {flag}" for flag, count in summary["flags"].items()))
    views = ", ".join(f"{count} {name}" for name, count in summary["views"].items())
    parts = sorted(summary["body_parts"].items(), key=lambda item: -item[1])
    lines += [f"views: {views or 'not looked at'}"]
    lines += ["body parts: " + ", ".join(f"{count} {name or 'not stated'}" for name, count in parts[:8])]
    if summary["near_duplicates"]:
        lines.append(
            f"near duplicates: {summary['near_duplicates']} images look like an earlier one encoded, scaled or trimmed "
            f"anew; they are kept, and listed in {DUPLICATES}"
        )
    if summary["skipped"]:
        names = some_names(summary["skipped_first"], summary["skipped"])
        lines.append(f"left out for the suffix: {names}; all of them: {SKIPPED}")
    lines += [f"  {count} x {reason}" for reason, count in list(summary["reasons"].items())[:5]]
    return "\n".join(map(visible, lines))
