"""Rows that a model makes of files, on the disk while they are made: an interruption, or another process, costs none.

A part is a small Parquet file that is whole or not there. Rows that are on the disk are not held in memory: of each,
its path, its number and the stamp of its file are.
"""

from __future__ import annotations

import json
import os
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..data.film_views import NOT_FRONTAL
from ..data.quarantine import Quarantined
from ..errors import ConfigError, HDXrayError, MissingDependencyError, NotAFileError
from ..extras import install
from ..files import written_whole
from ..images.perceptual_hash import SIDE
from ..names import escaped, unescaped
from ..parquet_files import OpenParquets, open_parquet
from ..regular_files import parse_json, reason_of
from ..terminal import visible
from .embedding import Embeddings
from .parts_folder import PartsFolder
from .row_columns import (
    SETTINGS_KEY,
    UNREADABLE_KEY,
    NoFeaturesError,
    as_of_now,
    require_columns,
    require_values,
    row_schema,
)
from .shares import Share
from .stamps import GONE, Stamp
from .table_settings import SHIPPED, differ_by_version, differences, earlier_shipped

UNTOLD = ("precision",)  # settings that older tables do not tell: they are trusted to have been made so
WRITING = {"use_dictionary": False, "write_page_checksum": True}  # no two rows are alike
READING = {"buffer_size": 1 << 20, "page_checksum_verification": True}
GROUP = 4096  # rows of a row group: what is held at once
MOST_AT_ONCE = 256 << 20  # bytes that are, where rows go to another order than they lie in
AT_ONCE = 8  # files that stay open while rows are read: each opening goes through what a file says of all its rows
NO_SIZE = -2  # in place of a size that is not known


