"""How a training that was stopped goes on, in the same words wherever it is told; imports next to nothing."""

from __future__ import annotations

import os
import signal

from ..terminal import visible

STOPPED = 128 + signal.SIGTERM  # status of a command whose training was told to stop: not finished, and no error
GOES_ON = "the same command goes on"
ANEW = "--force (force=True) begins anew"


def how_it_goes_on(resume: str = "auto", force: bool = False) -> str:
    """How a training with these settings goes on after it was stopped: without those that would keep it from it."""
    hindering = [word for word, given in (("--resume never", resume == "never"), ("--force", force)) if given]
    return f"the same command without {' and '.join(hindering)} goes on" if hindering else GOES_ON


def stopped_early(out: str | os.PathLike, resume: str = "auto", force: bool = False) -> str:
    """What is said of a training that was told to stop before its last step; its settings as of
    :func:`how_it_goes_on`."""
    return f"stopped early, saved in {visible(out)}; {how_it_goes_on(resume, force)}"
