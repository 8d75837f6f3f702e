"""The cache of training runs: a prepared data set that grows by what a run needs and does not find in it.

An image is known by a key that changes with its file's place, size and date, and with what is computed from it. A shard
is never written twice and its number never given anew, so runs that read while another one adds are not disturbed.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, ImageReadError, TrainingError
from ...files import checksum, make_folder, remove_leftovers, written_whole
from ..quarantine import Quarantined
from .config import PrepareConfig
from .index import INDEX, LOOKUP
from .pool import prepared_rows
from .reading import Prepared, PreparedSet, PreparedSubset, decode, inside_grid
from .shards import FORMAT, FORMAT_VERSION, ShardError, ShardFolder, arrow, read_json, write_json, write_lookup, writing
from .sources import Source
from .worker import OK, Row, prepare_source

KEY_FORMAT = 2  # part of every key: raise it when what is kept changes its meaning
CHECKSUM = "lookup.sha256"  # of lookup.arrow, whose contours are used as they lie there
SHARD_SIZE = 64  # images; what a run that is killed while it reads can lose
KEPT = ("key", "source", "inside_share", "confidence", "flagged", "pixel_sha256")  # in lookup.arrow, besides
KEY_PATTERN = '"cache_key": "(?P<key>[0-9a-f]{32})"'


def cache_key(source: Source, size: int, contour: str) -> str:
    """32 hexadecimal digits that tell an image's file, as it is now, and its preparation from all others."""
    path = Path(source.path)
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
    except OSError:  # a missing file: its reader reports it, with the reason
        stamp = []
    member = [source.member] if source.member else []
    text = json.dumps([KEY_FORMAT, str(path.absolute()), stamp, size, contour, *member])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recipe_of(size: int, contour: str) -> dict:
    """What a cache holds: 8 bits, raw, whatever the view or the body part, and every file even if it is a copy."""
    plain = {"view": "any", "body_part": "any", "keep_duplicates": True, "shard_size": SHARD_SIZE}
    return {**PrepareConfig(["-"], "-", contour=contour, **plain).recipe(), "size": size}


def _for_now(error: ShardError) -> bool:
    """Whether the system refused to read, which tells nothing about the file: too many open files, a lost server."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT)


class CachedSet(PreparedSet):
    """The whole of a cache, each image checked as it is read.

    Its pixels are copied rather than mapped: nobody guards a cache, and a map of a file that is cut short ends the
    process.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        super().__init__(folder, verify)
        if "key" not in self._lookup.column_names:
            raise ConfigError(f"{self.folder}: is no cache")

    def keys(self) -> list[str]:
        """The key of each image."""
        return self.column("key").to_pylist()

    def shards(self) -> set[int]:
        """Numbers of the shards that its images lie in."""
        return set(np.unique(self._shard).tolist())

    def forget(self, row: int) -> None:
        """Have the images of a row's shard read from their files again by the next run that needs them."""
        number = int(self._shard[row])
        with suppress(OSError):
            self._shards.facts(number).unlink()
        warnings.warn(
            f"{self._shards.pixels(number)}: is damaged or gone; its images are read from their own files, and cached "
            "again by the next run",
            stacklevel=2,
        )

    def _bytes(self, number: int, start: int, length: int) -> np.ndarray:
        path, data = self._shards.pixels(number), np.empty(length, np.uint8)
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                return data[: stream.readinto(data)]
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from error


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

    images: CachedSet

    def __init__(self, folder: Path, sources: Sequence[Source], keys: Sequence[str]) -> None:
        self.files, self.keys = list(sources), list(keys)
        images = CachedSet(folder)
        super().__init__(images, self._find(images), [source.name for source in sources])
        self.require_all()

    def require_all(self) -> None:
        """Raise a ConfigError if the cache lacks some of the images."""
        lacking = int((self.rows < 0).sum())
        if lacking:
            raise ConfigError(f"{self.images.folder}: lacks {lacking} of the images of this run; start it again")

    def __getitem__(self, place: int) -> Prepared:
        row = int(self.rows[place])
        if row >= 0:
            try:
                return self.images[row]
            except ShardError as error:
                if not _for_now(error):
                    self.images.forget(row)
        source = self.files[place]
        read = prepare_source(source, self.recipe, None)
        if read.status != OK:
            raise ImageReadError(source.name, read.reason.removeprefix(f"{read.error}: "))
        if cache_key(source, self.size, self.recipe["contour"]) != self.keys[place]:
            raise ImageReadError(source.name, "the cache has lost it, and the file has changed since this run began")
        facts = read.facts
        return Prepared(
            decode(read.data, self.recipe),
            tuple(facts["valid_box"]),
            np.asarray(facts["polygon"], np.float32).reshape(-1, 2),
            inside_grid(facts["inside"], self.size),
            *(float(np.float32(facts[name])) for name in ("scale", "shift")),  # as they are kept
        )

    def subset(self, places: Sequence[int]) -> CachedImages:
        part = copy.copy(self)
        part.rows = self.rows[list(places)]
        part._names, part.files, part.keys = (
            [items[place] for place in places] for items in (self._names, self.files, self.keys)
        )
        return part

    def _find(self, images: CachedSet) -> list[int]:
        place = {key: row for row, key in enumerate(images.keys())}
        return [place.get(key, -1) for key in self.keys]

    def __setstate__(self, state: dict) -> None:  # in another process, perhaps after another run added to the cache
        self.__dict__.update(state)
        self.rows = np.asarray(self._find(self.images), np.int64)


