"""How the learning rate moves, as shares of its peak."""

from __future__ import annotations

import math


def rise_of(steps: int, warmup: float) -> int:
    """Steps of the rise, for a share of all steps."""
    return max(1, round(warmup * steps))


def warmup_cosine(step: int, steps: int, rise: int, floor: float = 0.01) -> float:
    """Share of the peak rate at ``step`` (0-based): linear rise over ``rise`` steps, then a cosine to ``floor``."""
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_constant(step: int, steps: int, rise: int, fall: int, floor: float = 0.01) -> float:
    """Share of the peak rate at ``step`` (0-based): linear rise over ``rise`` steps, then 1, and a line to ``floor`` in
    the last ``fall``: up to these it is the same for any number of steps."""
    if step < steps - fall:
        return min(1.0, (step + 1) / rise)
    return floor + (1 - floor) * (steps - step - 1) / fall
