"""A prepared data set of synthetic radiographs, for benchmarks of what reads it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.run import run_prepare


def noise_set(root: Path, images: int, size: int = 1280, contour: str = "rectangle") -> Path:
    """A raw set of 8 bits in ``root/set``, of smooth noise 1000 x 1250 as PNG in ``root/xrays``."""
    (root / "xrays").mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        smooth = cv2.resize(rng.normal(size=(40, 32)), (1000, 1250), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(120 + 40 * smooth + rng.normal(scale=3, size=smooth.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / "xrays" / f"{number:02d}.png"), pixels)
    config = PrepareConfig([str(root / "xrays")], str(root / "set"), size=size, contour=contour, workers=0)
    run_prepare(config, progress=False)
    return root / "set"
