"""Worker processes with a cap on time and memory for each file: what hangs, grows or crashes costs itself alone.

This module never imports torch, so that its workers start fast and stay small.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import islice
from typing import Any, NamedTuple

import cv2

from ..errors import MissingDependencyError

AHEAD = 8  # files per worker that are read before their turn, so that a slow one holds up nobody
TIMEOUT = 60.0  # seconds that a file may take
MAX_MEMORY = 4096  # MiB that a file may take


class Failed(NamedTuple):
    """A call that did not end by itself.

    Attributes:
        error: ``"TimeoutError"``, ``"MemoryError"`` or ``"BrokenProcessPool"``.
        reason: in words.
    """

    error: str
    reason: str


class Known(NamedTuple):
    """In place of a call's arguments: its result, if that is known already."""

    result: Any


class Longer(NamedTuple):
    """In place of a call's arguments: these, and seconds of its own that the call may take."""

    arguments: tuple
    timeout: float


class Later:
    """In place of a call's arguments, :data:`LATER`: ask again once another result has been taken."""


LATER = Later()
OUT_OF_MEMORY = Failed("MemoryError", "needs more memory than one file may take")
DIED = Failed("BrokenProcessPool", "the process that read it died (out of memory, or a decoder crash)")


def worker_count(workers: int) -> int:
    """``workers``, or with -1 one for each core that this process may run on."""
    if workers >= 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def call_in_order(
    function: Callable,
    jobs: Iterable[tuple | Known | Longer | Later],
    *,
    workers: int,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    ahead: int = AHEAD,
) -> Iterator:
    """``function(*job)`` for each job, in the order of the jobs, which are asked for as workers become free.

    Args:
        function: of a module, so that worker processes can import it.
        jobs: arguments. The first, and any after the last result was taken, must not be :data:`LATER`.
        workers: processes; 0 calls in this one, without caps.
        timeout: seconds that a call may take.
        max_memory: MiB that a call may take.
        ahead: calls per worker whose results may wait for their turn.

    Returns:
        The results; :class:`Failed` for a call that took too long or too much, or whose process died.

    Raises:
        MissingDependencyError: there are to be workers, and pebble or loky is not installed.
    """
    if workers == 0:
        return (_called(function, job) for job in jobs if job is not LATER)
    return _in_workers(function, iter(jobs), workers, timeout, max_memory, ahead, *_packages())


def _called(function: Callable, job: tuple | Known | Longer) -> Any:
    if isinstance(job, Known):
        return job.result
    return function(*(job.arguments if isinstance(job, Longer) else job))


def _packages() -> tuple:
    try:
        from loky.backend import get_context
        from pebble import ProcessPool
    except ImportError as error:
        raise MissingDependencyError(
            f"reading files in worker processes needs {error.name}; install it with: pip install 'hdxray-fast[train]', "
            "or set workers to 0"
        ) from error
    return ProcessPool, get_context


def _in_workers(function, jobs, workers, timeout, max_memory, ahead, make_pool, get_context) -> Iterator:
    first = list(islice(jobs, ahead * workers))
    # loky's processes start fresh: a fork would copy the locks of running thread pools. Unlike multiprocessing's, they
    # do not run the caller's script again where it lacks an `if __name__ == "__main__"`.
    pool = make_pool(
        max(1, min(workers, len(first))),
        initializer=limit_memory,
        initargs=(max_memory,),
        context=get_context("loky"),
    )
    waiting: deque = deque()

    def schedule(some: Iterable) -> None:
        for job in some:
            if isinstance(job, Known):
                waiting.append((job, 0.0))
            elif job is not LATER:
                arguments, seconds = job if isinstance(job, Longer) else (job, timeout)
                waiting.append((pool.schedule(function, args=list(arguments), timeout=seconds), seconds))

    try:
        schedule(first)
        while waiting:
            head, seconds = waiting.popleft()
            yield head.result if isinstance(head, Known) else _outcome(head, seconds)
            schedule(islice(jobs, ahead * workers - len(waiting)))
    finally:
        pool.stop()  # kills what still runs
        pool.join()


def _outcome(future, timeout: float):
    from pebble import ProcessExpired

    try:
        return future.result()
    except FutureTimeoutError:
        return Failed("TimeoutError", f"takes longer than {timeout:g} s")
    except ProcessExpired:
        return DIED
    except MemoryError:
        return OUT_OF_MEMORY


def limit_memory(mebibytes: int) -> None:
    """Cap what this process may allocate beyond what it has; where the system cannot, nothing happens."""
    cv2.setNumThreads(1)  # the pool is the parallelism
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    cap = used + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (cap if hard < 0 else min(cap, hard), hard))
