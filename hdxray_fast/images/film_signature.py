"""512 bits that tell a film and its copies from other films, and no picture: what a model keeps of its training images.

A perceptual hash can be turned back into a blurred film. A signature holds signs of sums alone, and of half of the
picture alone: what differs between its left and its right. That is also where films differ most from each other.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from .perceptual_hash import SIDE, cosines

BITS = 512
LOWEST, HIGHEST = 3, 24  # frequencies that are summed, half cycles per side, beyond the first and up to the second
BLOCK = 2048  # thumbnails at once


def film_signature(thumbnails: np.ndarray) -> np.ndarray:
    """Signs of sums over the detail of thumbnails; the negative of a film has the opposite signs.

    Args:
        thumbnails: ``[N, 48, 48] uint8``, of :func:`hdxray_fast.images.perceptual_hash.equalised_thumbnail`.

    Returns:
        ``[N, 64] uint8``, eight bits a byte.
    """
    plain = lens(np.zeros((1, 2), np.float32))
    found = np.empty((len(thumbnails), BITS // 8), np.uint8)
    for start in range(0, len(thumbnails), BLOCK):
        part = thumbnails[start : start + BLOCK]
        found[start : start + BLOCK] = np.packbits(signs(part, plain, plain)[:, 0] > 0, axis=-1)
    return found


def signs(thumbnails: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """What a signature is the signs of, for thumbnails as they are or with their sides elsewhere.

    Args:
        thumbnails: ``[N, 48, 48] uint8``.
        down, across: ``[V, F, 48]`` each, of :func:`lens`.

    Returns:
        ``[N, V, 512] float32``, -1 or 1; 0 of a thumbnail without detail.
    """
    rows, columns, weight = _taken()
    levels = thumbnails.astype(np.float32)[:, None]
    values = (down @ levels @ across.transpose(0, 2, 1))[..., rows, columns]
    values[np.abs(values).max(-1) < 1] = 0  # rounding errors are no detail
    return np.sign((values * weight) @ _sums())


def lens(trims: np.ndarray) -> np.ndarray:
    """Matrices that take an axis of a thumbnail to its frequencies once its two ends lie elsewhere.

    Args:
        trims: ``[V, 2] float32``, shares of the side that are cut off at either end; negative ones are added.

    Returns:
        ``[V, 25, 48] float32``.
    """
    order = np.arange(SIDE)
    middle = (order + 0.5) / SIDE
    places = trims[:, :1] + middle * (1 - trims.sum(1, keepdims=True))
    amplitudes = cosines(middle, SIDE).T * np.where(order == 0, 1, 2).astype(np.float32)[:, None] / SIDE
    return (cosines(middle, HIGHEST + 1).T @ (cosines(places, SIDE) @ amplitudes)).astype(np.float32)


@lru_cache(maxsize=1)
def _taken() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertical and horizontal frequencies that are summed, ``[K]`` each, and their weights.

    Horizontal ones are odd: they see what left and right do not share. Weights grow as films differ less.
    """
    rows, columns = np.mgrid[: HIGHEST + 1, : HIGHEST + 1]
    far = np.hypot(rows, columns)
    taken = (far > LOWEST) & (far <= HIGHEST) & (columns % 2 == 1)
    return rows[taken], columns[taken], np.square(far[taken]).astype(np.float32)


@lru_cache(maxsize=1)
def _sums() -> np.ndarray:
    """``[K, 512] float32`` of -1 and 1, drawn once and for all: signatures in files must mean the same for ever."""
    count = len(_taken()[0]) * BITS
    drawn = hashlib.shake_256(b"hdxray_fast film signature 1").digest(count // 8)
    return np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(-1, BITS).astype(np.float32) * 2 - 1
