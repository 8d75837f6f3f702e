"""A run that is told to end: SIGTERM (a scheduler's notice) or Ctrl-C, after the step at hand."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from ..progress import note


class StopNotice:
    """Whether somebody wants the run to end.

    Attributes:
        requested: after SIGTERM or Ctrl-C.
        interrupted: after Ctrl-C.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Within, signals set the attributes instead of ending the process; a second Ctrl-C ends it at once."""
        previous = {}

        def request(signum, frame):
            self.requested = True
            if signum == signal.SIGINT:
                self.interrupted = True
                signal.signal(signum, previous[signum])
                note("stopping after this step, with a checkpoint; Ctrl-C again ends at once")

        notices = [signal.SIGTERM]
        if callable(signal.getsignal(signal.SIGINT)):  # who runs in a shell's background is not meant by its Ctrl-C
            notices.append(signal.SIGINT)
        try:
            for notice in notices:
                previous[notice] = signal.signal(notice, request)
        except ValueError:  # not the main thread: the caller owns the signals
            yield
            return
        try:
            yield
        finally:
            for notice, handler in previous.items():
                signal.signal(notice, handler)
