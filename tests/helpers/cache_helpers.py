"""A run's cache of toy radiographs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from hdxray_fast.data.prepared.cache import CachedImages, fill_cache
from hdxray_fast.data.prepared.sources import Source
from hdxray_fast.data.quarantine import Quarantined


def sources_of(paths: Iterable[str | Path]) -> list[Source]:
    return [Source(str(path)) for path in paths]


def cached(paths: Iterable[str | Path], cache: Path, **options) -> tuple[CachedImages, list[Quarantined]]:
    pytest.importorskip("pyarrow")
    return fill_cache(cache, sources_of(paths), **{"size": 128, "contour": "rectangle", **options})
