"""One process at a time: locks on files, and what is said where another holds one or the file system has none.

A lock ends with the process that holds it, however that ends: there is nothing to clear away after ``kill -9``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryFile

from .errors import ConfigError
from .files import is_running, place_of, written_whole
from .regular_files import SMALL_TEXT, read_json

LOCK, HOLDER = ".run.lock", ".run.json"
LOCKLESS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK})
ORPHANS = 10.0  # seconds that what a killed run started may hold its lock for


def _has_locks(folder: Path) -> bool:
    """Whether the file system has locks; some network file systems have not.

    It is asked with a file of its own: filelock may take a refusal for another's lock, and wait.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        with TemporaryFile(dir=folder) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in LOCKLESS
    return True


def _warn_of_no_locks(folder: Path, stacklevel: int) -> None:
    warnings.warn(
        f"{folder}: its file system has no locks, so nothing keeps another process out; start no two that write "
        "there at once",
        stacklevel=stacklevel + 1,
    )


@contextmanager
def locked(path: Path, on_busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, no other process is within for the same path; where the file system has no locks, a warning says so.

    Args:
        path: of the lock; its file stays.
        on_busy: called if another process is within, before its end is waited for; it may raise instead.
    """
    from filelock import FileLock, Timeout

    if not _has_locks(path.parent):
        _warn_of_no_locks(path.parent, stacklevel=3)  # of who enters
        yield
        return
    lock, busy = FileLock(path), False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy = True
    if busy:
        on_busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class RunLock:
    """What keeps a second run out of a folder. A process that holds it may take it again.

    Args:
        folder: of the run; made if needed.

    Raises:
        ConfigError: on taking it: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._lock = None

    def acquire(self) -> None:
        """Take it, and write down who did."""
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._take()
            try:
                with written_whole(self.folder / HOLDER, durable=False) as temporary:
                    temporary.write_text(json.dumps(_this_process()))
            except OSError:
                lock.release()
                raise
        except OSError as error:
            at = place_of(error, self.folder)
            raise ConfigError(f"out: cannot write to {at} ({error.strerror or error})") from error
        self._lock = lock

    def release(self) -> None:
        """Give it back, if it is held."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if lock.lock_counter <= 1:
            with suppress(OSError):
                (self.folder / HOLDER).unlink()
        lock.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self):
        from filelock import FileLock, Timeout

        # one object in a process: a run that failed and is still referred to must not keep out the next attempt
        lock = FileLock(self.folder.absolute() / LOCK, thread_local=False, is_singleton=True)
        if not _has_locks(self.folder):
            _warn_of_no_locks(self.folder, stacklevel=3)
            return lock
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                # a process that is gone holds no lock, but workers that it forked may, for a few seconds more
                lock.acquire(timeout=ORPHANS if self._holder_is_gone() else 0)
        except Timeout:
            raise ConfigError(
                f"out: another run is at work in {self.folder}{self._holder_in_words()}; wait for its end, or choose "
                "another folder"
            ) from None
        return lock

    def _holder(self) -> dict:
        try:
            found = read_json(self.folder / HOLDER, SMALL_TEXT)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _holder_is_gone(self) -> bool:
        found = self._holder()
        here = found.get("host") == socket.gethostname() and isinstance(found.get("process"), int)
        return here and not is_running(found["process"])

    def _holder_in_words(self) -> str:
        found = self._holder()
        if not found:
            return ""
        return f" (process {found.get('process')} on {found.get('host')}, since {found.get('since')})"


def _this_process() -> dict:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": now}
