"""Limits of time and memory for tests of what could hang, or read without end."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS, MEMORY = 30, 2 << 30


@contextmanager
def limits():
    """Within, what takes longer than ``SECONDS``, or more than ``MEMORY`` bytes on top, is an error."""
    resource = pytest.importorskip("resource")

    def too_long(*_):
        raise AssertionError(f"still waiting after {SECONDS} s")

    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, too_long)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
