"""What a run reads of its cache, whatever becomes of the cache meanwhile; what it loses is read from the files again.

An image is known by its `cache_key`; how a cache is filled: :mod:`hdxray_fast.data.prepared.cache`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...errors import ConfigError, ImageReadError
from ...files import size_and_time
from ...regular_files import check_regular, open_regular
from .reading import Prepared, PreparedSet, PreparedSubset, decode, inside_grid
from .shards import ShardError, arrow
from .sources import Source
from .worker import OK, prepare_source

KEY_FORMAT = 2  # part of every key: raise it when what is kept changes its meaning
REMEMBERED = 64  # images of lost shards that a process keeps in memory: those of one shard
PLACE = ("shard", "offset", "crc32")  # what tells an image of a cache from all others, those of a later cache too


def cache_key(source: Source, size: int, contour: str, ctime_ns: int | None = None) -> str:
    """32 hexadecimal digits that tell an image's file, as it is now, and its preparation from all others.

    ``ctime_ns`` is given for a file that was changed behind its size and date, see :func:`key_now`.
    """
    path = Path(source.path)
    stamp = size_and_time(path) or ()  # a missing file: its reader reports it, with the reason
    member = [source.member] if source.member else []
    changed = [] if ctime_ns is None else [{"ctime_ns": ctime_ns}]
    text = json.dumps([KEY_FORMAT, str(path.absolute()), stamp, size, contour, *member, *changed])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def key_now(source: Source, size: int, contour: str, written: Mapping[str, int]) -> str:
    """The key of a file, another than before if its content may be another under the same size and date.

    Copying with dates kept and synchronising do that; only the time at which the system last wrote its entry tells.

    Args:
        source: the file.
        size, contour: of its preparation.
        written: that time for each key, when the image was read; those of earlier releases are not known.
    """
    key, now = cache_key(source, size, contour), ctime_of(source)
    return key if written.get(key, now) == now else cache_key(source, size, contour, now)


def ctime_of(source: Source) -> int:
    """When the system last wrote the entry of a file, nanoseconds; 0 if it is not there."""
    try:
        return Path(source.path).stat().st_ctime_ns
    except OSError:
        return 0


def for_now(error: ShardError) -> bool:
    """Whether the system refused to read, which tells nothing about the file: too many open files, a lost server."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT)


class CachedSet(PreparedSet):
    """The whole of a cache, each image checked as it is read.

    Its shards are opened anew for each image: nobody guards a cache, and what is gone of it is to be noticed.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        super().__init__(folder, verify)
        if "key" not in self._lookup.column_names:
            raise ConfigError(f"{self.folder}: is no cache")

    def keys(self) -> list[str]:
        """The key of each image."""
        return self.column("key").to_pylist()

    def written(self) -> dict[str, int]:
        """By key, when the system last wrote the entry of the file that was read; as far as it was kept."""
        if "ctime_ns" not in self._lookup.column_names:
            return {}
        told = zip(self.keys(), self.column("ctime_ns").to_pylist(), strict=True)
        return {key: time for key, time in told if time is not None}

    def shards(self) -> set[int]:
        """Numbers of the shards that its images lie in."""
        return set(np.unique(self._shard).tolist())

    def forget(self, row: int) -> None:
        """Have the images of a row's shard read from their files again by the next run that needs them.

        A shard that another run has put in its place since stays.
        """
        number = int(self._shard[row])
        if self._is_still_there(row):
            with suppress(OSError):
                self._shards.facts(number).unlink()
        warnings.warn(
            f"{self._shards.pixels(number)}: is damaged or gone; its images are read from their own files, and cached "
            "again by the next run",
            stacklevel=2,
        )

    def _is_still_there(self, row: int) -> bool:
        """Whether the facts of a row's shard are those that this set knows, or damaged."""
        pa, path = arrow(), self._shards.facts(int(self._shard[row]))
        try:
            check_regular(path)
            facts = pa.parquet.read_table(path, columns=["offset", "crc32"])
        except OSError as error:
            return error.errno is None  # pyarrow's own, for a damaged file; others are the system's
        except pa.ArrowException:
            return True
        known = int(self._offset[row]), int(self._crc32[row])
        return known in set(zip(*(column.to_pylist() for column in facts.columns), strict=True))

    def _fill(self, number: int, start: int, out: np.ndarray) -> int:
        path = self._shards.pixels(number)
        try:
            with open_regular(path) as stream:
                stream.seek(start)
                return stream.readinto(out)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from error

    def _read_index(self, columns: list[str] | None):
        """In this set's order: another run may have written the index anew since the set was opened."""
        table = super()._read_index(columns and [*dict.fromkeys([*columns, *PLACE])])
        found = zip(*(table.column(name).to_pylist() for name in PLACE), strict=True)
        row_of = {place: row for row, place in enumerate(found)}
        wanted = zip(*(self.column(name).to_pylist() for name in PLACE), strict=True)
        rows = [row_of.get(place) for place in wanted]
        if None in rows:
            raise ConfigError(
                f"{self.folder / 'index.parquet'}: lacks {rows.count(None)} of {len(rows)} images that the cache held "
                "when it was opened; open it again"
            )
        table = table.take(arrow().array(rows, "int64"))
        return table.select(columns) if columns else table


