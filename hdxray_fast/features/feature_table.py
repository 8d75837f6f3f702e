"""A table of features on disk (Parquet) that survives being interrupted: parts while it grows, one file in the end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.quarantine import Quarantined, read_quarantine, write_quarantine
from ..errors import ConfigError, MissingDependencyError
from ..files import remove_leftovers, written_whole
from ..images.perceptual_hash import SIDE
from ..names import escaped, require_utf8, unescaped
from ..parquet_files import LIMITS, read_parquet
from ..regular_files import check_regular, parse_json, reason_of
from .embedding import Embeddings

SETTINGS_KEY = b"hdxray_fast"
PART = re.compile(r"[0-9]{8}\.parquet")
UNTOLD = ("precision",)  # settings that older tables do not tell: they are trusted to have been made so


class Stamp(NamedTuple):
    """What tells a file from the one that had its name before, as in the cache of a run.

    Size and time, and not a hash of the bytes: to hash a million radiographs takes as long as to read them again, which
    is what the table is there to save.

    Attributes:
        size: bytes; ``None`` in rows of tables from before files were stamped.
        mtime_ns: when the file was written, nanoseconds; without a size, when the table was, which the file is older
            than.
    """

    size: int | None
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Stamp | None:
        """The stamp of a file as it is now; ``None`` if there is none."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)

    def is_of(self, path: str, now: Stamp) -> bool:
        """Whether a file with the stamp ``now`` is the one that this stamp was taken of."""
        if self.size is not None:
            return self == now
        # a copy may keep the time of its original, but its entry in the folder is as new as it is
        return max(now.mtime_ns, os.stat(path).st_ctime_ns) <= self.mtime_ns


GONE = Stamp(-1, -1)  # no file's: one that was not there when stamps were taken is read again


