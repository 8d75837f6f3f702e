"""Pictures of what an encoder made of a radiograph's patches: numbers on the patch grid as smooth colours beside it."""

from __future__ import annotations

import cv2
import numpy as np

from .lettering import write_line

BACKGROUND, WORDS, FLAGGED = 24, (235, 235, 235), (40, 120, 255)  # BGR; orange as for flagged contours
CROSS = (255, 255, 255)
GAP = 0.012  # of a panel's width


def smooth(grid: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers on the patch grid at pixels, without those of patches that were not looked at bleeding into the others.

    Args:
        grid: ``[gh, gw]`` or ``[gh, gw, C]`` float32, NaN where nothing is known.
        size: ``(height, width)`` in pixels.

    Returns:
        The numbers ``[height, width(, C)] float32``, and how far each pixel is known, ``[height, width] float32`` 0 to
        1.
    """
    known = np.isfinite(grid).reshape(*grid.shape[:2], -1).all(-1).astype(np.float32)
    filled = np.where(np.isfinite(grid), grid, 0).astype(np.float32)
    to = {"dsize": size[::-1], "interpolation": cv2.INTER_CUBIC}
    share = cv2.resize(cv2.GaussianBlur(known, (0, 0), 0.6), **to)
    values = cv2.resize(cv2.GaussianBlur(filled, (0, 0), 0.6), **to)
    values = values / np.maximum(share if values.ndim == 2 else share[..., None], 1e-3)
    return values, np.clip(2 * cv2.resize(known, size[::-1], interpolation=cv2.INTER_LINEAR) - 0.5, 0, 1)


def colours_over(grey: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Three numbers a patch as red, green and blue over the radiograph, whose brightness stays to be seen.

    Args:
        grey: ``[H, W] uint8``.
        shares: ``[gh, gw, 3] float32`` 0 to 1, NaN where nothing is known.

    Returns:
        ``[H, W, 3] uint8`` BGR.
    """
    values, known = smooth(shares[..., ::-1], grey.shape)
    light = 0.7 + 0.3 * grey.astype(np.float32) / 255
    coloured = np.clip(values, 0, 1) * 255 * light[..., None]
    return _mixed(grey, coloured, known)


def heat_over(grey: np.ndarray, heat: np.ndarray, low: float, high: float) -> np.ndarray:
    """A number a patch as a heat map over the radiograph: nothing at ``low``, yellow at ``high``.

    Args:
        grey: ``[H, W] uint8``.
        heat: ``[gh, gw] float32``, NaN where nothing is known.

    Returns:
        ``[H, W, 3] uint8`` BGR.
    """
    values, known = smooth(heat, grey.shape)
    strength = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colour = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO).astype(np.float32)
    base = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR).astype(np.float32)
    share = (0.1 + 0.7 * strength)[..., None]
    return _mixed(grey, base * (1 - share) + colour * share, known)


def cross_at(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """A copy with a cross in a ring around the point ``(x, y)``, pixels."""
    picture, unit = picture.copy(), max(2, round(picture.shape[1] / 320))
    centre = (round(x), round(y))
    for colour, thick in (((0, 0, 0), 2 * unit), (CROSS, unit)):
        cv2.circle(picture, centre, 6 * unit, colour, thick, cv2.LINE_AA)
        cv2.drawMarker(picture, centre, colour, cv2.MARKER_CROSS, 6 * unit, max(1, thick // 2), cv2.LINE_AA)
    return picture


def titled_row(panels: dict[str, np.ndarray], caption: str, flagged: bool, reading: str) -> np.ndarray:
    """Pictures of one size side by side under their titles, a caption below; orange if ``flagged``.

    Args:
        panels: ``[H, W, 3] uint8`` BGR by title.
        reading: a line below the caption, which says how they are read.
    """
    height, width = next(iter(panels.values())).shape[:2]
    gap = np.full((height, max(2, round(GAP * width)), 3), BACKGROUND, np.uint8)
    line = max(18, round(0.055 * width))
    columns = []
    for title, panel in panels.items():
        columns += [np.concatenate([_words(title, width, line, WORDS), panel]), np.pad(gap, ((line, 0), (0, 0), (0, 0)),
                    constant_values=BACKGROUND)]  # fmt: skip
    row = np.concatenate(columns[:-1], axis=1)
    lines = (caption, FLAGGED if flagged else WORDS), (reading, WORDS)
    return np.concatenate([row, *(_words(text, row.shape[1], line, colour) for text, colour in lines)])


def _mixed(grey: np.ndarray, coloured: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Colours where they are known, elsewhere the radiograph in the dark."""
    dark = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR).astype(np.float32) * 0.35
    mixed = dark + (coloured - dark) * known[..., None]
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def _words(text: str, width: int, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """One line of text, shrunk where it would not fit."""
    strip = np.full((height, width, 3), BACKGROUND, np.uint8)
    write_line(strip, text, height // 4, round(0.68 * height), 0.7 * height, colour)
    return strip
