"""Which bits of a decoded pixel hold its value, where a codestream and the DICOM header above it disagree.

PS3.5 8.1.1: nothing may be assumed of the bits above High Bit; they hold overlays, a sign, or nothing. An encoder that
was given whole 16-bit words carries them along, and a header can be wrong about depth and sign as well. What settles it
is the picture: read the wrong way, its values wrap around, and neighbouring pixels differ by thousands.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .codestream import Codestream
from .dicom_header import ImagePixel
from .tone import stored_values


@dataclass(frozen=True)
class Reading:
    """Where in a pixel its value lies."""

    bits: int
    high_bit: int  # position of the top bit
    signed: bool


def settle(
    pixels: np.ndarray, codestream: Codestream, declared: ImagePixel, flags: list[str]
) -> tuple[np.ndarray, Reading]:
    """How to read the pixels of a compressed grey frame: as the header says, unless the picture contradicts it.

    Args:
        pixels: [H, W] uint8 | uint16, decoded bit patterns.
        codestream: what the frame says of itself, with no more bits than a pixel of ``pixels`` has.
        declared: what the DICOM header says.
        flags: ``codestream_bits_differ`` and ``codestream_sign_differs`` are appended where they apply.

    Returns:
        (the pixels, widened from the codestream's bits to Bits Stored where it has fewer; how to read them).
    """
    precision, stored, high_bit = codestream.bits, declared.stored, declared.high_bit
    if precision <= high_bit:  # the codestream cannot reach High Bit: its values begin at bit 0
        stored = max(stored, precision)
        high_bit = stored - 1
    fields = [(stored, high_bit)]
    if precision > high_bit + 1 == stored:
        fields.append((precision, precision - 1))
    signs = [declared.signed]
    if codestream.signed is not None and codestream.signed != declared.signed:
        signs.append(codestream.signed)
        flags.append("codestream_sign_differs")
    readings = [Reading(*bits, signed) for signed in signs for bits in fields]
    chosen = readings[0]
    if len(readings) > 1 and not (len(signs) == 1 and _clean_above(pixels, chosen)):
        chosen = min(readings, key=lambda reading: _roughness(_extended(pixels, precision, reading), reading))
    if chosen.bits != declared.stored or precision < declared.stored:
        flags.append("codestream_bits_differ")
    return _extended(pixels, precision, chosen), chosen


def _extended(pixels: np.ndarray, precision: int, reading: Reading) -> np.ndarray:
    """Patterns of ``precision`` bits in the reading's wider field: some decoders extend the sign, others do not."""
    if precision >= reading.bits:
        return pixels
    return stored_values(pixels, precision, precision - 1, reading.signed).view(pixels.dtype)


def _clean_above(pixels: np.ndarray, reading: Reading) -> bool:
    """Whether an unsigned picture has no bit set above High Bit, so that every reading gives the same values."""
    return not reading.signed and cv2.minMaxLoc(pixels)[1] < 2 << reading.high_bit


def _roughness(pixels: np.ndarray, reading: Reading) -> int:
    """Sum of the steps between neighbours, in a regular sample of some 256 rows and the rows below them."""
    every = max(2, len(pixels) // 256)
    values = stored_values(pixels, reading.bits, reading.high_bit, reading.signed)
    rows, below = values[::every].astype(np.int64), values[1::every].astype(np.int64)
    down = below - rows[: len(below)]
    return int(np.abs(np.diff(rows, axis=1)).sum() + np.abs(down).sum())
