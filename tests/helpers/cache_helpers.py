"""A run's cache of toy radiographs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from hdxray_fast.data.prepared.cache import CachedImages, fill_cache
from hdxray_fast.data.prepared.sources import Source
from hdxray_fast.data.quarantine import Quarantined


def sources_of(paths: Iterable[str | Path]) -> list[Source]:
    return [Source(str(path)) for path in paths]


def cached(paths: Iterable[str | Path], cache: Path, **options) -> tuple[CachedImages, list[Quarantined]]:
    pytest.importorskip("pyarrow")
    return fill_cache(cache, sources_of(paths), **{"size": 128, "contour": "rectangle", **options})


def names(items) -> list[str]:
    return [os.path.basename(getattr(item, "path", item)) for item in items]


def same_images(first, second) -> bool:
    return len(first) == len(second) and all(
        all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) for a, b in zip(first, second, strict=True)
    )
