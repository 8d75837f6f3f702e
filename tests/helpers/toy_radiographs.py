"""Toy radiographs for the tests of plumbing."""

from __future__ import annotations

import cv2
import numpy as np


def draw_radiograph(seed: int, height: int = 150, width: int = 130) -> np.ndarray:
    """A toy chest, [height, width] uint8: bright body, two dark lungs, noise. For plumbing, never for accuracy."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 40, np.uint8)
    cx, cy = width // 2 + int(rng.integers(-4, 5)), height // 2 + int(rng.integers(-4, 5))
    cv2.ellipse(image, (cx, cy), (width * 2 // 5, height * 9 // 20), 0, 0, 360, 190, -1)
    for side in (-1, 1):
        cv2.ellipse(image, (cx + side * width // 6, cy), (width // 9, height // 4), 0, 0, 360, 80, -1)
    noise = rng.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
