"""What the picture itself shows about how it was taken: the exposed field, and signs of a wrong polarity tag.

Both are observations for the record. Nothing is flipped, and nothing is cut unless ``crop="exposed"`` asks for it.
"""

from __future__ import annotations

import cv2
import numpy as np

THUMBNAIL = 214  # long side, pixels
FLAT_RANGE = 5.0  # a row or column whose middle 96 % of pixels lie within this many 8-bit levels shows nothing
SMALLEST_SHARE = 0.25  # of rows or columns that must remain; a smaller box is a mistake of ours


def thumbnail(brightness: np.ndarray) -> tuple[np.ndarray, int]:
    """A small copy for looking at: averages over blocks of k x k pixels, which is OpenCV's fast case.

    Args:
        brightness: [H, W] uint8 | uint16.

    Returns:
        (float32 8-bit levels [H // k, W // k], k).
    """
    rows, columns = brightness.shape
    factor = max(1, min(-(-max(rows, columns) // THUMBNAIL), rows, columns))
    height, width = rows // factor, columns // factor
    if factor > 1:
        skip = max(step for step in (1, 2, 3) if factor % step == 0)  # some of the rows are enough to look at
        whole = brightness[: height * factor : skip, : width * factor]
        brightness = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    levels = brightness.astype(np.float32)
    return (levels / 257.0 if brightness.dtype == np.uint16 else levels), factor


def exposed_box(levels: np.ndarray) -> tuple[int, int, int, int]:
    """The field inside flat borders (collimator blades, shutters, black film edge), in pixels of ``levels``.

    Rows and columns are dropped from the edges only while they show nothing, one pixel is given back on each side that
    was cut, and a box that keeps too little is refused: losing anatomy is worse than keeping a border.

    Args:
        levels: [h, w] float32, 8-bit levels.

    Returns:
        (top, left, height, width).
    """
    height, width = levels.shape
    top, bottom, left, right = 0, height, 0, width
    while True:
        before = (top, bottom, left, right)
        rows = _shows_something(levels[top:bottom, left:right], axis=1)
        if not rows.any():
            return 0, 0, height, width
        top, bottom = top + int(rows.argmax()), bottom - int(rows[::-1].argmax())
        columns = _shows_something(levels[top:bottom, left:right], axis=0)
        if not columns.any():
            return 0, 0, height, width
        left, right = left + int(columns.argmax()), right - int(columns[::-1].argmax())
        if before == (top, bottom, left, right):
            break
    top, left, bottom, right = max(0, top - 1), max(0, left - 1), min(height, bottom + 1), min(width, right + 1)
    if bottom - top < SMALLEST_SHARE * height or right - left < SMALLEST_SHARE * width:
        return 0, 0, height, width
    return top, left, bottom - top, right - left


def _shows_something(levels: np.ndarray, axis: int) -> np.ndarray:
    ordered = np.sort(levels, axis=axis)
    count = ordered.shape[axis]
    skip = int(0.02 * count)  # a marker letter or dust is no picture
    low, high = ordered.take(skip, axis), ordered.take(count - 1 - skip, axis)
    return high - low > FLAT_RANGE


def looks_inverted(levels: np.ndarray) -> bool:
    """Whether a frontal chest would make more sense as a negative: surroundings brighter than the mediastinum.

    Compares the strip of the mediastinum with the columns of the lungs and with the two upper corners (air beside the
    neck). On 599 public frontal radiographs and their negatives docs/canvas.md gives the error rates.

    Args:
        levels: [h, w] float32, 8-bit levels.
    """
    height, width = levels.shape
    if min(height, width) < 32:
        return False

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        part = levels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
        return float(part.mean())

    mediastinum = mean(0.30, 0.75, 0.44, 0.56)
    lungs = (mean(0.25, 0.60, 0.20, 0.36) + mean(0.25, 0.60, 0.64, 0.80)) / 2
    corners = (mean(0.0, 0.08, 0.0, 0.12) + mean(0.0, 0.08, 0.88, 1.0)) / 2
    return (mediastinum - lungs) + 0.5 * (mediastinum - corners) < 0
