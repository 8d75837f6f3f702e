"""The mask ratio: how many of an image's patches are masked, inside the chest contour and outside it.

The ratios are those of arXiv 2404.17926. `csrc/common/mask_ratio.h` counts likewise, on the CPU and on a GPU; which
patches these are is for `mask_rules` (the reference) and the core's mask plan to draw.
"""

from __future__ import annotations

import math
from fractions import Fraction

RATIO_INSIDE = 0.95  # of the patches inside the contour
RATIO_OUTSIDE = 0.85  # of the others that hold any of the radiograph


def round_half_up(share: float, n: int) -> int:
    """floor(share * n + 0.5) in float64, within 0..n."""
    return min(max(math.floor(share * n + 0.5), 0), n)


def masked_patches(n_inside: int, n_outside: int, ratio_inside: float, ratio_outside: float) -> tuple[int, int]:
    """How many are masked of an image's valid patches inside the contour, and of those outside it."""
    return round_half_up(ratio_inside, n_inside), round_half_up(ratio_outside, n_outside)


def most_patches(n: int, ratio_inside: float, ratio_outside: float, predict: float) -> tuple[int, int]:
    """The most patches that any image of n patches can keep and predict, whatever its grids and the strategy.

    Of m patches, floor(ratio * m + 0.5) exceeds ratio * m - 0.5, so two strata of n patches together keep fewer than
    (1 - ratio) * n + 1, with the smaller ratio; and at most ratio * n + 1 are masked, with the larger one, of which two
    strata predict at most predict * masked + 1. The products are rounded, which makes them an integer where they nearly
    are one, never less than one they have reached: hence the hair's breadth upwards.
    """
    if n == 0:
        return 0, 0
    low, high = sorted((Fraction(ratio_inside), Fraction(ratio_outside)))
    hair = Fraction(1, 10**6)
    keep = max(math.ceil((1 - low) * n), 1)
    masked = min(math.floor(high * n + 1 + hair), n - 1)
    return keep, min(masked, math.floor(Fraction(predict) * masked + 1 + hair)) if predict > 0 else 0
