"""Sources to rows, by the pool of readers; what lies in archives that are streams is unpacked on the way."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

from ...errors import ImageReadError
from ...images.canvas import Limits
from ..reader_pool import MAX_MEMORY, TIMEOUT, Failed, Known, call_in_order
from .archives import StreamReader, is_stream
from .sources import Source
from .worker import Row, prepare_source, unreadable


def prepared_rows(
    sources: Iterable[Source],
    recipe: dict,
    key: bytes | None,
    *,
    workers: int,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    scratch: Path | None = None,
) -> Iterator[Row]:
    """A row per source, in the order of the sources.

    Args:
        sources: what to read.
        recipe, key: as for :func:`hdxray_fast.data.prepared.worker.prepare_source`.
        workers: processes; 0 reads in this one, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
        scratch: folder for what is unpacked from compressed tars; emptied first, and removed in the end.
    """
    with tempfile.TemporaryDirectory(prefix="hdxray-") if scratch is None else nullcontext(scratch) as folder:
        streams = StreamReader(Path(folder) / "unpacked" if scratch is None else scratch, Limits().max_bytes)
        asked: deque[tuple[Source, Path | None]] = deque()  # in work: what its row is called, and a file to remove

        def jobs() -> Iterator[tuple | Known]:
            for source in sources:
                job, file = _job(source, recipe, key, streams)
                asked.append((source, file))
                yield job

        options = {"workers": workers, "timeout": timeout, "max_memory": max_memory}
        try:
            with closing(call_in_order(prepare_source, jobs(), **options)) as results:
                for row in results:
                    source, file = asked.popleft()
                    if file is not None:
                        file.unlink(missing_ok=True)
                    yield unreadable(source, *row) if isinstance(row, Failed) else row
        finally:
            streams.close()


def _job(source: Source, recipe: dict, key: bytes | None, streams: StreamReader) -> tuple[tuple | Known, Path | None]:
    """Arguments of the call, or the row that it ended in already; and a file that is to be removed afterwards."""
    if not source.member or source.offset >= 0 or not is_stream(source.path):
        return (source, recipe, key), None
    try:
        file = streams.fetch(source.path, source.member, source.name)
    except ImageReadError as error:
        return Known(unreadable(source, type(error).__name__, error.reason)), None
    return (source, recipe, key, str(file)), file
