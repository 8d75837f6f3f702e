"""What a radiograph looks like, in a few bytes: equal for a film and its copies, whatever encoded or windowed them.

A pixel hash tells equal pixels; a copy that was compressed anew, scaled, windowed or trimmed has others. Here the
exposed field becomes a thumbnail of equalised greys, and the thumbnail a vector of its low spatial frequencies. Other
windows hardly change equalised greys, compression and scale hardly change low frequencies.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .exposure import exposed_box, thumbnail

SIDE = 48  # of a thumbnail, pixels
ORDER = 12  # highest sum of the two frequencies of a coefficient, half cycles per side
LENGTH = (ORDER + 1) * (ORDER + 2) // 2 - 1  # of a hash, coefficients: all but the mean
BINS, SPREAD_LIMIT = 64, 2.0  # of the equalised greys; how much wider than before a grey's neighbourhood may become
FULL = 0.5  # share of a hash's length in one coefficient that int8 still holds; more is cut


def equalised_thumbnail(pixels: np.ndarray, valid_box: tuple[int, int, int, int]) -> np.ndarray:
    """A radiograph's exposed field as a small square of equalised greys.

    Padding and flat borders are left out and the aspect is not kept, so that a copy which lost some of a border looks
    the same.

    Args:
        pixels: ``[S, S]`` uint8 or uint16, a canvas.
        valid_box: ``(top, left, height, width)`` of the radiograph on it, pixels.

    Returns:
        ``[48, 48] uint8``, 0 the darkest.
    """
    top, left, height, width = valid_box
    levels, _ = thumbnail(pixels[top : top + height, left : left + width])
    top, left, height, width = exposed_box(levels)
    field = levels[top : top + height, left : left + width]
    return _equalised(cv2.resize(field, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def no_thumbnails() -> np.ndarray:
    """``[0, 48, 48] uint8``."""
    return np.empty((0, SIDE, SIDE), np.uint8)


def _equalised(levels: np.ndarray) -> np.ndarray:
    """Greys as if all were equally frequent, ``uint8``. How much greys are spread is limited, or noise on a field of
    one grey would become a picture."""
    low, high = np.percentile(levels, (1, 99))
    grey = np.clip((levels - low) / max(high - low, 1.0), 0, 1)
    share = np.histogram(grey, BINS, (0, 1))[0] / grey.size
    for _ in range(5):  # what is cut off is shared out, and cut off again
        share = np.minimum(share, SPREAD_LIMIT / BINS)
        share += (1 - share.sum()) / BINS
    below = np.concatenate([[0], np.cumsum(share)])
    return np.rint(255 * np.interp(grey, np.linspace(0, 1, BINS + 1), below)).astype(np.uint8)


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """The low spatial frequencies of thumbnails, each weighted by its frequency and the whole brought to one length.

    The negative of a film has the negative hash.

    Args:
        thumbnails: ``[N, 48, 48] uint8``, of :func:`equalised_thumbnail`.

    Returns:
        ``[N, 90] int8``.
    """
    rows, columns = frequencies()
    table = cosines((np.arange(SIDE) + 0.5) / SIDE, ORDER + 1)
    found = np.empty((len(thumbnails), LENGTH), np.int8)
    for start in range(0, len(thumbnails), 4096):  # in float32 a thumbnail is four times as large
        part = thumbnails[start : start + 4096].astype(np.float32)
        values = (table.T @ part @ table)[:, rows, columns] * np.hypot(rows, columns).astype(np.float32)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
        found[start : start + 4096] = np.rint(np.clip(values / FULL, -1, 1) * 127)
    return found


@lru_cache(maxsize=1)
def frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Vertical and horizontal frequency of each coefficient of a hash, half cycles per side; two ``[90] int64``."""
    rows, columns = np.mgrid[: ORDER + 1, : ORDER + 1]
    taken = (rows + columns <= ORDER) & (rows + columns > 0)
    return rows[taken], columns[taken]


def cosines(places: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` functions of the cosine transform at ``places`` (0 to 1, ``[...]``): ``[..., count]``."""
    order = np.arange(count, dtype=np.float32)
    return np.cos(np.float32(np.pi) * places[..., None].astype(np.float32) * order)