class RowParts:
    """Rows by path in the folder ``folder``, and before them those of ``table``, if there is one.

    Columns: ``path`` string (:func:`.names.escaped`), ``feature`` fixed-size list of float32, ``confidence`` float32,
    ``flagged`` bool, ``provenance_id`` string, ``kept`` int32, ``view`` string, ``size`` and ``mtime_ns`` int64 (see
    :class:`Stamp`); where it is asked for, or was there before, ``thumbnail`` (2,304 bytes). ``view`` and ``thumbnail``
    are null in rows of a table that had none. The settings that made the rows are in the schema's metadata, beside them
    the files that could not be read; rows made with other settings are never mixed in.

    It is a context: within, no other process writes the parts of this share.

    Args:
        folder: of the parts; made if needed.
        settings: JSON-able; weights, pooling, sizes.
        width: numbers in a feature.
        thumbnails: keep those of the images, to find near duplicates.
        table: a finished table.
        share: of this process among those that fill the folder.
        choose: what to do about rows of other settings, for errors.
        argument: that named the place, for errors.

    Attributes:
        bad: files that could not be read, with their stamps, by path.
        not_frontal: views of the rows that are known to show no frontal chest, by path.

    Raises:
        ConfigError: ``table`` or the parts hold rows made with other settings, cannot be read, or cannot be written.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        width: int,
        *,
        thumbnails: bool = False,
        table: Path | None = None,
        share: Share | None = None,
        choose: str = "choose another file",
        argument: str = "out",
    ) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependencyError(f"feature tables need pyarrow: {install('embed')}") from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self.folder, self.table, self.share, self.width = folder, table, share or Share(), width
        self.settings, self._choose = json.loads(json.dumps(settings)), choose
        self._argument = argument
        self.bad: dict[str, tuple[Quarantined, Stamp]] = {}
        self.not_frontal: dict[str, str] = {}
        self._number: dict[str, int] = {}  # of each path's row
        self._sizes, self._times = array("q"), array("q")  # by number
        self._sources: list[Path] = []
        self._damaged: list[Path] = []
        self._starts: list[int] = []  # number of each source's first row
        self._groups = array("q")  # number of each row group's first row
        self._first_groups: list[int] = []  # place of each source's first row group among these
        self._pictures = thumbnails
        self._place = PartsFolder(folder, self.share, argument)
        try:
            self._look()
            self._place.claim()
        except HDXrayError:
            self._place.leave()
            raise
        self._next = self._place.next_number()
        self._again = False

    def __enter__(self) -> RowParts:
        self._again = self._place.hold()
        return self

    def __exit__(self, *error: object) -> None:
        self._place.release()

    @property
    def schema(self):
        """Columns and settings."""
        return row_schema(self.settings, self.width, self._pictures)

    def __len__(self) -> int:
        return len(self._number)

    def holds(self, path: str, now: Stamp | None) -> bool:
        """Whether there is a row of the file as it is now, or a note that it cannot be read; once a share had ended,
        with all files tried, such files are tried again. Of a file that is gone, a row of what it was will do."""
        if path in self._number:
            return now is None or self._stamp(self._number[path]).is_of(path, now)
        return not self._again and path in self.bad and self.bad[path][1] == (now or GONE)

    def has_row(self, path: str) -> bool:
        """Whether there is a row of a path, whatever its file is now."""
        return path in self._number

    def append(self, rows: Embeddings, stamps: Mapping[str, Stamp | None]) -> None:
        """Put some rows on disk, whole or not at all, with what could not be read beside them.

        ``stamps`` were taken before their files were read.
        """
        if not len(rows) and not rows.quarantined:
            return
        pa, schema = self._arrow, self.schema
        flat = pa.array(np.ascontiguousarray(rows.features, np.float32).ravel())
        taken = [stamps[path] or GONE for path in rows.sources]
        pictures = []
        if self._pictures:
            pictures = [pa.array([one.tobytes() for one in rows.thumbnails], schema.field("thumbnail").type)]
        columns = [
            pa.array([escaped(source) for source in rows.sources], pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, self.width),
            pa.array(rows.confidence, pa.float32()),
            pa.array(rows.flagged, pa.bool_()),
            pa.array(rows.provenance_ids, pa.string()),
            pa.array(rows.kept, pa.int32()),
            pa.array(rows.views, pa.string()),
            pa.array([stamp.size for stamp in taken], pa.int64()),
            pa.array([stamp.mtime_ns for stamp in taken], pa.int64()),
            *pictures,
        ]
        bad = [(bad, stamps.get(bad.path) or GONE) for bad in rows.quarantined]
        told = [[escaped(one.path), one.error, escaped(one.reason), *stamp] for one, stamp in bad]
        table = pa.Table.from_arrays(columns, schema=schema)
        table = table.replace_schema_metadata({**schema.metadata, UNREADABLE_KEY: json.dumps(told).encode()})
        path = self._place.part(self._next)
        self.write(path, iter([table]), table.schema)
        self._next += 1
        self._add(path, rows.sources, taken, rows.views, bad)

    def write(self, path: Path, tables: Iterator, schema) -> None:
        """A Parquet file of some tables, whole or not at all.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            with (
                written_whole(path) as temporary,
                temporary.open("wb") as stream,
                self._parquet.ParquetWriter(stream, schema, **WRITING) as writer,
            ):
                for table in tables:
                    writer.write_table(table, row_group_size=GROUP)
        except OSError as error:
            raise ConfigError(f"{self._argument}: cannot write {path} ({error.strerror or error})") from error

    def numbers(self, order: Sequence[str], others: bool = False) -> np.ndarray:
        """The rows of some paths in their order, those that have one; ``others``: before them, those of all others."""
        rows = np.array([self._number[path] for path in order if path in self._number], np.int64)
        if not others:
            return rows
        rest = np.fromiter(self._number.values(), np.int64, len(self._number))
        return np.concatenate([np.setdiff1d(rest, rows), rows])

    def read(self, numbers: np.ndarray, columns: Sequence[str] | None = None) -> Iterator:
        """Tables of rows in the order of ``numbers``; memory for a row group or two, and for ``MOST_AT_ONCE`` bytes
        where that order is another than they lie in, for all of them are read as often as that is full."""
        if not len(numbers):
            return
        at_once, starts = GROUP, np.asarray(self._groups)
        sizes = np.diff(starts, append=len(self._times))
        groups = np.searchsorted(starts, numbers, "right") - 1
        pairs = np.unique(np.arange(len(numbers)) // at_once * len(starts) + groups)
        if sizes[pairs % len(starts)].sum() > 4 * len(self._times):  # large groups, or rows far from each other
            row = 4 * self.width + (SIDE * SIDE if self._pictures else 0) + 256
            at_once = max(at_once, MOST_AT_ONCE // row // GROUP * GROUP)
        with OpenParquets(AT_ONCE, **READING) as opened:
            for first in range(0, len(numbers), at_once):
                wanted = numbers[first : first + at_once]
                order = np.argsort(wanted, kind="stable")
                table = self._arrow.concat_tables(self._rows(wanted[order], columns, opened))
                if not np.array_equal(order, np.arange(len(order))):
                    table = table.take(self._arrow.array(np.argsort(order, kind="stable")))
                yield from (table.slice(start, GROUP) for start in range(0, len(table), GROUP))

    def _rows(self, numbers: np.ndarray, columns: Sequence[str] | None, opened: OpenParquets) -> Iterator:
        """Tables of rows whose numbers ascend; of each file the row groups that hold some of them are read."""
        starts, groups = np.asarray(self._starts), np.asarray(self._groups)
        schema = self.schema if columns is None else self._arrow.schema([self.schema.field(name) for name in columns])
        of_source = np.searchsorted(starts, numbers, "right") - 1
        for source in np.unique(of_source):
            path, written = self._sources[source], self._times[starts[source]]
            file = opened[path]
            there = [name for name in schema.names if name in file.schema.names]
            own = numbers[of_source == source]
            of_group = np.searchsorted(groups, own, "right") - 1
            for group in np.unique(of_group):
                wanted, base = own[of_group == group], groups[group]
                for batch in file.batches(GROUP, [int(group) - self._first_groups[source]], there):
                    first, last = np.searchsorted(wanted, [base, base + len(batch)])
                    if first < last:
                        rows = self._arrow.array(wanted[first:last] - base)
                        found = batch if last - first == len(batch) else batch.take(rows)
                        yield self._of_now(path, found, schema, written)
                    base += len(batch)
                    if last == len(wanted):
                        break

    def _of_now(self, path: Path, table, schema, written: int):
        try:
            return as_of_now(table, schema, written)
        except NoFeaturesError as error:
            raise self._refusal(path, error) from error

    def plan(self, files: Sequence[str], batch_size: int) -> str:
        """Tells runs apart whose shares are not of one whole."""
        digest = sha256(f"{self.share.of} {batch_size}".encode())
        for file in files:
            digest.update(b"\0" + os.fsencode(file))
        return digest.hexdigest()

    def end_share(self, plan: str) -> None:
        """Note that all files of this share have been looked at."""
        self._place.end_share(plan)

    def missing(self, plan: str) -> list[int]:
        """Shares, counted from 1, that have not ended yet."""
        return self._place.missing(plan)

    def join(self, plan: str, files: Sequence[str], work: Callable[[], None]) -> bool:
        """Once all shares have ended: do ``work``, on the rows of all of them, and remove the parts; by one process.

        Args:
            plan, files: what :meth:`plan` gave for these files, those of all shares.
            work: what is done then.

        Returns:
            Whether it was this one.

        Raises:
            ConfigError: parts of a share that has ended are gone.
        """
        return self._place.join(plan, lambda: self._on_all(files, work))

    def joined(self, plan: str, files: Sequence[str], work: Callable[[], None]) -> list[int] | None:
        """As :meth:`.PartsFolder.joined`; ``files`` as for :meth:`join`."""
        return self._place.joined(plan, lambda: self._on_all(files, work))

    def _on_all(self, files: Sequence[str], work: Callable[[], None]) -> None:
        self._look()
        self._require_all(files)
        work()

    def _require_all(self, files: Sequence[str]) -> None:
        left = [file for file in files if file not in self._number and file not in self.bad]
        if left:
            raise ConfigError(
                f"{self._argument}: {len(left)} files have no rows, such as {left[0]}: parts in {self.folder} were "
                "removed or damaged after their share had ended; start all shares again (what is there is not made "
                "again)"
            )

    def _stamp(self, number: int) -> Stamp:
        size = self._sizes[number]
        return Stamp(None if size == NO_SIZE else size, self._times[number])

    def _look(self) -> None:
        """Take in the files that are there now and were not before."""
        known = {*self._sources, *self._damaged}
        if self.table is not None and self.table.exists() and self.table not in known:
            self._read(self.table)
        for path in self._place.parts():
            if path not in known:
                self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with open_parquet(path, **READING) as file:
                metadata, names = file.schema.metadata or {}, file.schema.names
                self._require_own(path, metadata)
                require_columns(file, row_schema(self.settings, self.width, "thumbnail" in names))
                columns = [name for name in ("path", "size", "mtime_ns", "view") if name in names]
                # of a part all is looked at: what is damaged is made again
                found = file.read(columns if path == self.table else None)
                groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            require_values(found)
            written = path.stat().st_mtime_ns
            paths = [unescaped(name) for name in found.column("path").to_pylist()]
            if "mtime_ns" in names:
                pairs = (found.column(name).to_pylist() for name in ("size", "mtime_ns"))
                stamps = [Stamp(*pair) for pair in zip(*pairs, strict=True)]
            else:  # from before files were stamped
                stamps = [Stamp(None, written)] * len(paths)
            views = found.column("view").to_pylist() if "view" in names else [None] * len(paths)
            told = parse_json(metadata.get(UNREADABLE_KEY, b"[]"))
            bad = [(Quarantined(unescaped(one), kind, unescaped(why)), Stamp(*rest)) for one, kind, why, *rest in told]
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, OSError, self._arrow.ArrowException) as error:
            if path == self.table or isinstance(error, NotAFileError) or getattr(error, "errno", None) is not None:
                raise self._refusal(path, error) from error
            self._place.require_own(path)
            text = f"{path}: is damaged ({reason_of(error)}); its rows are made again"
            warnings.warn(visible(text), stacklevel=2)
            self._damaged.append(path)
            return
        self._pictures = self._pictures or "thumbnail" in names
        self._add(path, paths, stamps, views, bad, groups)

    def _refusal(self, path: Path, error: Exception) -> ConfigError:
        what = "is no table of features" if isinstance(error, NoFeaturesError) else "cannot be read as Parquet"
        return ConfigError(f"{self._argument}: {path} {what} ({reason_of(error)}); choose another file")

    def _add(
        self,
        source: Path,
        paths: Sequence[str],
        stamps: Sequence[Stamp],
        views: Sequence[str | None],
        bad: Sequence[tuple[Quarantined, Stamp]],
        groups: Sequence[int] | None = None,
    ) -> None:
        """Note a file: of two rows of a path the later one counts, or none if it cannot be read any more."""
        first = len(self._times)
        self._sources.append(source)
        self._starts.append(first)
        self._first_groups.append(len(self._groups))
        for count in [min(GROUP, len(paths) - at) for at in range(0, len(paths), GROUP)] if groups is None else groups:
            self._groups.append(first)
            first += count
        for path, stamp, view in zip(paths, stamps, views, strict=True):
            self._number[path] = len(self._times)
            self._sizes.append(NO_SIZE if stamp.size is None else stamp.size)
            self._times.append(stamp.mtime_ns)
            self.bad.pop(path, None)
            self.not_frontal.pop(path, None)
            if view in NOT_FRONTAL:
                self.not_frontal[path] = view
        for one, stamp in bad:
            self._number.pop(one.path, None)
            self.not_frontal.pop(one.path, None)
            self.bad[one.path] = one, stamp

    def _require_own(self, path: Path, metadata: Mapping[bytes, bytes]) -> None:
        found = parse_json(metadata.get(SETTINGS_KEY, b"null"))
        if not isinstance(found, dict):
            found = {}
        if found:
            found = {**{name: self.settings[name] for name in UNTOLD if name in self.settings}, **found}
        given = {name: value for name, value in self.settings.items() if name != SHIPPED}
        told = {name: value for name, value in found.items() if name != SHIPPED}
        if told != given:
            others = differences(told, given)
            alike = differ_by_version({line.partition(":")[0] for line in others})
            if self.settings.get(SHIPPED) and alike and (earlier := earlier_shipped(found)):
                remove = path if path == self.table else self.folder
                raise ConfigError(
                    f"{self._argument}: {path} holds features made with other weights, {earlier}; remove {remove} and "
                    f"give the same command again, which makes them anew, or {self._choose}"
                )
            what = f"other settings ({'; '.join(others)})" if found else "something else"
            raise ConfigError(f"{self._argument}: {path} holds rows made with {what}; {self._choose}")
