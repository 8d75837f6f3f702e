"""Runs that end between two checkpoints, as if they had been killed there."""

from __future__ import annotations

from collections.abc import Callable


class Killed(Exception):
    """Raised in the middle of a run."""


def killed_at(step: int) -> Callable[[dict], None]:
    """What a run takes as ``on_step`` to end after ``step`` with :class:`Killed`."""

    def kill(line: dict) -> None:
        if line["step"] == step:
            raise Killed

    return kill