def fill_cache(
    cache: str | Path,
    sources: Sequence[Source],
    *,
    size: int = 1280,
    contour: str = "network",
    workers: int = 0,
    on_done: Callable[[Quarantined | None], None] = lambda bad: None,
    on_wait: Callable[[Path], None] = lambda folder: None,
) -> tuple[CachedImages, list[Quarantined]]:
    """Canvas and contour of every file: from the cache, or computed now and kept there.

    A run that is killed meanwhile leaves whole shards, which the next one goes on from. Files that could not be read
    are tried again each time.

    Args:
        cache: folder; made if needed. About ``size ** 2`` bytes an image.
        sources: files to read.
        size: canvas side, pixels; each size and each method has a cache of its own below ``cache``.
        contour: method of :func:`hdxray_fast.find_contour`.
        workers: processes; 0 reads in this one, without caps on time and memory.
        on_done: called for each file, with why it was set aside if it was.
        on_wait: called with the folder if another run is adding to it, before that one's end is waited for.

    Returns:
        The images, and what is set aside, each in the order of ``sources``.

    Raises:
        ConfigError: the folder cannot be made.
        TrainingError: none of the files can be read, or the disk is full.
        MissingDependencyError: pyarrow is not installed, or there are to be workers without pebble and loky.
    """
    arrow()  # missing: said before anything else
    folder = Path(cache) / f"{size}-{contour}"
    make_folder(folder / "shards", "cache")
    keys = [cache_key(source, size, contour) for source in sources]
    # a single file stops no others, and is read before workers would be up
    adding = _Adding(folder, recipe_of(size, contour), workers if len(sources) > 1 else 0, on_done)
    wanted = dict(zip(keys, sources, strict=True))
    known = adding.known()
    if not known.issuperset(wanted):
        with writing(folder), _alone(folder, on_wait):
            known = adding.settle()
            for _ in range(sum(key in known for key in wanted)):
                on_done(None)
            adding.add({key: source for key, source in wanted.items() if key not in known})
    else:
        for _ in wanted:
            on_done(None)
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


