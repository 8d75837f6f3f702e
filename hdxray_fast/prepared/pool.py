"""Worker processes with a cap on time and memory for each file: what hangs, grows or crashes costs itself alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import islice

from ..errors import MissingDependencyError
from .sources import Source
from .worker import UNREADABLE, Row, limit_memory, prepare_source

AHEAD = 8  # files per worker that are read before their turn, so that a slow one holds up nobody


def prepared_rows(
    sources: Iterable[Source], recipe: dict, key: bytes, *, workers: int, timeout: float, max_memory: int
) -> Iterator[Row]:
    """A row per source, in the order of the sources.

    Args:
        sources: what to read.
        recipe, key: as for :func:`hdxray_fast.prepared.worker.prepare_source`.
        workers: processes; 0 reads in this one, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
    """
    if workers == 0:
        for source in sources:
            yield prepare_source(source, recipe, key)
        return
    try:
        from loky.backend import get_context
        from pebble import ProcessPool
    except ImportError as error:
        raise MissingDependencyError(
            f"worker processes need {error.name}: pip install 'hdxray-fast[prepare]', or set workers to 0"
        ) from error
    # loky's processes start fresh and, unlike multiprocessing's, do not run the caller's script again
    pool = ProcessPool(workers, initializer=limit_memory, initargs=(max_memory,), context=get_context("loky"))
    left = iter(sources)
    waiting: deque = deque()

    def schedule(count: int) -> None:
        for source in islice(left, count):
            waiting.append((source, pool.schedule(prepare_source, args=[source, recipe, key], timeout=timeout)))

    try:
        schedule(AHEAD * workers)
        while waiting:
            source, future = waiting.popleft()
            yield _outcome(source, future, timeout)
            schedule(1)
    finally:
        pool.stop()  # kills what still runs
        pool.join()


def _outcome(source: Source, future, timeout: float) -> Row:
    from pebble import ProcessExpired

    try:
        return future.result()
    except FutureTimeoutError:
        return Row(source.name, UNREADABLE, f"takes longer than {timeout:g} s")
    except ProcessExpired:
        return Row(source.name, UNREADABLE, "the process that read it died (out of memory, or a decoder crash)")
    except MemoryError:
        return Row(source.name, UNREADABLE, "MemoryError: needs more memory than one file may take")
