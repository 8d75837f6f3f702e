"""Worker processes with a cap on time and memory for each file: what hangs, grows or crashes costs itself alone.

Every command reads files by this pool, with the same two settings: ``timeout`` and ``max_memory``.

This module never imports torch, so that its workers start fast and stay small.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import islice
from typing import Any, NamedTuple

import cv2

from ..errors import ConfigError, MissingDependencyError, TrainingError
from ..extras import install
from .memory import MIB, memory_limit, resident_memory
from .worker_pool import Call, WorkerPool

AHEAD = 8  # files per worker that are read before their turn, so that a slow one holds up nobody
TIMEOUT = 60.0  # seconds that a file may take
MAX_MEMORY = 4096  # MiB that a file may take
LEAST_MEMORY = 256  # MiB, the least cap that can be asked for
ENOUGH = 1024  # MiB that any usual file is read in: workers are left out before their share of the memory is less
OF_A_WORKER = 128  # MiB that a worker takes before it reads anything
MOST_BREAKS = 3  # of the pool of workers, in succession, for which no file is the reason


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
    """In place of a call's arguments, :data:`LATER`: ask again once a call has ended, or its result been taken."""


LATER = Later()
DIED = Failed("BrokenProcessPool", "the process that read it died (out of memory, or a decoder crash)")


def out_of_memory(mebibytes: int | None = None) -> Failed:
    """What a file ends in that needs more; left out, than this worker's cap."""
    cap = _cap if mebibytes is None else mebibytes
    return Failed("MemoryError", "needs more memory than one file may take" + (f" ({cap} MiB)" if cap else ""))


_cap = 0  # MiB; 0 in processes without one


def check_caps(timeout: float, max_memory: int) -> None:
    """Raise a ConfigError for caps that no file could keep to."""
    if not timeout > 0:
        raise ConfigError(f"timeout: got {timeout:g}, accepted are seconds above 0")
    if not max_memory >= LEAST_MEMORY:
        raise ConfigError(f"max_memory: got {max_memory}, accepted are whole numbers from {LEAST_MEMORY} on")


