"""What brings the pixels of one image to mean 0 and deviation 1: the same for arrays and tensors, 8 bits and 16."""

from __future__ import annotations

from typing import TypeVar

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
