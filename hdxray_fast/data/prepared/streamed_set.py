"""A prepared data set in an object store: its index is fetched, and its chunks when they are needed."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from ...errors import ConfigError, HDXrayError
from ...files import checksum, claim_names, written_whole
from ...locks import locked
from ...regular_files import open_regular, read_bytes
from .chunk_cache import ChunkCache
from .chunk_store import MOST_SETTINGS, ChunkStore
from .index import INDEX as TABLE
from .index import LOOKUP
from .reading import PreparedSet
from .shards import SETTINGS, ChunkFolder, ShardError, chunk_name, writing
from .stream_index import CHUNK_NAME

MAKER = "chunk-cache"
FETCHERS = 8  # chunks that a process fetches at one time; a store gives one slowly


class StreamedSet(PreparedSet):
    """What :func:`.write_stream` wrote, read from a store: the images, and all else, of a local copy of it.

    Args:
        store: where it lies.
        cache: folder of this machine; what is fetched lies in a folder of its own below it.
        most: bytes that chunks may take there.
        verify: check each image's checksum as it is read, too; chunks are checked when they come.

    Raises:
        ConfigError: there are no chunks at the address, their index is damaged, or the cache cannot be made.
        TrainingError: the disk is full.
        ShardError: the index cannot be fetched, or an image whose chunk is missing or damaged is read.
    """

    def __init__(self, store: ChunkStore, cache: str | os.PathLike, most: int, verify: bool = True) -> None:
        self._store, self._where = store, (store, cache, most, verify)
        folder = _fetched_index(store, Path(cache))
        try:
            super().__init__(folder, verify)
        except ConfigError:  # it was whole when it came: the disk has damaged it
            (folder / SETTINGS).unlink(missing_ok=True)
            super().__init__(_fetched_index(store, Path(cache)), verify)
        numbers, place = np.unique(self._shard, return_inverse=True)
        ends = np.zeros(len(numbers), np.int64)
        np.maximum.at(ends, place, self._offset + self._length)
        known = dict(zip(numbers.tolist(), ends.tolist(), strict=True))
        self._chunks = ChunkCache(store, self.folder, most, known, self._check_chunk)

    fetchers = FETCHERS

    def bring(self, path: Path) -> bool:
        return self._chunks.bring(int(path.stem.rpartition("-")[2]))

    def touch(self, rows: np.ndarray) -> None:
        self._chunks.touch(np.unique(self._shard[rows]).tolist())

    def encoded(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        try:
            return super().encoded(row, out)
        except ShardError:
            if not self._chunks.forget(int(self._shard[row])):
                raise
            return super().encoded(row, out)  # it was whole when it came: the disk has damaged it

    def check(self) -> None:
        """Nothing: a chunk is looked at when it comes."""

    def _fill(self, number: int, start: int, out: np.ndarray) -> int:
        try:
            with self._chunks.open(number) as stream:  # closed at once: an open file keeps its room when it is removed
                stream.seek(start)
                return stream.readinto(out)
        except HDXrayError:
            raise
        except OSError as error:
            path = self._chunks.path(number)
            raise ShardError(f"{path}: cannot be read ({error.strerror or error}); look at its disk") from error

    def _check_chunk(self, number: int, path: Path) -> None:
        with open_regular(path) as stream:
            for row in np.flatnonzero(self._shard == number).tolist():
                stream.seek(int(self._offset[row]))
                if zlib.crc32(stream.read(int(self._length[row]))) != int(self._crc32[row]):
                    name = self._store.name(chunk_name(number))
                    raise ShardError(f"{name}: the image of row {row} is damaged; {ChunkFolder.remake}")

    def __getstate__(self) -> tuple:
        return self._where

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)


def _fetched_index(store: ChunkStore, cache: Path) -> Path:
    """The folder below ``cache`` with settings, lookup and table of the chunks, as they are in the store now.

    Chunks of another set that was at this address before go.
    """
    folder = cache / f"chunks-{hashlib.sha256(store.address.encode()).hexdigest()[:16]}"
    settings, content = store.settings()
    sums = settings["checksums"]
    claim_names(folder, MAKER, (SETTINGS, *sums), argument="cache")
    with writing(folder), locked(folder / ".index.lock"):
        if _known(folder) == content and all((folder / name).is_file() for name in sums):
            return folder
        (folder / SETTINGS).unlink(missing_ok=True)  # until all else is there
        for path in folder.iterdir():
            if CHUNK_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
        for name in (TABLE, LOOKUP):
            _fetch_checked(store, name, folder / name, sums[name])
        with written_whole(folder / SETTINGS) as temporary:
            temporary.write_bytes(content)
    return folder


def _known(folder: Path) -> bytes:
    try:
        return read_bytes(folder / SETTINGS, MOST_SETTINGS)
    except OSError:
        return b""


def _fetch_checked(store: ChunkStore, name: str, path: Path, digest: str) -> None:
    size = store.size(name)
    with written_whole(path) as temporary:
        store.fetch(name, temporary, size)
        if checksum(temporary) != digest:
            raise ConfigError(f"data: {store.name(name)} is damaged, or of another set than settings.json; copy both")
