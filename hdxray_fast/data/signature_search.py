"""Films whose signatures a model keeps, found again by the thumbnails of their copies.

Of the film that was trained on 512 bits are left, so its copy does the moving: each thumbnail is tried with its sides
trimmed and widened, as copies are that lost some of a border.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..images.film_signature import BITS, lens, signs

# Correlation of signs from which two are one film, as they lie and after moves, of which chance has its pick:
# docs/prepare.md has what they were chosen by
SAME_SIGNS, SAME_MOVED = 0.75, 0.78
HOPEFUL, FOLLOWED = 64, 4  # most alike ones that a thumbnail is moved for, and those that are followed to the end
WORTH = 0.5  # after coarse moves, below which none is followed
STEPS = (0.03, 0.015, 0.0075)  # by which each side moves, shares of it
BLOCK = 512  # thumbnails at once


def found_among(thumbnails: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Which films are copies of one whose signature is known.

    Args:
        thumbnails: ``[M, 48, 48] uint8``, of :func:`hdxray_fast.images.perceptual_hash.equalised_thumbnail`.
        signatures: ``[N, 64] uint8``, of :func:`hdxray_fast.images.film_signature.film_signature`.

    Returns:
        ``[M] bool``.
    """
    found = np.zeros(len(thumbnails), bool)
    if not len(thumbnails) or not len(signatures):
        return found
    known = np.unpackbits(signatures, axis=1).astype(np.float32) * 2 - 1
    plain = lens(np.zeros((1, 2), np.float32))
    for start in range(0, len(thumbnails), BLOCK):
        part = thumbnails[start : start + BLOCK]
        alike = np.abs(signs(part, plain, plain)[:, 0] @ known.T) / BITS
        for row, values in enumerate(alike):
            found[start + row] = values.max() >= SAME_SIGNS or _moved_is_among(part[row], known, values)
    return found


def _moved_is_among(thumbnail: np.ndarray, known: np.ndarray, alike: np.ndarray) -> bool:
    """Whether some move of a thumbnail has the signs of a known film: coarse moves for many, fine ones for a few."""
    hopeful = np.argsort(-alike, kind="stable")[:HOPEFUL]
    best, places = _best_moves(thumbnail, known[hopeful], np.zeros(4, np.float32), STEPS[0])
    for one in np.argsort(-best, kind="stable")[:FOLLOWED]:
        score, place = best[one], places[one]
        for step in STEPS[1:]:
            if not WORTH <= score < SAME_MOVED:
                break
            (score,), (place,) = _best_moves(thumbnail, known[hopeful[one]][None], place, step)
        if score >= SAME_MOVED:
            return True
    return False


def _best_moves(
    thumbnail: np.ndarray, known: np.ndarray, place: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each known film the best agreement over all moves by one step about ``place``, ``[K]``, and where.

    A place is what is cut off above, below, left and right: ``[K, 4]``.
    """
    moves = np.array(list(itertools.product((-step, 0.0, step), repeat=2)), np.float32)
    down, across = place[:2] + moves, place[2:] + moves
    pairs = np.array(list(itertools.product(range(len(moves)), repeat=2)))
    rows, columns = pairs.T
    moved = signs(thumbnail[None], lens(down)[rows], lens(across)[columns])[0]
    alike = np.abs(moved @ known.T) / BITS
    at = alike.argmax(0)
    return alike.max(0), np.concatenate([down[rows[at]], across[columns[at]]], axis=1)
