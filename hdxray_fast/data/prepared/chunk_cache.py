"""Chunks of an object store in a folder of this machine: as many as there is room for, the latest used.

All processes of a machine share the folder. A chunk is fetched by one of them, looked through, and appears whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ...errors import ConfigError
from ...files import NEW_FILE, size_in_words, temporary_name
from ...locks import locked
from ...regular_files import open_regular
from .chunk_store import ChunkStore
from .shards import ShardError, chunk_name, writing
from .stream_index import CHUNK_NAME

LOCKS = 64  # files that keep two processes from fetching one chunk; it is that of its number
TAIL = 1 << 20  # bytes that a chunk may have after its last pixels
ATTEMPTS = 2  # at a chunk that comes damaged: what was damaged on its way is whole the second time
STALE = 600  # seconds without a byte after which a file that is under way is a killed process's
MOST_LOST = 10  # times that a chunk may be gone between its coming and its reading


class ChunkCache:
    """The chunks of a store that are here.

    Args:
        store: where they come from.
        folder: of their own, with nothing of anybody else's.
        most: bytes that chunks may take, those that are under way included.
        ends: by number, where in a chunk its last pixels end.
        check: given number and path of a chunk that has come; raises a ShardError if it is damaged.

    Raises:
        ConfigError: ``most`` is not enough for two chunks.
    """

    def __init__(
        self, store: ChunkStore, folder: Path, most: int, ends: dict[int, int], check: Callable[[int, Path], None]
    ) -> None:
        self.store, self.folder, self.most, self.ends, self._check = store, folder, most, ends, check
        largest = max(ends.values(), default=0)
        if 2 * largest > most:
            raise ConfigError(
                f"max_cache: {size_in_words(most)} hold less than two chunks of {size_in_words(largest)}; allow more"
            )

    def path(self, number: int) -> Path:
        """Where a chunk lies if it is here."""
        return self.folder / chunk_name(number)

    def open(self, number: int) -> IO[bytes]:
        """A chunk, fetched if it is not here.

        Raises:
            ShardError: it is missing in the store, damaged there, or cannot be fetched.
            TrainingError: the folder cannot be written.
        """
        for _ in range(MOST_LOST):
            with suppress(FileNotFoundError):
                stream = open_regular(self.path(number))
                self.touch([number])
                return stream
            self._fetch(number)
        raise ShardError(
            f"{self.path(number)}: was removed {MOST_LOST} times before it could be read; allow more for the cache "
            "(--max-cache)"
        )

    def bring(self, number: int) -> bool:
        """Have a chunk here before it is needed; whether it had to be fetched. Errors as for :meth:`open`."""
        if self.path(number).exists():
            self.touch([number])
            return False
        self._fetch(number)
        return True

    def touch(self, numbers: Iterable[int]) -> None:
        """These are needed: others make room before them."""
        now = time.time_ns()  # the system's own clock for files ticks in milliseconds
        for number in numbers:
            with suppress(OSError):  # it is not here
                os.utime(self.path(number), ns=(now, now))

    def forget(self, number: int) -> bool:
        """Remove a chunk, which turned out to be damaged; whether it was here."""
        try:
            self.path(number).unlink()
        except OSError:
            return False
        return True

    def _fetch(self, number: int) -> None:
        file, end = chunk_name(number), self.ends[number]
        with writing(self.folder), locked(self.folder / f".{number % LOCKS}.lock"):
            if self.path(number).exists():  # another process was faster
                return
            size = self.store.size(file)
            if not end <= size <= end + TAIL:
                raise ShardError(
                    f"{self.store.name(file)}: has {size} bytes, which does not go with the index; copy it again"
                )
            with self._room(size) as temporary:
                for attempt in range(ATTEMPTS):
                    self.store.fetch(file, temporary, size)
                    try:
                        self._check(number, temporary)
                        break
                    except ShardError:
                        if attempt == ATTEMPTS - 1:
                            raise
                temporary.replace(self.path(number))
                self.touch([number])

    @contextmanager
    def _room(self, size: int) -> Iterator[Path]:
        """A file of that size to write to, for which others have made room; what is left of it at the end goes."""
        temporary = temporary_name(self.folder / "chunk")
        while not self._make(temporary, size):
            time.sleep(0.1)  # others are under way; when they have come, they make room
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make(self, temporary: Path, size: int) -> bool:
        """Make the file if there is room, or can be made; its size counts from now on."""
        with locked(self.folder / ".room.lock"):
            taken, here = self._taken()
            for _, freed, path in sorted(here):
                if taken + size <= self.most:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                taken -= freed
            if taken + size > self.most:
                return False
            handle = os.open(temporary, NEW_FILE, 0o666)
            try:
                os.ftruncate(handle, size)
            finally:
                os.close(handle)
            return True

    def _taken(self) -> tuple[int, list[tuple[int, int, str]]]:
        """Bytes that chunks take, and of each that is here when it was last used, its size and where it lies."""
        taken, here = 0, []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.endswith(".tmp") and time.time() - status.st_mtime > STALE:
                    os.unlink(entry.path)
                elif CHUNK_NAME.fullmatch(entry.name):
                    here.append((status.st_mtime_ns, status.st_size, entry.path))
                    taken += status.st_size
                elif entry.name.endswith(".tmp"):
                    taken += status.st_size
        return taken, here