@contextmanager
def _alone(folder: Path, on_wait: Callable[[Path], None]) -> Iterator[None]:
    """Within, no other run adds to the cache."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait(folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Adding:
    """What a run does to its cache; ``bad`` gathers error and reason by key."""

    def __init__(self, folder: Path, recipe: dict, workers: int, on_done: Callable) -> None:
        self.folder, self.recipe, self.workers, self.on_done = folder, recipe, workers, on_done
        self.shards = ShardFolder(folder / "shards")
        self.bad: dict[str, tuple[str, str]] = {}
        self.tables: dict[int, Any] = {}  # facts of all shards, by number

    def known(self) -> set[str]:
        """Keys of the images that can be read, as far as the lengths of files tell."""
        images = self._open()
        return set() if images is None else set(images.keys())

    def _open(self) -> CachedSet | None:
        """The cache as it is; ``None`` if it has no index, or one that tells of what is not there."""
        try:
            if (self.folder / CHECKSUM).read_text() != checksum(self.folder / LOOKUP):
                return None
            images = CachedSet(self.folder)
            images.check()
        except (ConfigError, ShardError, OSError, ValueError):  # ValueError: no text
            return None
        return images if images.recipe == self.recipe and images.shards() <= self._numbers() else None

    def _numbers(self, suffix: str = "parquet") -> set[int]:
        """Numbers of the shards whose facts (or pixels) are there."""
        return {int(path.stem) for path in self.shards.folder.glob(f"[0-9]*.{suffix}") if path.stem.isdecimal()}

    def settle(self) -> set[str]:
        """Tidy up what a killed run left, or a reader found damaged; :meth:`known` then. No other may add meanwhile."""
        for place in (self.folder, self.shards.folder):
            remove_leftovers(place)
        for number in self._numbers("bin") - self._numbers():
            self._bury(number)
        settings = {"format": FORMAT, "format_version": FORMAT_VERSION, "cache": True, "recipe": self.recipe}
        try:
            found = read_json(self.folder / "settings.json")
        except ConfigError:
            found = {}
        if found != settings:
            write_json(self.folder / "settings.json", settings)
        for number in sorted(self._numbers()):
            try:
                self.tables[number] = self.shards.read_facts(number)
            except ShardError as error:
                if _for_now(error):
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

    def add(self, wanted: dict[str, Source]) -> None:
        """Read files and keep them in new shards."""
        rows = prepared_rows(wanted.values(), self.recipe, None, workers=self.workers)
        number = 1 + max(self._numbers() | self._numbers("bin"), default=-1)
        made = False
        with closing(rows):
            good = self._good(rows, wanted)
            while (first := next(good, None)) is not None:
                self.shards.write(number, chain([first], islice(good, SHARD_SIZE - 1)))
                self.tables[number] = self.shards.read_facts(number)
                number, made = number + 1, True
        if made:
            self._write_index()

    def _good(self, rows: Iterable[Row], keys: Iterable[str]) -> Iterator[Row]:
        for row, key in zip(rows, keys, strict=True):
            if row.status == OK:
                row.facts["provenance"] = json.dumps({**json.loads(row.facts["provenance"]), "cache_key": key})
                self.on_done(None)
                yield row
                continue
            error, reason = row.error or "ImageReadError", row.reason.removeprefix(f"{row.error}: ")
            self.bad[key] = error, reason
            self.on_done(Quarantined(row.source, error, reason))

    def _write_index(self) -> None:
        pa = arrow()
        if not self.tables:
            (self.folder / LOOKUP).unlink(missing_ok=True)
            return
        index = pa.concat_tables(self.tables.values()).drop_columns(["status", "reason"])
        keys = pa.compute.struct_field(pa.compute.extract_regex(index.column("provenance"), KEY_PATTERN), "key")
        with written_whole(self.folder / INDEX) as temporary:
            pa.parquet.write_table(index, temporary)
        with written_whole(self.folder / LOOKUP) as temporary:
            write_lookup(index.append_column("key", keys), temporary, KEPT)
            digest = checksum(temporary)
        with written_whole(self.folder / CHECKSUM) as temporary:
            temporary.write_text(digest)