def within_memory(workers: int, max_memory: int, limit: int | None, taken: int = 0, others: int = 0) -> tuple[int, int]:
    """How many workers there can be, and what a file may take in each, so that all together stay within the memory.

    Caps are lowered first, to ``ENOUGH``, then workers are left out: a machine with many cores and little memory reads
    usual files on as many of them as it can.

    Args:
        workers: that were asked for.
        max_memory: MiB that a file may take.
        limit: of :func:`.memory_limit`, bytes; ``None`` where it is not known.
        taken: bytes of it that this process has.
        others: workers of another pool at the same time, with caps alike.

    Returns:
        Workers, at least 1; and MiB, at most ``max_memory``.
    """
    if limit is None:
        return workers, max_memory
    free = max(0, limit - taken) // MIB
    least = min(ENOUGH, max_memory)
    workers = max(1, min(workers, free // (least + OF_A_WORKER) - others))
    return workers, min(max_memory, max(LEAST_MEMORY, free // (workers + others) - OF_A_WORKER))


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
    queued: int | None = None,
    others: int = 0,
    when_ended: Callable[[tuple], None] | None = None,
) -> Iterator:
    """``function(*job)`` for each job, in the order of the jobs, which are asked for as workers become free.

    While a call is waited for, the workers go on with those behind it, ``ahead`` of them each: with enough of them, one
    that hangs keeps its own worker alone, for the whole of its time.

    Args:
        function: of a module, so that worker processes can import it. It is called again with arguments whose result
            was lost with the pool of workers, and is to give the same then.
        jobs: arguments. The first, and any that is asked for while no result is due, must not be :data:`LATER`.
        workers: processes; 0 calls in this one, without caps.
        timeout: seconds that a call may take.
        max_memory: MiB that a call may take; less where all workers together would have more than there is, see
            :func:`within_memory`.
        ahead: calls per worker that have been asked for and whose results have not been taken.
        queued: of these, those that have not ended; all by default.
        others: workers of another pool that are there at the same time.
        when_ended: is given the arguments of calls by workers that will not be made again, mostly before the turn of
            their result; not of all.

    Returns:
        The results; :class:`Failed` for a call that took too long or too much, or whose process died.

    Raises:
        ConfigError: a cap that is not above 0.
        MissingDependencyError: there are to be workers, and pebble or loky is not installed.
        TrainingError: workers end again and again without a call that is the reason.
    """
    check_caps(timeout, max_memory)
    if workers == 0:
        return (_called(function, job) for job in jobs if job is not LATER)
    queued = ahead if queued is None else queued
    return _in_workers(
        function, iter(jobs), workers, timeout, max_memory, ahead, queued, others, when_ended, *_packages()
    )


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
            f"reading files in worker processes needs {error.name}; install it with: {install('train')}, "
            "or set workers to 0"
        ) from error
    return ProcessPool, get_context


def _in_workers(
    function, jobs, workers, timeout, max_memory, ahead, queued, others, when_ended, make_pool, get_context
) -> Iterator:
    first = list(islice(jobs, queued * workers))
    workers = max(1, min(workers, len(first)))
    workers, max_memory = within_memory(workers, max_memory, memory_limit(), resident_memory(), others)
    waiting: deque[Known | Call] = deque()  # what results are due of, in order
    pool = WorkerPool(limit_memory, (max_memory,), make_pool, get_context)
    alone = False  # calls without a result are made one at a time
    breaks = 0  # of the pool, in succession, that no call accounts for

    def schedule(some: Iterable) -> None:
        for job in some:
            if isinstance(job, Known):
                waiting.append(job)
            elif job is not LATER:
                arguments, seconds = job if isinstance(job, Longer) else (job, timeout)
                waiting.append(Call(function, arguments, seconds, when_ended))
                pool.submit(waiting[-1])

    def schedule_more() -> None:
        pool.hear()
        room = min(ahead * workers - len(waiting), queued * workers - len(pool.running))  # there may be fewer workers
        schedule(islice(jobs, max(0, room)))

    def unanswered() -> list[Call]:
        return [call for call in waiting if isinstance(call, Call) and not call.answered()]

    try:
        pool.start(workers)
        schedule(first)
        while waiting:
            head, found = waiting[0], False
            if isinstance(head, Known):
                result = head.result
            elif alone and not head.answered():
                pool.submit(head)
                pool.wait(head)
                result = _outcome(head, max_memory) if head.answered() else DIED  # nothing else was there to break it
                found = result is DIED
            else:
                pool.wait(head, meanwhile=schedule_more)
                if not head.answered():
                    # Any call without an answer may have broken the pool, most likely one of the first. Each is made
                    # alone in its turn until the one is found, or all are answered: there is an end to breaks.
                    breaks += 1
                    alone = True
                    if breaks > MOST_BREAKS or not pool.start_one():
                        raise TrainingError(
                            "the worker processes that read files end though no file is the reason (is there too "
                            "little memory, or a limit of processes?); take fewer workers, or 0 to read in this process"
                        )
                    continue
                result = _outcome(head, max_memory)
                breaks = breaks if alone else 0
            waiting.popleft()
            if alone and (found or not unanswered()):
                alone, breaks = False, 0 if found else breaks
                pool.start(workers)
                for call in unanswered():
                    pool.submit(call)
            yield result
            if not alone:
                schedule_more()
    finally:
        pool.stop()


def _outcome(call: Call, max_memory: int) -> Any:
    from pebble import ProcessExpired

    try:
        return call.future.result()
    except FutureTimeoutError:
        return Failed("TimeoutError", f"takes longer than {call.timeout:g} s")
    except ProcessExpired:
        return DIED
    except MemoryError:
        return out_of_memory(max_memory if sys.platform.startswith("linux") else 0)


def limit_memory(mebibytes: int) -> None:
    """Cap what this process may allocate beyond what it has; where the system cannot, nothing happens."""
    global _cap
    cv2.setNumThreads(1)  # the pool is the parallelism
    # Python's handler waits for a decoder that hangs, and the pool, which stops all workers meanwhile, for that handler
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not sys.platform.startswith("linux"):
        return
    import resource

    _cap = mebibytes

    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    cap = used + mebibytes * MIB
    resource.setrlimit(resource.RLIMIT_AS, (cap if hard < 0 else min(cap, hard), hard))
