"""How a command goes on that was stopped, in the words that Ctrl-C leaves on the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..training.resuming import GOES_ON, how_it_goes_on

TRAININGS = ("pretrain", "finetune", "report train")
GO_ON = ("prepare", "merge", "stream", "probe", "embed", "evaluate", "predict", "report generate")
IF_WRITTEN = ("predict", "report generate")  # which keep nothing without --out


def how_to_go_on(command: str, settings: Mapping) -> str:
    """What becomes of the same command after it was interrupted: ``"the same command goes on"``.

    Args:
        command: its words, ``"report train"``.
        settings: what it was given.
    """
    if command in TRAININGS and os.path.exists(settings["out"]):  # stopped before, it has nothing to go on with
        told = how_it_goes_on(settings["resume"], settings["force"])
        return f"{told}, if this one had begun" if settings["force"] else told  # the folder may not be emptied yet
    if command in GO_ON and not (command in IF_WRITTEN and settings.get("out") is None):
        return GOES_ON
    return "the same command begins anew"
