"""The processes that a launcher started: each works as long as it must, and one that is gone is soon missed.

A collective operation has a time limit, and cannot tell a process that works from one that is lost. So whoever works
while others wait gives signs of life: a thread of each process meets those of the others every few seconds, in a group
of their own. The time limit then is that of a sign, however long the work.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .errors import TrainingError

PATIENCE = 600  # seconds without a sign of life, where no setting says how many
OFTEN = 10.0  # seconds between two signs at most
MAIN_FAILED = "the main process of this run failed; its own output says why"
ANOTHER_FAILED = (
    "another process of this run failed; its own output says why. What is done is kept: start all of them again"
)
GLOO_TALK = ("gloo", "connection closed", "connection reset", "socket", "broken pipe", "timed out")

T = TypeVar("T")
_groups: dict[float, tuple[Any, Any]] = {}  # by patience: the whole world when it was made, and the group


def launched() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def acquainted(patience: float = PATIENCE) -> Iterator[None]:
    """Within, the processes of a launcher know of each other: as somebody has arranged before, or else over gloo.

    Args:
        patience: seconds that one waits for another to come.

    Raises:
        TrainingError: not all of them came.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    with naming_lost_processes(patience, lambda: "at the start"):
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=patience))
        except ValueError as error:  # what a launcher sets is not there
            raise TrainingError(
                f"{launched()} processes were launched, and cannot find each other ({error}); launch them with torchrun"
            ) from error
    try:
        yield
    finally:
        part()


def part() -> None:
    """The end of what this process has to do with others over gloo, whose threads would abort it at its exit."""
    if dist.is_available() and dist.is_initialized():
        for world, group in _groups.values():
            if world is dist.group.WORLD:
                dist.destroy_process_group(group)
        if dist.get_backend() == "gloo":
            dist.destroy_process_group()
    _groups.clear()


@contextlib.contextmanager
def together(patience: float = PATIENCE, failed: str = ANOTHER_FAILED) -> Iterator[None]:
    """Within, each process does its work, however long that takes; none leaves before all have done theirs.

    All processes must enter, within ``patience`` of each other. Where there is one, it just works.

    Args:
        patience: seconds without a sign of life after which a process counts as lost.
        failed: what is raised where the work of another one failed.

    Raises:
        TrainingError: another process is gone, or its work failed; once this one has done its own.
    """
    if (group := _group(patience)) is None:
        yield
        return
    signs = _Signs(group, min(patience / 4, OFTEN))
    try:
        yield
    except BaseException as error:
        signs.end(failed=True, wait=isinstance(error, Exception))  # who is interrupted waits for nobody
        raise
    with naming_lost_processes(patience, lambda: "waiting for the others"):
        if signs.end():
            raise TrainingError(failed)


def on_main(work: Callable[[], object], patience: float = PATIENCE) -> None:
    """The main process does ``work``, the others wait for it; all of them must call this.

    Raises:
        TrainingError: on the other processes, where ``work`` failed or the main process is gone; the main process
            raises its own error.
    """
    with together(patience, MAIN_FAILED):
        if _is_main():
            work()


def from_main(work: Callable[[], T], patience: float = PATIENCE) -> T:
    """What ``work`` gives, done by the main process alone; the others wait for it, and get a copy (by pickle).

    Raises:
        TrainingError: as for :func:`on_main`.
    """
    found: list[Any] = [None]

    def keep() -> None:
        found[0] = work()

    on_main(keep, patience)
    if (group := _group(patience)) is not None:
        with naming_lost_processes(patience, lambda: "waiting for the others"):
            dist.broadcast_object_list(found, src=0, group=group)
    return found[0]


@contextlib.contextmanager
def naming_lost_processes(
    patience: float, when: Callable[[], str], again: str = "what is done is kept: start all of them again"
) -> Iterator[None]:
    """An error that means that another process is gone, or late, says so.

    Raises:
        TrainingError: in place of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = isinstance(error, getattr(dist, "DistError", ())) or any(word in text.lower() for word in GLOO_TALK)
        if launched() == 1 or not lost or isinstance(error, TrainingError):
            raise
        first = text.strip().splitlines()[0][:300]
        raise TrainingError(
            f"{when()}: another process of this run is gone or has not answered for {patience:g} s ({first}). Its own "
            f"output says why; {again}"
        ) from error


def _is_main() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _group(patience: float):
    """Of all processes, on the CPU; ``None`` where there is one. The first time all of them must come here."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    world = dist.group.WORLD
    made = _groups.get(patience)
    if made is None or made[0] is not world:
        with naming_lost_processes(patience, lambda: "at the start"):
            made = world, dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
        _groups[patience] = made
    return made[1]


class _Signs:
    """Signs of life of this process to the others, until all have ended or one has failed.

    Args:
        group: of all of them; nobody else uses it meanwhile.
        pace: seconds between two signs.
    """

    def __init__(self, group, pace: float) -> None:
        self._group, self._pace = group, pace
        self._own_end, self._failed, self._others_failed = threading.Event(), False, False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._give, name="signs of life", daemon=True)
        self._thread.start()

    def end(self, failed: bool = False, wait: bool = True) -> bool:
        """This process has done its work; wait for the others. Returns whether one of them failed.

        Raises:
            RuntimeError: one is gone; unless this one ``failed``, which is to be told.
        """
        self._failed = failed
        self._own_end.set()
        if wait:
            self._thread.join()
        if self._error is not None and not failed:
            raise self._error
        return self._others_failed

    def _give(self) -> None:
        try:
            while True:
                ended = self._own_end.wait(self._pace)
                signs = torch.tensor([int(ended), int(ended and self._failed)])
                dist.all_reduce(signs, group=self._group)
                ends, failures = signs.tolist()
                if failures or ends == dist.get_world_size(self._group):
                    self._others_failed = failures > int(ended and self._failed)
                    return
        except Exception as error:
            self._error = error
