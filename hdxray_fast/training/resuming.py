"""How a training that was stopped goes on, in the same words wherever it is told; imports next to nothing."""

from __future__ import annotations

import os

from ..terminal import visible

RESUME = "the same command with --resume auto goes on"


def stopped_early(out: str | os.PathLike) -> str:
    """What is said of a training that was told to stop before its last step."""
    return f"stopped early, saved in {visible(out)}; {RESUME}"
