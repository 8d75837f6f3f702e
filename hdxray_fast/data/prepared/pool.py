"""Sources to rows, by the pool of readers; what lies in archives that are streams is unpacked on the way."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

from ..reader_pool import AHEAD, LATER, MAX_MEMORY, TIMEOUT, Failed, Known, Later, call_in_order
from .archives import is_stream
from .slots import Placed, prepare_into
from .sources import Source
from .unpacking import MAX_SCRATCH, Unpacker
from .worker import Row, prepare_source, unreadable


def prepared_rows(
    sources: Iterable[Source | Placed | Later],
    recipe: dict,
    key: bytes | None,
    *,
    workers: int,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    max_scratch: int = MAX_SCRATCH,
    scratch: Path | None = None,
    ahead: int = AHEAD,
) -> Iterator[Row]:
    """A row per source, in the order of the sources.

    Args:
        sources: what to read; of those with a slot, pixels go there, and the row has none. ``LATER`` of the reader pool
            goes to the pool.
        recipe, key: as for :func:`hdxray_fast.data.prepared.worker.prepare_source`.
        workers: processes; 0 reads in this one, without caps.
        timeout: seconds that a file may take, the writing of its pixels into the slot included.
        max_memory: MiB that a file may take.
        max_scratch: MiB that may be unpacked from compressed tars and wait for readers.
        scratch: folder for what is unpacked from compressed tars; emptied first, and removed in the end.
        ahead: rows per worker that may be made before their turn.

    Raises:
        OSError: pixels, or what is unpacked, cannot be written.
    """
    caps = {"workers": workers, "timeout": timeout, "max_memory": max_memory}
    with tempfile.TemporaryDirectory(prefix="hdxray-") if scratch is None else nullcontext(scratch) as folder:
        place = Path(folder) / "unpacked" if scratch is None else scratch
        asked: deque[tuple[Source, Path | None]] = deque()  # in work: what its row is called, and a file to remove

        def jobs() -> Iterator[tuple | Known | Later]:
            for wanted in sources:
                if isinstance(wanted, Later):
                    yield LATER
                    continue
                source, slot = wanted if isinstance(wanted, Placed) else (wanted, None)
                file, job = None, (slot, prepare_source, source, recipe, key)
                if source.refused:
                    kind, _, reason = source.refused.partition(": ")
                    job = Known(unreadable(source, kind, reason))
                elif source.member and source.offset < 0 and is_stream(source.path):
                    while not unpacker.has_room(source):
                        yield LATER
                    file = unpacker.fetch(source)
                    job = (*job, str(file))
                    if isinstance(file, Failed):
                        job, file = Known(unreadable(source, *file)), None
                asked.append((source, file))
                yield job

        def release(arguments: tuple) -> None:
            """Make room before the row's turn comes."""
            for file in arguments[5:]:
                unpacker.release(Path(file))

        with (
            closing(Unpacker(place, max_scratch=max_scratch, **caps)) as unpacker,
            closing(
                call_in_order(
                    prepare_into, jobs(), ahead=ahead, queued=AHEAD, others=min(workers, 1), when_ended=release, **caps
                )
            ) as results,
        ):
            for row in results:
                source, file = asked.popleft()
                if file is not None:
                    unpacker.release(file)
                if isinstance(row, OSError):
                    raise row
                yield unreadable(source, *row) if isinstance(row, Failed) else row
