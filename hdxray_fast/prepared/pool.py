"""Worker processes with a cap on time and memory for each file: what hangs, grows or crashes costs itself alone."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..canvas import Limits
from ..errors import ImageReadError, MissingDependencyError
from .archives import StreamReader, is_stream
from .sources import Source
from .worker import UNREADABLE, Row, limit_memory, prepare_source

AHEAD = 8  # files per worker that are read before their turn, so that a slow one holds up nobody


def prepared_rows(
    sources: Iterable[Source],
    recipe: dict,
    key: bytes,
    *,
    workers: int,
    timeout: float,
    max_memory: int,
    scratch: Path | None = None,
) -> Iterator[Row]:
    """A row per source, in the order of the sources.

    Args:
        sources: what to read.
        recipe, key: as for :func:`hdxray_fast.prepared.worker.prepare_source`.
        workers: processes; 0 reads in this one, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
        scratch: folder for what is unpacked from compressed tars; emptied first, and removed in the end.
    """
    with tempfile.TemporaryDirectory(prefix="hdxray-") if scratch is None else nullcontext(scratch) as folder:
        streams = StreamReader(Path(folder) / "unpacked" if scratch is None else scratch, Limits().max_bytes)
        try:
            jobs = (_job(source, recipe, key, streams) for source in sources)
            if workers == 0:
                for job in jobs:
                    yield job.row or _done(job, prepare_source(*job.arguments))
            else:
                yield from _in_workers(jobs, workers, timeout, max_memory)
        finally:
            streams.close()


class Job(NamedTuple):
    """Arguments of a call, or the row that it ended in already; ``file`` is removed afterwards."""

    arguments: tuple
    row: Row | None = None
    file: Path | None = None


def _job(source: Source, recipe: dict, key: bytes, streams: StreamReader) -> Job:
    if not source.member or source.offset >= 0 or not is_stream(source.path):
        return Job((source, recipe, key))
    try:
        file = streams.fetch(source.path, source.member, source.name)
    except ImageReadError as error:
        return Job((source, recipe, key), Row(source.name, UNREADABLE, f"{type(error).__name__}: {error.reason}"))
    return Job((source, recipe, key, str(file)), None, file)


def _done(job: Job, row: Row) -> Row:
    if job.file is not None:
        job.file.unlink(missing_ok=True)
    return row


def _in_workers(jobs: Iterator[Job], workers: int, timeout: float, max_memory: int) -> Iterator[Row]:
    try:
        from loky.backend import get_context
        from pebble import ProcessPool
    except ImportError as error:
        raise MissingDependencyError(
            f"worker processes need {error.name}: pip install 'hdxray-fast[prepare]', or set workers to 0"
        ) from error
    # loky's processes start fresh and, unlike multiprocessing's, do not run the caller's script again
    pool = ProcessPool(workers, initializer=limit_memory, initargs=(max_memory,), context=get_context("loky"))
    waiting: deque = deque()

    def schedule(count: int) -> None:
        for job in islice(jobs, count):
            future = None if job.row else pool.schedule(prepare_source, args=list(job.arguments), timeout=timeout)
            waiting.append((job, future))

    try:
        schedule(AHEAD * workers)
        while waiting:
            job, future = waiting.popleft()
            yield job.row or _done(job, _outcome(job.arguments[0], future, timeout))
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
