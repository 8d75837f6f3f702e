"""Preparing real radiographs: CPU time of a file against reading and contour alone, and bytes by format.

Needs ``$HDXRAY_TEST_DATA/hd``; the workers' caps and hand-over are not in the figures, which are of one process.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

import hdxray_fast as hx
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.pool import prepared_rows
from hdxray_fast.data.prepared.run import run_prepare
from hdxray_fast.data.prepared.shards import ShardFolder
from hdxray_fast.data.prepared.sources import Source


@pytest.fixture(scope="module")
def files() -> list[Path]:
    root = os.environ.get("HDXRAY_TEST_DATA")
    if not root or not (Path(root) / "hd").is_dir():
        pytest.skip("HDXRAY_TEST_DATA names no folder with real radiographs in hd/")
    return list_images(Path(root) / "hd")


def test_prepare(compare, files, tmp_path):
    """In turns, five files at a time, after a first round that is not kept."""
    shards = ShardFolder(tmp_path)
    recipe = PrepareConfig(["-"], str(tmp_path)).recipe()

    def prepare(chosen: list[Path]) -> float:
        before = time.process_time()
        sources = [Source(str(path)) for path in chosen]
        shards.write(0, prepared_rows(sources, recipe, b"key", workers=0, timeout=60, max_memory=4096))
        return time.process_time() - before

    def look(chosen: list[Path]) -> float:
        before = time.process_time()
        for path in chosen:
            hx.find_contour(hx.read_canvas(path))
        return time.process_time() - before

    mine, theirs = [], []
    for start in (0, *range(0, len(files), 5)):
        chosen = files[start : start + 5]
        mine.append(prepare(chosen) / len(chosen))
        theirs.append(look(chosen) / len(chosen))
    compare.values(
        "prepare a radiograph, JPEG of about 2048 px → 1280² raw with contour, CPU time",
        statistics.median(mine[1:]),
        statistics.median(theirs[1:]),
        rival_name="read_canvas and find_contour alone",
        unit="s",
        bar=0.75,
        extra={
            "of": f"{len(files)} JPEG radiographs of about 2048 px",
            "samples": mine,
            "rival_samples": theirs,
        },
    )


@pytest.mark.parametrize(("kind", "bits"), [("png", 8), ("png", 16), ("jpeg", 8)])
def test_bytes(compare, files, tmp_path, kind, bits):
    config = PrepareConfig(
        [str(path) for path in files[::4]], str(tmp_path / "set"), format=kind, bits=bits, contour="prior", workers=0
    )
    summary = run_prepare(config, progress=False).summary
    compare.values(
        f"bytes of a prepared image, 1280², {kind}, {bits} bits",
        summary["bytes"] / summary["images"] / 1024,
        1280 * 1280 * bits / 8 / 1024,
        rival_name="raw",
        unit="KiB",
        extra={"format": f"{kind} {bits}", "images": summary["images"]},
    )
