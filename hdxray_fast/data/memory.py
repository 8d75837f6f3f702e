"""How much memory this process may count on: the machine's, or less where a container or a batch job has a limit.

This module never imports torch, so that worker processes start fast and stay small.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

MIB = 1 << 20


def memory_limit(root: str | Path = "/") -> int | None:
    """Bytes that this process and those it starts may take together; ``None`` where the system does not say.

    The machine's memory, or the least limit of the control groups that the process is in (version 1 or 2, with the
    groups above its own, which bind it as well): what Docker, Kubernetes and Slurm set.

    Args:
        root: the folder that ``proc`` and ``sys`` lie in.
    """
    limits = list(_group_limits(Path(root)))
    with suppress(OSError, ValueError, AttributeError):  # no such question on this system
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = [limit for limit in limits if limit > 0]
    return min(limits, default=None)


def resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _group_limits(root: Path) -> Iterator[int]:
    """Limits that are set for the groups of this process, bytes."""
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            mounts, file = (groups, groups / "unified"), "memory.max"
        elif "memory" in controllers.split(","):
            mounts, file = (groups / "memory",), "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, of which nothing is mounted but the group itself, as the root
        own = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for group in (own, *own.parents):
                with suppress(OSError, ValueError):  # not there, or "max"
                    yield int((mount / group / file).read_text())
