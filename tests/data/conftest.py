"""What several tests of data share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that are read in this process, as they are read."""
    from hdxray_fast.data.prepared import worker

    found, read = [], worker.read

    def noted(source, *more):
        found.append(os.path.basename(source.path))
        return read(source, *more)

    monkeypatch.setattr(worker, "read", noted)
    return found