class CachedImages(PreparedSubset):
    """The images of a run, in the order of its files. What the cache loses is read from the file again.

    Args:
        folder: of the cache.
        sources: the files.
        keys: theirs.

    Raises:
        ConfigError: the cache is not there, or lacks some of them.
        ImageReadError: reading an image that neither the cache nor its file gives any more.
    """

    images: CachedSet | None  # none: in another process, if the cache is gone there

    def __init__(self, folder: Path, sources: Sequence[Source], keys: Sequence[str]) -> None:
        self.folder, self.files, self.keys = folder, list(sources), list(keys)
        images = CachedSet(folder)
        self._recipe = images.recipe
        self._remembered: dict[str, Prepared] = {}  # by key: what was read of the files again
        super().__init__(images, self._find(images), [source.name for source in sources])
        self.require_all()

    @property
    def size(self) -> int:
        return int(self._recipe["size"])

    @property
    def recipe(self) -> dict:
        return self._recipe

    def key(self, place: int) -> str:
        return self.keys[place]

    def require_all(self) -> None:
        """Raise a ConfigError if the cache lacks some of the images."""
        lacking = int((self.rows < 0).sum())
        if lacking:
            raise ConfigError(f"{self.folder}: lacks {lacking} of the images of this run; start it again")

    def read(self, place: int, out: np.ndarray | None = None) -> Prepared:
        key, row = self.keys[place], int(self.rows[place])
        if key in self._remembered:
            return _in(out, self._remembered[key])
        lost = row < 0
        if not lost:
            try:
                return self.images.read(row, out)
            except ShardError as error:
                lost = not for_now(error)
            if lost:
                self.images.forget(row)
        image = self._read_again(place)
        if lost and len(self._remembered) < REMEMBERED:
            self._remembered[key] = image
        return _in(out, image)

    def _read_again(self, place: int) -> Prepared:
        """From the file. Its pixels cannot be written to."""
        source = self.files[place]
        read = prepare_source(source, self.recipe, None)
        if read.status != OK:
            raise ImageReadError(source.name, read.reason.removeprefix(f"{read.error}: "))
        what = source, self.size, self.recipe["contour"]
        if self.keys[place] not in (cache_key(*what), cache_key(*what, ctime_of(source))):
            raise ImageReadError(source.name, "the cache has lost it, and the file has changed since this run began")
        facts = read.facts
        return Prepared(
            decode(read.data, self.recipe),
            tuple(facts["valid_box"]),
            np.asarray(facts["polygon"], np.float32).reshape(-1, 2),
            inside_grid(facts["inside"], self.size),
            *(float(np.float32(facts[name])) for name in ("scale", "shift")),  # as they are kept
        )

    def column(self, name: str):
        self.require_all()
        return super().column(name)

    def hashes(self) -> list[str]:
        self.require_all()
        return super().hashes()

    def shares_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        self.require_all()
        return super().shares_by_image()

    def subset(self, places: Sequence[int]) -> CachedImages:
        part = object.__new__(CachedImages)
        part.__dict__.update(self.__dict__)
        part.rows = self.rows[list(places)]
        part._names, part.files, part.keys = (
            [items[place] for place in places] for items in (self._names, self.files, self.keys)
        )
        return part

    def _find(self, images: CachedSet) -> list[int]:
        place = {key: row for row, key in enumerate(images.keys())}
        return [place.get(key, -1) for key in self.keys]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "images": None, "rows": None, "_remembered": {}}

    def __setstate__(self, state: dict) -> None:
        """In another process, perhaps after another run added to the cache, or removed it."""
        self.__dict__.update(state)
        self.rows = np.full(len(self.keys), -1, np.int64)
        try:
            images = CachedSet(self.folder)
            if images.recipe != self._recipe:
                raise ConfigError(f"{self.folder}: is another cache than when this run began")
        except ConfigError as error:
            warnings.warn(f"{error}; the images of this run are read from their own files", stacklevel=2)
            return
        self.images, self.rows = images, np.asarray(self._find(images), np.int64)


def _in(out: np.ndarray | None, image: Prepared) -> Prepared:
    """The same image with its pixels in ``out``, if given."""
    if out is None:
        return image
    np.copyto(out, image.pixels, casting="no")
    return image._replace(pixels=out)
