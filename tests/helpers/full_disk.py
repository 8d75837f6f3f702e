"""A full disk, as far as a process can tell."""

from __future__ import annotations

import contextlib
import sys

import pytest


@contextlib.contextmanager
def files_no_larger_than(size: int):
    """A full disk, as far as a process can tell: writing beyond ``size`` bytes of a file fails."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a cut .pyc would stay
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written
