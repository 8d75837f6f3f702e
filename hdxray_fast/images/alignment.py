"""A second look at two thumbnails: moved and stretched onto each other, how much alike are they in detail?

All chest films look alike at first sight, and a film that lost 3 % of a side no longer lies where it did. So pairs are
brought onto each other by shift and stretch along either axis, before their detail is compared. A thumbnail is a
sum of cosines here: it can be looked at between its pixels, and so can its slopes.
"""

from __future__ import annotations

import numpy as np

from .perceptual_hash import SIDE, cosines

MARGIN = 0.06  # of each side that is not compared: what a copy may have lost there
REACH = np.array([0.05, 0.12, 0.05, 0.12], np.float32)  # largest shift (of a side) and stretch, rows then columns
# Frequencies, steps, and the match below which finer ones are not looked at: coarse ones find the place, fine ones
# settle it. Films that lost 3 % of every side match by 0.92, 0.85 and 0.9 at least.
STAGES = ((10, 4, 0.87), (16, 3, 0.8), (32, 2, 0.7))
BLOCK = 512  # pairs at once


def likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much alike pairs of films are once they lie on each other, whatever their polarity.

    Args:
        first, second: ``[P, 48, 48] uint8``, thumbnails of
            :func:`hdxray_fast.images.perceptual_hash.equalised_thumbnail`.

    Returns:
        ``[P] float32``: correlation of their detail, up to 1 for a film and its copy, 0 where coarse detail
        differs already.
    """
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), BLOCK):
        part = slice(start, start + BLOCK)
        found[part] = _likeness(first[part], second[part])
    return found


def _likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    place = np.zeros((len(first), 4), np.float32)  # shift and stretch about the middle, rows then columns
    found, open_ = np.zeros(len(first), np.float32), np.arange(len(first))
    sign = None
    for count, steps, least in (*STAGES, (SIDE, 0, -1.0)):
        if not len(open_):
            break
        moving = _spectrum(second[open_], count)
        target = _unit(_look(_spectrum(first[open_], count), np.zeros((1, 4), np.float32)))
        for _ in range(steps):
            seen, slopes = _look_and_slopes(moving, place)
            length = _deviation(seen)
            seen = _unit(seen)
            match = (seen * target).sum(1)
            if sign is None:  # a film and its negative: one of them is turned over
                sign = np.where(match < 0, -1, 1).astype(np.float32)
            turned = (sign / length)[:, None, None]
            step = _step(seen * sign[:, None], slopes * turned, target, match * sign)
            place = np.clip(place + step, -REACH, REACH)
        match = (_unit(_look(moving, place)) * target).sum(1) * sign
        hopeful = match >= least
        open_, place, sign, match = open_[hopeful], place[hopeful], sign[hopeful], match[hopeful]
    else:
        found[open_] = match
    return found


def _step(seen: np.ndarray, slopes: np.ndarray, target: np.ndarray, match: np.ndarray) -> np.ndarray:
    """A Gauss-Newton step on the correlation, ``[P, 4]``: brightness and contrast are no part of the difference."""
    slopes = slopes - slopes.mean(1, keepdims=True)
    slopes = slopes - seen[..., None] * np.einsum("pn,pnk->pk", seen, slopes)[:, None]
    normal = slopes.transpose(0, 2, 1) @ slopes
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9
    rest = target - match[:, None] * seen
    right = slopes.transpose(0, 2, 1) @ rest[..., None]
    return np.linalg.solve(normal + damping * np.eye(4, dtype=np.float32), right)[..., 0]


def _look(spectrum: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Thumbnails seen at moved places, ``[P, n * n]``."""
    _, down, across = _grid(spectrum, place)
    count = spectrum.shape[-1]
    return (cosines(down, count) @ spectrum @ cosines(across, count).transpose(0, 2, 1)).reshape(len(spectrum), -1)


def _look_and_slopes(spectrum: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`_look`, and the slopes along the four moves, ``[P, n * n, 4]``."""
    grid, down, across = _grid(spectrum, place)
    count = spectrum.shape[-1]
    rows, half = cosines(down, count), spectrum @ cosines(across, count).transpose(0, 2, 1)
    along_rows = _sines(down, count) @ half
    along_columns = rows @ (spectrum @ _sines(across, count).transpose(0, 2, 1))
    moves = (along_rows, along_rows * grid[:, None], along_columns, along_columns * grid)
    return (rows @ half).reshape(len(spectrum), -1), np.stack(moves, -1).reshape(len(spectrum), -1, 4)


def _grid(spectrum: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where is looked: about the middle and unmoved ``[n]``, and moved, down and across, ``[P, n]``."""
    count = spectrum.shape[-1]
    grid = ((np.arange(count, dtype=np.float32) + 0.5) / count - 0.5) * (1 - 2 * MARGIN)
    return grid, *(0.5 + grid * (1 + place[:, k + 1, None]) + place[:, k, None] for k in (0, 2))


def _sines(places: np.ndarray, count: int) -> np.ndarray:
    """Derivatives of :func:`cosines`."""
    order = np.arange(count, dtype=np.float32) * np.float32(np.pi)
    return -order * np.sin(places[..., None] * order)


def _deviation(values: np.ndarray) -> np.ndarray:
    return np.linalg.norm(values - values.mean(1, keepdims=True), axis=1) + 1e-6


def _unit(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(1, keepdims=True)) / _deviation(values)[:, None]


def _spectrum(thumbnails: np.ndarray, count: int) -> np.ndarray:
    """``[P, count, count] float32``: amplitudes of the first cosines, weighted by frequency so that detail counts."""
    order = np.arange(SIDE)
    table = (cosines((order + 0.5) / SIDE, SIDE) * np.where(order == 0, 1, 2).astype(np.float32) / SIDE)[:, :count]
    weight = np.hypot(order[:count, None], order[:count]).astype(np.float32)
    return (table.T @ (thumbnails.astype(np.float32) / 255) @ table) * weight
