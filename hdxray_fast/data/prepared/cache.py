"""The cache of training runs: a prepared data set that grows by what a run needs and does not find in it.

An image is known by a key that changes with its file's place, size and date (also if it is written anew behind these
two), and with what is computed from it. A shard
is never written twice and its number never given anew, so runs that read while another one adds are not disturbed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ... import regular_files
from ...errors import ConfigError, TrainingError
from ...files import checksum, claim_names, make_folder, refuse_foreign, remove_leftovers, written_whole
from ...locks import locked
from ...names import require_utf8
from ..quarantine import Quarantined
from ..reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from .cached import CachedImages, CachedSet, ctime_of, for_now, key_now
from .config import PrepareConfig
from .index import INDEX, LOOKUP
from .pool import prepared_rows
from .shards import (
    FORMAT,
    FORMAT_VERSION,
    SETTINGS,
    ShardError,
    ShardFolder,
    arrow,
    read_settings,
    write_json,
    write_lookup,
    writing,
)
from .sources import Source
from .worker import OK, Row

CHECKSUM = "lookup.sha256"  # of lookup.arrow, whose contours are used as they lie there
UNREADABLE = "unreadable.json"  # keys of files that could not be read
MAKER = "cache"
FILES = (SETTINGS, "shards", INDEX, LOOKUP, CHECKSUM, UNREADABLE)
SHARD_SIZE = 64  # images; what a run that is killed while it reads can lose
KEPT = (
    "key",
    "source",
    "inside_share",
    "confidence",
    "flagged",
    "pixel_sha256",
    "ctime_ns",
)  # in lookup.arrow, besides
KEY_PATTERN = '"cache_key": "(?P<key>[0-9a-f]{32})"(?:, "ctime_ns": (?P<ctime_ns>[0-9]+))?'


def recipe_of(size: int, contour: str) -> dict:
    """What a cache holds: 8 bits, raw, whatever the view or the body part, and every file even if it is a copy."""
    plain = {"view": "any", "body_part": "any", "keep_duplicates": True, "shard_size": SHARD_SIZE}
    return {**PrepareConfig(["-"], "-", contour=contour, **plain).recipe(), "size": size}


def fill_cache(
    cache: str | Path,
    sources: Sequence[Source],
    *,
    size: int = 1280,
    contour: str = "network",
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    on_done: Callable[[Quarantined | None], None] = lambda bad: None,
    on_wait: Callable[[Path], None] = lambda folder: None,
) -> tuple[CachedImages, list[Quarantined]]:
    """Canvas and contour of every file: from the cache, or computed now and kept there.

    A run that is killed meanwhile leaves whole shards, which the next one goes on from. Files that could not be read
    are tried again each time; if there are no others to read, nobody is waited for and nothing is written.

    Args:
        cache: folder; made if needed. About ``size ** 2`` bytes an image.
        sources: files to read.
        size: canvas side, pixels; each size and each method has a cache of its own below ``cache``.
        contour: method of :func:`hdxray_fast.find_contour`.
        workers: processes; 0 reads in this one, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
        on_done: called for each of ``sources``, with why it was set aside if it was.
        on_wait: called with the folder if another run is adding to it, before that one's end is waited for.

    Returns:
        The images, and what is set aside, each in the order of ``sources``.

    Raises:
        ConfigError: the folder cannot be made or holds files of the cache's names that no cache made, or a cap is not
            above 0.
        TrainingError: none of the files can be read, or the disk is full.
        MissingDependencyError: pyarrow is not installed, or there are to be workers without pebble and loky.
    """
    arrow()  # missing: said before anything else
    check_caps(timeout, max_memory)
    folder = refuse_foreign_cache(cache, size, contour)
    make_folder(folder / "shards", "cache")
    wanted: dict[str, list[Source]] = {}  # a file that is named twice is read once

    def tell(key: str, reason: tuple[str, str] | None = None) -> None:
        for source in wanted[key]:
            on_done(None if reason is None else Quarantined(source.name, *reason))

    reading = {"workers": workers, "timeout": timeout, "max_memory": max_memory}
    adding = _Adding(folder, recipe_of(size, contour), reading, tell)
    written = adding.written()
    keys = [key_now(source, size, contour, written) for source in sources]
    for key, source in zip(keys, sources, strict=True):
        wanted.setdefault(key, []).append(source)

    def lacking(known: set[str]) -> dict[str, Source]:
        return {key: named[0] for key, named in wanted.items() if key not in known}

    def tell_of(known: set[str]) -> None:
        for key in wanted.keys() & known:
            tell(key)

    known = adding.known()
    if lacking(known) and not adding.are_still_bad(lacking(known)):
        with writing(folder), locked(folder / ".lock", lambda: on_wait(folder)):
            claim_names(folder, MAKER, FILES, _is_cache(folder), "cache")
            known = adding.settle()
            tell_of(known)
            adding.add(lacking(known))
    else:
        tell_of(known)
    bad = [
        Quarantined(source.name, *adding.bad[key]) for key, source in zip(keys, sources, strict=True)
        if key in adding.bad
    ]  # fmt: skip
    good = [place for place, key in enumerate(keys) if key not in adding.bad]
    if not good:
        raise TrainingError(
            f"none of the {len(keys)} files can be read as a chest radiograph; the first: {bad[0].path}: "
            f"{bad[0].reason}"
        )
    return CachedImages(folder, [sources[i] for i in good], [keys[i] for i in good]), bad


def refuse_foreign_cache(cache: str | Path, size: int, contour: str) -> Path:
    """The folder below ``cache`` that :func:`fill_cache` keeps such images in, where nothing is to be written yet.

    Raises:
        ConfigError: it holds files of the cache's names that no cache made.
    """
    require_utf8(cache, "cache")
    folder = Path(cache) / f"{size}-{contour}"
    refuse_foreign(folder, MAKER, FILES, _is_cache(folder), "cache")
    return folder


def _is_cache(folder: Path) -> bool:
    """Whether a folder is a cache, as its settings say: releases before left no mark."""
    try:
        return read_settings(folder).get("cache") is True
    except ConfigError:
        return False


class _Adding:
    """What a run does to its cache; ``bad`` gathers error and reason by key, ``reading`` is told to the readers."""

    def __init__(self, folder: Path, recipe: dict, reading: dict, tell: Callable) -> None:
        self.folder, self.recipe, self.reading, self.tell = folder, recipe, reading, tell
        self.shards = ShardFolder(folder / "shards")
        self.bad: dict[str, tuple[str, str]] = {}
        self.tables: dict[int, Any] = {}  # facts of all shards, by number

    def written(self) -> dict[str, int]:
        """As :meth:`CachedSet.written`."""
        images = self._open()
        return {} if images is None else images.written()

    def known(self) -> set[str]:
        """Keys of the images that can be read, as far as the lengths of files tell."""
        images = self._open()
        return set() if images is None else set(images.keys())

    def _open(self) -> CachedSet | None:
        """The cache as it is; ``None`` if it has no index, or one that tells of what is not there."""
        try:
            known = regular_files.read_text(self.folder / CHECKSUM, regular_files.SMALL_TEXT)
            if known != checksum(self.folder / LOOKUP):
                return None
            images = CachedSet(self.folder)
            images.check()
        except (ConfigError, ShardError, OSError, ValueError):  # ValueError: no text
            return None
        return images if images.recipe == self.recipe and images.shards() <= self._numbers() else None

    def _numbers(self, suffix: str = "parquet") -> set[int]:
        """Numbers of the shards whose facts (or pixels) are there."""
        return {int(path.stem) for path in self.shards.folder.glob(f"[0-9]*.{suffix}") if path.stem.isdecimal()}

    def are_still_bad(self, wanted: Mapping[str, Source]) -> bool:
        """Whether files that no earlier run could read, or that could not be kept anyhow, still cannot be read."""
        if not wanted.keys() <= self._unreadable() and os.access(self.folder, os.W_OK):
            return False
        bad = {}
        with closing(prepared_rows(wanted.values(), self.recipe, None, **self.reading)) as rows:
            for row, key in zip(rows, wanted, strict=True):
                if row.status == OK:
                    return False
                bad[key] = _reason(row)
        self.bad = bad
        for key, reason in bad.items():
            self.tell(key, reason)
        return True

    def _unreadable(self) -> set[str]:
        try:
            return {str(key) for key in regular_files.read_json(self.folder / UNREADABLE, regular_files.RUN_JSON)}
        except (OSError, ValueError, TypeError):
            return set()

    def settle(self) -> set[str]:
        """Tidy up what a killed run left, or a reader found damaged; :meth:`known` then. No other may add meanwhile."""
        for place in (self.folder, self.shards.folder):
            remove_leftovers(place)
        for number in self._numbers("bin") - self._numbers():
            self._bury(number)
        settings = {"format": FORMAT, "format_version": FORMAT_VERSION, "cache": True, "recipe": self.recipe}
        try:
            found = read_settings(self.folder)
        except ConfigError:
            found = {}
        if found != settings:
            write_json(self.folder / SETTINGS, settings)
        for number in sorted(self._numbers()):
            try:
                self.tables[number] = self.shards.read_facts(number)
            except ShardError as error:
                if for_now(error):
                    raise
                self._bury(number)
        images = self._open()
        if images is None or images.shards() != self.tables.keys():
            self._write_index()
            return self.known()
        return set(images.keys())

    def _bury(self, number: int) -> None:
        """Free the space of a shard; its number stays taken, lest a run that still knows it reads something else."""
        if not self.shards.pixels(number).exists() or self.shards.pixels(number).stat().st_size:
            with written_whole(self.shards.pixels(number)) as temporary:
                temporary.touch()
        self.shards.facts(number).unlink(missing_ok=True)

    def add(self, wanted: Mapping[str, Source]) -> None:
        """Read files and keep them in new shards; which of them could not be read is noted."""
        times = {key: ctime_of(source) for key, source in wanted.items()}  # before they are read
        rows = prepared_rows(wanted.values(), self.recipe, None, **self.reading)
        number = 1 + max(self._numbers() | self._numbers("bin"), default=-1)
        made = False
        with closing(rows):
            good = self._good(rows, times)
            while (first := next(good, None)) is not None:
                self.shards.write(number, chain([first], islice(good, SHARD_SIZE - 1)))
                self.tables[number] = self.shards.read_facts(number)
                number, made = number + 1, True
        if made:
            self._write_index()
        before = self._unreadable()
        if (now := before - wanted.keys() | self.bad.keys()) != before:
            with written_whole(self.folder / UNREADABLE, durable=False) as temporary:
                temporary.write_text(json.dumps(sorted(now), indent=0))

    def _good(self, rows: Iterable[Row], times: Mapping[str, int]) -> Iterator[Row]:
        for row, (key, time) in zip(rows, times.items(), strict=True):
            if row.status == OK:
                known_by = {"cache_key": key, "ctime_ns": time}
                row.facts["provenance"] = json.dumps({**json.loads(row.facts["provenance"]), **known_by})
                self.tell(key)
                yield row
                continue
            self.bad[key] = _reason(row)
            self.tell(key, self.bad[key])

    def _write_index(self) -> None:
        pa = arrow()
        if not self.tables:
            (self.folder / LOOKUP).unlink(missing_ok=True)
            return
        index = pa.concat_tables(self.tables.values()).drop_columns(["status", "reason", "left_out"])
        found = pa.compute.extract_regex(index.column("provenance"), KEY_PATTERN)
        times = pa.compute.struct_field(found, "ctime_ns")
        times = pa.compute.if_else(pa.compute.equal(times, ""), None, times).cast("int64")  # of an earlier release
        index = index.append_column("key", pa.compute.struct_field(found, "key")).append_column("ctime_ns", times)
        with written_whole(self.folder / INDEX) as temporary:
            pa.parquet.write_table(index.drop_columns(["key", "ctime_ns"]), temporary)
        with written_whole(self.folder / LOOKUP) as temporary:
            write_lookup(index, temporary, KEPT)
            digest = checksum(temporary)
        with written_whole(self.folder / CHECKSUM) as temporary:
            temporary.write_text(digest)


def _reason(row: Row) -> tuple[str, str]:
    """Kind and text of the error of a row that is not ok."""
    return row.error or "ImageReadError", row.reason.removeprefix(f"{row.error}: ")
