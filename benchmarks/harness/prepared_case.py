"""Prepared data sets of synthetic radiographs, for benchmarks of what reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.run import run_prepare


def noise_set(root: Path, images: int, size: int = 1280, contour: str = "rectangle") -> Path:
    """A raw set of 8 bits in ``root/set``, of smooth noise 1000 x 1250 as PNG in ``root/xrays``."""
    rng = np.random.default_rng(0)

    def noise() -> np.ndarray:
        smooth = cv2.resize(rng.normal(size=(40, 32)), (1000, 1250), interpolation=cv2.INTER_CUBIC)
        return np.clip(120 + 40 * smooth + rng.normal(scale=3, size=smooth.shape), 0, 255).astype(np.uint8)

    return _prepared(root, (noise() for _ in range(images)), size, contour, workers=0)


def chest_set(root: Path, images: int, size: int = 1280, contour: str = "network", workers: int = -1) -> Path:
    """A raw set of 8 bits in ``root/set``, of drawn chests of many sizes as PNG of ``size`` px in ``root/xrays``."""
    rng = np.random.default_rng(0)
    return _prepared(root, (draw_chest(rng, size) for _ in range(images)), size, contour, workers)


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


def _prepared(root: Path, pictures: Iterable[np.ndarray], size: int, contour: str, workers: int) -> Path:
    (root / "xrays").mkdir()
    for number, pixels in enumerate(pictures):
        cv2.imwrite(str(root / "xrays" / f"{number:02d}.png"), pixels)
    config = PrepareConfig([str(root / "xrays")], str(root / "set"), size=size, contour=contour, workers=workers)
    run_prepare(config, progress=False)
    return root / "set"
