"""A folder of toy radiographs, and prepared data sets of it."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
from toy_radiographs import draw_radiograph

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.run import run_prepare

SIZE = 96


def make_folder(root: Path) -> Path:
    """Seven radiographs, one of them twice, one damaged, one text."""
    root.mkdir()
    for number in range(6):
        cv2.imwrite(str(root / f"{number}.png"), draw_radiograph(number))
    cv2.imwrite(str(root / "again.tiff"), draw_radiograph(3))
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:200])
    (root / "text.jpg").write_text("no picture")
    return root


def prepare(sources, out, **settings):
    settings = {"img_size": SIZE, "workers": 0, "shard_size": 4, "contour": "rectangle", **settings}
    return run_prepare(PrepareConfig([str(s) for s in sources], str(out), **settings), progress=False)


def contents(out: Path) -> dict:
    """Every file of a data set that its reader may look at."""
    kinds = (".bin", ".arrow", ".csv", ".parquet", ".json", ".png")
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix in kinds)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
