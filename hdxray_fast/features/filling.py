"""Rows for the files that have none yet: of this share, a part at a time; whoever ends last joins all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..data.inputs import Input
from ..ranks import acquainted
from .embedding import Embedder, Embeddings
from .row_parts import RowParts
from .stamps import Stamp

ROWS_PER_PART, SECONDS_PER_PART = 64, 60  # what an interruption can cost: the less of the two


@acquainted()
def fill_and_join(
    parts: RowParts, job: Embedder, inputs: Sequence[Input], work: Callable[[], None], *, batch_size: int, **options
) -> tuple[int, list[int] | None]:
    """Make this process's share of the rows and, where all shares have ended, do ``work`` on the rows of all of them.

    Args:
        parts: entered; the rows.
        job: makes them.
        inputs: of all shares.
        work: as for :meth:`.RowParts.join`, in the main process of a launcher alone.
        batch_size, **options: as for :func:`fill`.

    Returns:
        How many rows were made, and ``None`` if ``work`` was done here, otherwise the shares, counted from 1, that have
        not ended (none: another process joins them).
    """
    files = [one.name for one in inputs]
    plan = parts.plan(files, batch_size)
    with parts.share.together():
        new = fill(parts, job, inputs, batch_size=batch_size, **options)
        parts.end_share(plan)
    return new, parts.joined(plan, files, work)


def fill(
    parts: RowParts,
    job: Embedder,
    inputs: Sequence[Input],
    *,
    batch_size: int,
    progress: bool,
    workers: int,
    timeout: float,
    max_memory: int,
) -> int:
    """Make the rows of this process's share of ``inputs`` that ``parts`` does not hold; how many were made.

    Batches are those of one process that makes all rows and is never interrupted, and so is what comes of them, to the
    last bit: shares are dealt out by batches, and parts end with a batch.
    """
    share = parts.share
    own = share.take(inputs, batch_size)
    stamps = {one.name: Stamp.of(one.image) for one in own}
    jobs = [one for one in own if not parts.holds(one.name, stamps[one.name])]
    waiting: list[Embeddings] = []
    new, since = 0, time.monotonic()
    options = {"workers": share.workers(workers), "timeout": timeout, "max_memory": max_memory}
    options |= {"progress": progress and share.is_main, "done": len(own) - len(jobs)}
    for rows in job.batches(jobs, batch_size=batch_size, **options):
        new += len(rows)
        waiting.append(rows)
        if sum(map(len, waiting)) >= ROWS_PER_PART or time.monotonic() - since >= SECONDS_PER_PART:
            parts.append(Embeddings.join(waiting, parts.width), stamps)
            waiting, since = [], time.monotonic()
    parts.append(Embeddings.join(waiting, parts.width), stamps)
    return new