def is_feature_table(path: Path) -> bool:
    """Whether a file is a table that this package wrote, as its own metadata say; with whatever settings."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:  # FeatureTable says so
        return False
    try:
        check_regular(path)
        with pyarrow.parquet.ParquetFile(path, **LIMITS) as file:
            return SETTINGS_KEY in (file.schema_arrow.metadata or {})
    except (OSError, ValueError, pyarrow.ArrowException):
        return False


class FeatureTable:
    """``features.parquet`` in the making, with its parts in ``features.parquet.parts/``.

    Columns: ``path`` string (:func:`.names.escaped`), ``feature`` fixed-size list of float32, ``confidence`` float32,
    ``flagged`` bool, ``provenance_id`` string, ``kept`` int32, ``size`` and ``mtime_ns`` int64 (see :class:`Stamp`);
    where it is asked for, or was there before, ``thumbnail`` (2,304 bytes, null in rows of a table that had none). The
    settings that made the rows are in the schema's metadata; rows made with others are never mixed in.

    Args:
        out: the Parquet file.
        settings: JSON-able; weights, pooling, sizes.
        width: numbers in a feature.
        thumbnails: keep those of the images, to find near duplicates.

    Attributes:
        done: stamp of the file that each row was made from, by path.

    Raises:
        ConfigError: ``out`` or its parts hold rows made with other settings, or cannot be read; or what has the name of
            the list of unreadable files is none.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, out: str | Path, settings: dict, width: int, thumbnails: bool = False) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependencyError("feature tables need pyarrow: pip install 'hdxray-fast[embed]'") from error
        require_utf8(out, "out")
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self.out = Path(out)
        self.parts = self.out.with_name(self.out.name + ".parts")
        self.unreadable = self.out.with_suffix(".unreadable.csv")
        self.settings, self.width = json.loads(json.dumps(settings)), width
        fields = [
            ("path", pyarrow.string()),
            ("feature", pyarrow.list_(pyarrow.float32(), width)),
            ("confidence", pyarrow.float32()),
            ("flagged", pyarrow.bool_()),
            ("provenance_id", pyarrow.string()),
            ("kept", pyarrow.int32()),
            ("size", pyarrow.int64()),
            ("mtime_ns", pyarrow.int64()),
        ]
        self._listed = read_quarantine(self.unreadable)
        files = self._files()
        found = [self._read(path) for path in files]
        if thumbnails or any("thumbnail" in table.column_names for table in found):
            fields.append(("thumbnail", pyarrow.binary(SIDE * SIDE)))
        self.schema = pyarrow.schema(fields, metadata={SETTINGS_KEY: json.dumps(self.settings).encode()})
        self.tables = [self._of_now(*one) for one in zip(files, found, strict=True)]
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: cannot write beside {self.out} ({error.strerror})") from error
        self.done: dict[str, Stamp] = {}
        for table in self.tables:  # of two rows of a path the later one counts
            columns = (table.column(name).to_pylist() for name in ("path", "size", "mtime_ns"))
            self.done.update((unescaped(path), Stamp(size, time)) for path, size, time in zip(*columns, strict=True))
        self._next = 1 + max((int(path.stem) for path in self._own_parts()), default=-1)

    def holds(self, path: str, now: Stamp | None) -> bool:
        """Whether there is a row of the file as it is now; of a file that is gone, a row of what it was will do."""
        return path in self.done and (now is None or self.done[path].is_of(path, now))

    def append(self, rows: Embeddings, stamps: Mapping[str, Stamp | None]) -> None:
        """Put some rows on disk, whole or not at all; ``stamps`` were taken before their files were read."""
        if not len(rows):
            return
        flat = self._arrow.array(np.ascontiguousarray(rows.features, np.float32).ravel())
        taken = [stamps[path] or GONE for path in rows.sources]
        pictures = []
        if "thumbnail" in self.schema.names:
            kind = self.schema.field("thumbnail").type
            pictures = [self._arrow.array([one.tobytes() for one in rows.thumbnails], kind)]
        table = self._arrow.Table.from_arrays(
            [
                self._arrow.array([escaped(source) for source in rows.sources], self._arrow.string()),
                self._arrow.FixedSizeListArray.from_arrays(flat, self.width),
                self._arrow.array(rows.confidence, self._arrow.float32()),
                self._arrow.array(rows.flagged),
                self._arrow.array(rows.provenance_ids),
                self._arrow.array(rows.kept, self._arrow.int32()),
                self._arrow.array([stamp.size for stamp in taken], self._arrow.int64()),
                self._arrow.array([stamp.mtime_ns for stamp in taken], self._arrow.int64()),
                *pictures,
            ],
            schema=self.schema,
        )
        self._write(table, self.parts / f"{self._next:08d}.parquet")
        self._next += 1
        self.tables.append(table)
        self.done.update(zip(rows.sources, taken, strict=True))

    def finish(self, order: list[str], unreadable: Sequence[Quarantined]) -> Path:
        """Join everything into one file, in the order given (rows of other paths first), and remove the parts.

        Without a row there is no file. Of a file that changed the last row stays, or none if it cannot be read any
        more. Files of earlier runs that were unreadable stay listed, unless they were among these.
        """
        table = self._arrow.concat_tables([self.schema.empty_table(), *self.tables])
        paths = [unescaped(path) for path in table.column("path").to_pylist()]
        last = {path: row for row, path in enumerate(paths)}
        for bad in unreadable:
            last.pop(bad.path, None)
        self.done = {path: self.done[path] for path in last}
        place = {path: number for number, path in enumerate(order)}
        rows = sorted(sorted(last.values()), key=lambda row: place.get(paths[row], -1))
        table = table.take(self._arrow.array(rows, self._arrow.int64()))
        if len(table) or self.out.exists():
            self._write(table.replace_schema_metadata(self.schema.metadata), self.out)
        unreadable = [*(row for row in self._listed if row[0] not in place), *unreadable]
        write_quarantine(self.unreadable, unreadable)
        for path in self._own_parts():
            path.unlink()
        remove_leftovers(self.parts)
        with suppress(OSError):  # somebody's own files lie there, or it is a link
            self.parts.rmdir()
        return self.out

    def _files(self) -> list[Path]:
        return ([self.out] if self.out.exists() else []) + self._own_parts()

    def _own_parts(self) -> list[Path]:
        """Parts by their numbers; what is called otherwise is somebody's own."""
        return sorted(path for path in self.parts.glob("*.parquet") if PART.fullmatch(path.name))

    def _write(self, table, path: Path) -> None:
        try:
            with written_whole(path) as temporary:
                self._parquet.write_table(table, temporary)
        except OSError as error:
            raise ConfigError(f"out: cannot write {path} ({error.strerror or error})") from error

    def _read(self, path: Path):
        try:
            table = read_parquet(path)
            found = parse_json((table.schema.metadata or {}).get(SETTINGS_KEY, b"null"))
            written = path.stat().st_mtime_ns
        except (OSError, ValueError, self._arrow.ArrowException) as error:
            raise ConfigError(
                f"out: {path} cannot be read as Parquet ({reason_of(error)}); choose another file"
            ) from error
        if found:
            found = {**{name: self.settings[name] for name in UNTOLD if name in self.settings}, **found}
        if found != self.settings:
            what = f"other settings ({'; '.join(_differences(found, self.settings))})" if found else "something else"
            raise ConfigError(f"out: {path} holds features made with {what}; choose another file, or folder of a probe")
        if "mtime_ns" not in table.column_names:  # from before files were stamped
            size, time = (self._arrow.array([value] * len(table), self._arrow.int64()) for value in (None, written))
            table = table.append_column("size", size).append_column("mtime_ns", time)
        return table

    def _of_now(self, path: Path, table):
        """A table of earlier runs in the columns of this one."""
        try:
            for name in self.schema.names:
                if name not in table.column_names:
                    table = table.append_column(name, self._arrow.nulls(len(table), self.schema.field(name).type))
            table = table.select(self.schema.names).cast(self.schema)
            if empty := [name for name in ("path", "feature", "mtime_ns") if table.column(name).null_count]:
                raise ValueError(f"rows without {empty[0]}")
        except (KeyError, ValueError, self._arrow.ArrowException) as error:
            raise ConfigError(
                f"out: {path} is no table of features ({reason_of(error)}); choose another file"
            ) from error
        return table


def read_features(path: str | Path) -> dict:
    """Columns of a finished table: ``feature [N, D] float32``; ``path``, ``provenance_id`` and the others as lists.

    Paths are those of the files, whatever bytes they hold.

    Raises:
        ConfigError: it cannot be read as Parquet.
    """
    import pyarrow

    try:
        table = read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({reason_of(error)})") from error
    try:
        columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "feature"}
        columns["path"] = [unescaped(path) for path in columns["path"]]
        feature = table.column("feature").combine_chunks()
        flat = feature.flatten().to_numpy(zero_copy_only=False)
        features = flat.reshape(len(table), feature.type.list_size).astype(np.float32)
    except (KeyError, TypeError, AttributeError, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path}: is no table of features ({reason_of(error)})") from error
    return {**columns, "feature": features}


def _differences(found: dict, given: dict) -> list[str]:
    """What differs, with both values; of weights the name alone says enough."""
    words = []
    for key in sorted({*found, *given}):
        before, now = found.get(key), given.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            words += _differences(before, now)
        elif before != now:
            words.append(key if key == "weights" else f"{key}: {before} -> {now}")
    return words
