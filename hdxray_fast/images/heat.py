"""Numbers per patch as colours over a radiograph, which stays to be seen, and the scale of these colours."""

from __future__ import annotations

import cv2
import numpy as np

ABOVE, BELOW = (255, 120, 0), (50, 150, 255)  # RGB, orange and blue: apart for every kind of colour vision
MOST = 0.6  # share of the colour where it is full
FLOOR = 0.4  # of the colour's brightness over black
UNSEEN = 0.35  # brightness of patches without a number


def heat_overlay(
    grey: np.ndarray,  # [S, S] uint8
    values: np.ndarray,  # [gh, gw] float; NaN: no number
    full: float,
    smooth: bool = False,
    unseen: float = UNSEEN,
) -> np.ndarray:
    """A picture tinted by a number per patch; ``[S, S, 3] uint8``, RGB.

    The tint follows the brightness of the picture, so that what lies under it keeps its contrast.

    Args:
        grey: the picture.
        values: orange above 0, blue below it, untinted at 0.
        full: the value of the full colour.
        smooth: between the patches, instead of patch by patch.
        unseen: brightness of the picture where there is no number; 1 leaves it alone.
    """
    seen = np.isfinite(values)
    strength = np.clip(np.where(seen, values, 0) / max(full, 1e-12), -1, 1).astype(np.float32)
    size = grey.shape[::-1]
    strength = cv2.resize(strength, size, interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST)
    seen = cv2.resize(seen.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    strength[~seen] = 0
    light = np.where(seen, 1, unseen).astype(np.float32)
    return np.rint(_tinted(grey.astype(np.float32) * light, strength)).astype(np.uint8)


def heat_scale(lowest: float, steps: int = 128) -> np.ndarray:
    """The colours of ``lowest * full`` to ``full`` over a middle grey: ``[steps, 3] uint8``, RGB."""
    strength = np.linspace(lowest, 1, steps, dtype=np.float32)
    return np.rint(_tinted(np.full(steps, 128, np.float32), strength)).astype(np.uint8)


def _tinted(grey: np.ndarray, strength: np.ndarray) -> np.ndarray:
    colour = np.where((strength >= 0)[..., None], np.float32(ABOVE), np.float32(BELOW))
    share = MOST * np.abs(strength)[..., None]
    bright = FLOOR + (1 - FLOOR) * grey[..., None] / 255
    return grey[..., None] * (1 - share) + colour * bright * share
