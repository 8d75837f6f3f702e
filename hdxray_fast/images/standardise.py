"""What brings the pixels of one image to mean 0 and deviation 1: the same for arrays and tensors, 8 bits and 16."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np

LEAST_DEVIATION = 1.0  # grey levels of the image's own type: whole numbers that differ at all differ by one

Number = TypeVar("Number")  # a NumPy number or array, or a tensor


def standardising(mean: Number, deviation: Number) -> tuple[Number, Number]:
    """``(scale, shift)`` for pixels of this ``mean`` and ``deviation``: ``pixel * scale + shift`` has 0 and 1.

    The deviation is floored at one grey level, so that a flat image stays finite, and one whose 10 or 12 bits lie in
    16 is as any other.

    Args:
        mean, deviation: of integer pixels, in grey levels; of NumPy or of torch, any shape.
    """
    deviation = deviation.clip(LEAST_DEVIATION, None)
    return 1.0 / deviation, -mean / deviation


def standardisation(pixels: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """``(scale, shift)`` that bring the valid patches of ``pixels [S, S]`` to mean 0 and deviation 1.

    The deviation is floored as :func:`standardising` has it.
    """
    side = pixels.shape[0] // valid.shape[0]
    mask = cv2.resize(valid.astype(np.uint8), None, fx=side, fy=side, interpolation=cv2.INTER_NEAREST)
    scale, shift = standardising(*(v[0, 0] for v in cv2.meanStdDev(pixels, mask=mask)))
    return float(scale), float(shift)
