"""Words on pictures, in the letters of file names anywhere where OpenCV has them."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from ..names import drawable, escaped

_ASCII = cv2.FONT_HERSHEY_SIMPLEX
_ASCII_SIZE = 31  # px, of its letters at scale 1


def write_line(
    picture: np.ndarray, text: str, left: int, baseline: int, size: float, colour: tuple[int, int, int]
) -> None:
    """Write one line of text on ``picture``, smaller where it would not fit its width.

    OpenCV 5 brings a font with Latin, Greek, Cyrillic, Chinese, Japanese and Korean letters; before it, what is not
    ASCII becomes ``?``.

    Args:
        picture: ``[H, W, 3] uint8``, changed in place.
        left: margin at both sides, px.
        baseline: from the top, px.
        size: height of the letters with what reaches below the line, px.
        colour: in the picture's order of channels.
    """
    text = escaped(text) if _unicode_font() is not None else drawable(text)
    room = max(1, picture.shape[1] - 2 * left)
    while size > 1 and (wide := text_width(text, size)) > room:  # letters are rounded to pixels: no closed form
        size = min(size - 0.5, size * room / wide)
    size = max(1.0, size)
    if (font := _unicode_font()) is not None:
        cv2.putText(picture, text, (left, baseline), colour, font, int(size))
    else:
        stroke = max(1, round(size / 31))
        cv2.putText(picture, text, (left, baseline), _ASCII, size / _ASCII_SIZE, colour, stroke, cv2.LINE_AA)


def text_width(text: str, size: float) -> int:
    """Width in pixels of a line of letters of this size."""
    if (font := _unicode_font()) is not None:
        return cv2.getTextSize((0, 0), text, (0, 0), font, int(size))[2]
    return cv2.getTextSize(text, _ASCII, size / _ASCII_SIZE, max(1, round(size / 31)))[0][0]


@cache
def _unicode_font():
    """OpenCV's own, or ``None`` where this OpenCV has none."""
    try:
        return cv2.FontFace("uni")
    except (AttributeError, cv2.error):
        return None
