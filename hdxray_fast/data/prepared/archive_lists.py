"""What archives hold, listed by workers with the caps of the reader pool: a bad one costs itself alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ...errors import ImageReadError
from ..reader_pool import MAX_MEMORY, TIMEOUT, Failed, Longer, call_in_order, out_of_memory
from .archives import MAX_MEMBERS, Member, list_members

SHARE = 256 << 20  # bytes of an archive that may take the time of one file


def archive_timeout(archive: str | Path, timeout: float) -> float:
    """Seconds that listing an archive, or finding a member of it, may take: ``timeout`` for each begun 256 MiB of it.

    An archive of a whole data set is gone through in minutes or hours, a small one in no time whatever it declares.
    """
    try:
        size = os.stat(archive).st_size
    except OSError:
        size = 0
    return timeout * max(1, -(-size // SHARE))


def list_archives(
    archives: Sequence[Path],
    *,
    workers: int = 1,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    max_members: int = MAX_MEMBERS,
) -> dict[Path, list[Member] | Failed]:
    """The members of each archive, or why it cannot be listed.

    Args:
        archives: paths; without any, no worker is started.
        workers: processes; 0 lists in this one, without caps on time and memory.
        timeout: seconds for each begun 256 MiB of an archive.
        max_memory: MiB that listing one may take.
        max_members: files that one may hold.
    """
    if not archives:
        return {}
    jobs = (Longer((str(archive), max_members), archive_timeout(archive, timeout)) for archive in archives)
    with closing(call_in_order(list_archive, jobs, workers=workers, max_memory=max_memory)) as lists:
        return dict(zip(archives, lists, strict=True))


def list_archive(archive: str, max_members: int = MAX_MEMBERS) -> list[Member] | Failed:
    """As :func:`.archives.list_members`, but gives back what is wrong, since what is raised ends all calls."""
    try:
        return list_members(Path(archive), max_members)
    except ImageReadError as error:
        return Failed(type(error).__name__, error.reason)
    except MemoryError:
        return out_of_memory()
