"""Bytes of shards, read rather than mapped, through descriptors that stay open.

A map brings in a cold image page fault by page fault, with whatever lies around it, and a file that is cut short, or a
disk or server that fails, ends the process with SIGBUS. A read takes what it was asked for, in one call, straight to
where it is wanted, and what goes wrong is an error with a name.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from contextlib import suppress

import numpy as np

from ...regular_files import check_regular
from .shards import ChunkFolder, ShardError, ShardFolder

MOST_OPEN = 4096  # shards of a set: 10^6 images in shards of 256
TOO_MANY = (errno.EMFILE, errno.ENFILE)


class _Descriptor:
    """An open file, closed once nobody holds it."""

    def __init__(self, path: os.PathLike) -> None:
        check_regular(path)  # a pipe would be waited for
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only: images come in random order, so nothing is to be read ahead
                os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if (number := getattr(self, "number", None)) is not None:
            os.close(number)


class ShardFiles:
    """Reads parts of a data set's shards; threads and forked processes may share it.

    Args:
        shards: where they lie.
        most: descriptors kept open, the latest used; by default at most 4096 and half of what this process may have.
    """

    def __init__(self, shards: ShardFolder | ChunkFolder, most: int | None = None) -> None:
        self._shards, self._most = shards, allowed() if most is None else most
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def read(self, number: int, start: int, out: np.ndarray) -> int:
        """Fill ``out``, ``[n] uint8``, from byte ``start`` of a shard on.

        Returns:
            Bytes that were read: fewer than ``n`` only where the shard ends.

        Raises:
            ShardError: the shard cannot be opened or read; its ``__cause__`` is the system's error.
        """
        try:
            held = self._descriptor(number)  # by name until the read is done: another thread may let it go
            return read_at(held.number, start, out)
        except OSError as error:
            gone = error.errno == errno.ENOENT
            what = self._shards.remake if gone else "look at its disk or server, then start again"
            raise ShardError(
                f"{self._shards.pixels(number)}: cannot be read ({error.strerror or error}); {what}"
            ) from error

    def _descriptor(self, number: int) -> _Descriptor:
        """One that stays open as long as it is held, whatever other threads close meanwhile."""
        if self._process != os.getpid():  # forked, perhaps while another thread held the lock
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            if (found := self._open.get(number)) is not None:
                self._open.move_to_end(number)
                return found
        try:
            found = _Descriptor(self._shards.pixels(number))
        except OSError as error:
            if error.errno not in TOO_MANY or not self._open:
                raise
            with self._lock:
                self._open.clear()  # others need them more
            self._most = max(1, self._most // 2)
            found = _Descriptor(self._shards.pixels(number))
        with self._lock:
            self._open[number] = found
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return found


def read_at(descriptor: int, start: int, out: np.ndarray) -> int:
    """Fill ``out``, ``[n] uint8``, from byte ``start`` of a file on; fewer bytes only where it ends. Returns how many.

    A system may give fewer than asked for, above all over a network: it is asked again until it gives none.
    """
    view, done = memoryview(out), 0
    while done < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view[done:]], start + done)
        else:  # Windows: the place in the file is the descriptor's own, so the file is opened for one reader at a time
            with _PLACE:
                os.lseek(descriptor, start + done, os.SEEK_SET)
                data = os.read(descriptor, len(view) - done)
            count = len(data)
            view[done : done + count] = data
        if not count:
            break
        done += count
    return done


_PLACE = threading.Lock()


def allowed() -> int:
    """Descriptors that a set may keep open."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError, ValueError):
        return 512
    return MOST_OPEN if soft < 0 else max(1, min(MOST_OPEN, soft // 2))
