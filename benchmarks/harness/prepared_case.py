"""Prepared data sets of synthetic radiographs, for benchmarks of what reads them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.run import run_prepare
from hdxray_fast.data.prepared.shards import ShardFolder, arrow, write_lookup


def noise_set(root: Path, images: int, size: int = 1280, contour: str = "rectangle") -> Path:
    """A raw set of 8 bits in ``root/set``, of smooth noise 1000 x 1250 as PNG in ``root/xrays``."""
    rng = np.random.default_rng(0)

    def noise() -> np.ndarray:
        smooth = cv2.resize(rng.normal(size=(40, 32)), (1000, 1250), interpolation=cv2.INTER_CUBIC)
        return np.clip(120 + 40 * smooth + rng.normal(scale=3, size=smooth.shape), 0, 255).astype(np.uint8)

    return _prepared(root, (noise() for _ in range(images)), size, contour, workers=0)


def chest_set(
    root: Path, images: int, size: int = 1280, contour: str = "network", workers: int = -1, kind: str = "raw"
) -> Path:
    """A set of 8 bits in ``root/set``, of drawn chests of many sizes as PNG of ``size`` px in ``root/xrays``."""
    rng = np.random.default_rng(0)
    return _prepared(root, (draw_chest(rng, size) for _ in range(images)), size, contour, workers, kind)


def repeated_set(few: Path, out: Path, images: int, shard_size: int) -> Path:
    """A set in ``out`` that holds the images of another again and again, in shards of ``shard_size``."""
    data = PreparedSet(few)
    (out / "shards").mkdir(parents=True)
    shutil.copy(few / "settings.json", out)
    rows = np.arange(images) % len(data)
    lengths = data.column("length").to_numpy()[rows]
    folder, shards = ShardFolder(out / "shards"), np.arange(images) // shard_size
    starts = np.cumsum(lengths) - lengths
    starts -= starts[shards * shard_size]
    for number in range(-(-images // shard_size)):
        with folder.pixels(number).open("wb") as stream:
            for row in rows[number * shard_size : (number + 1) * shard_size]:
                stream.write(data.encoded(int(row)))
    pa, index = arrow(), data.index.take(rows)
    for name, values in (("shard", shards), ("offset", starts)):
        place = index.column_names.index(name)
        index = index.set_column(place, name, pa.array(values, index.schema.field(name).type))
    write_lookup(index, out / "lookup.arrow")
    pa.parquet.write_table(index, out / "index.parquet")
    return out


def draw_chest(rng: np.random.Generator, size: int) -> np.ndarray:
    """A bright body with two dark lungs, blurred, and grain: ``[size, size] uint8``. For timing, never for accuracy."""
    image = np.full((size, size), 25, np.uint8)
    x, y = (rng.uniform(0.46, 0.54, 2) * size).astype(int).tolist()
    width, height = (rng.uniform((0.34, 0.4), (0.47, 0.5)) * size).astype(int).tolist()  # half axes of the body
    cv2.ellipse(image, (x, y), (width, height), 0, 0, 360, 185, -1)
    for side in (-1, 1):
        cv2.ellipse(image, (x + side * width * 9 // 20, y), (width // 3, height * 3 // 5), side * 6, 0, 360, 70, -1)
    smooth = cv2.GaussianBlur(image, (0, 0), size / 64)
    return np.clip(smooth + rng.standard_normal((size, size), np.float32) * 3, 0, 255).astype(np.uint8)


def _prepared(
    root: Path, pictures: Iterable[np.ndarray], size: int, contour: str, workers: int, kind: str = "raw"
) -> Path:
    (root / "xrays").mkdir()
    for number, pixels in enumerate(pictures):
        cv2.imwrite(str(root / "xrays" / f"{number:02d}.png"), pixels)
    config = PrepareConfig(
        [str(root / "xrays")], str(root / "set"), img_size=size, contour=contour, workers=workers, format=kind
    )
    run_prepare(config, progress=False)
    return root / "set"
