"""Warnings kept silent while a file is decoded, in whatever threads."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Silence:
    """What ``warnings.catch_warnings`` does, once for all threads.

    Its own are not safe there: of two that overlap, the last to end leaves the filters as the other had set them. Here
    the first to come sets them, and the last to go puts them back.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.caught = threading.Lock(), 0, warnings.catch_warnings()

    def begin_anew(self) -> None:
        """In a forked process no thread is left that would release the lock, or put the filters back."""
        self.lock = threading.Lock()
        if self.inside:
            self.inside = 0
            self.caught.__exit__(None, None, None)

    def begin(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")

    def end(self) -> None:
        with self.lock:
            if not self.inside:  # in a process that was forked meanwhile
                return
            self.inside -= 1
            if not self.inside:
                self.caught.__exit__(None, None, None)


_SILENCE = _Silence()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SILENCE.begin_anew)


@contextmanager
def no_warnings() -> Iterator[None]:
    """Show no warnings: those of decoders quote values from the file."""
    _SILENCE.begin()
    try:
        yield
    finally:
        _SILENCE.end()
