"""How a training that was stopped goes on, in the same words wherever it is told; imports next to nothing."""

from __future__ import annotations

import os
import signal

from ..terminal import visible

STOPPED = 128 + signal.SIGTERM  # status of a command whose training was told to stop: not finished, and no error
RESUME = "the same command with --resume auto goes on"


def stopped_early(out: str | os.PathLike) -> str:
    """What is said of a training that was told to stop before its last step."""
    return f"stopped early, saved in {visible(out)}; {RESUME}"
