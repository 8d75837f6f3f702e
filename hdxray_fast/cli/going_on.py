"""How a command goes on that was stopped, in the words that Ctrl-C leaves on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from ..training.resuming import RESUME

RESUMED = ("pretrain", "finetune", "report train")  # they refuse a folder that holds a run without that word
GO_ON = ("prepare", "merge", "stream", "probe", "embed", "evaluate", "predict", "report generate")
IF_WRITTEN = ("predict", "report generate")  # which keep nothing without --out


def how_to_go_on(command: str, settings: Mapping) -> str:
    """What becomes of the same command after it was interrupted: ``"the same command goes on"``.

    Args:
        command: its words, ``"report train"``.
        settings: what it was given.
    """
    if command in RESUMED:
        return "the same command goes on" if settings.get("resume") == "auto" else RESUME
    if command in GO_ON and not (command in IF_WRITTEN and settings.get("out") is None):
        return "the same command goes on"
    return "the same command begins anew"
