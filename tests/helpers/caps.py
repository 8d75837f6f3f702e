"""Limits of time and memory for tests of what could hang, or read without end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS, WAITED, MEMORY = 30, 300, 2 << 30  # of work; of the clock, on which a busy machine counts others' work too


@contextmanager
def limits() -> Iterator[None]:
    """Within, what works for more than ``SECONDS``, waits for more than ``WAITED``, or takes more than ``MEMORY`` bytes
    on top is an error."""
    resource = pytest.importorskip("resource")

    def too_long(*_):
        raise AssertionError(f"not done after {SECONDS} s of work, or {WAITED} s by the clock")

    kinds = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, WAITED)}
    memory = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, too_long) for number, _ in kinds.values()}
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, memory[1]))
    for kind, (_, seconds) in kinds.items():
        signal.setitimer(kind, seconds)
    try:
        yield
    finally:
        for kind in kinds:
            signal.setitimer(kind, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, memory)
