"""Memory that readers may take together: the machine's, a container's or a batch job's; caps shared out in it."""

from __future__ import annotations

import os
import sys

import pytest

from hdxray_fast.data.memory import MIB, memory_limit, resident_memory
from hdxray_fast.data.reader_pool import call_in_order, within_memory
from hdxray_fast.errors import ConfigError

GIB = 1024 * MIB
NONE = str(2**63 - 4096)  # how version 1 says that there is no limit
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups and /proc are Linux's")


def machine(root, groups: str, limits: dict[str, str]):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for place, limit in limits.items():
        file = root / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit + "\n")
    return root


@LINUX
@pytest.mark.parametrize(
    ("groups", "limits"),
    [
        ("0::/\n", {"memory.max": str(64 * MIB)}),  # a container of version 2 is at the root of its own view
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": str(64 * MIB)}),  # the group above binds it
        ("0::/job/step\n", {"job/step/memory.max": str(64 * MIB), "job/memory.max": str(80 * MIB)}),
        ("1:cpu:/\n4:memory:/batch/7\n0::/\n", {"memory/batch/7/memory.limit_in_bytes": str(64 * MIB)}),  # version 1
        ("5:cpuacct,memory:/docker/f00\n", {"memory/memory.limit_in_bytes": str(64 * MIB)}),  # the path is the host's
        ("0::/x\n4:memory:/\n", {"memory/memory.limit_in_bytes": NONE, "unified/x/memory.max": str(64 * MIB)}),
    ],
)  # fmt: skip
def test_the_least_limit_of_the_groups_counts(tmp_path, groups, limits):
    assert memory_limit(machine(tmp_path, groups, limits)) == 64 * MIB


@LINUX
def test_without_a_limit_it_is_the_machines_memory(tmp_path):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_limit(machine(tmp_path, "0::/job\n", {"job/memory.max": "max"})) == whole
    assert memory_limit(tmp_path / "nothing") == whole
    assert memory_limit() <= whole and 0 < resident_memory() < whole


@pytest.mark.parametrize(
    ("workers", "cap", "limit", "taken", "expected"),
    [
        (4, 4096, None, 0, (4, 4096)),  # not known
        (4, 4096, 64 * GIB, 2 * GIB, (4, 4096)),  # there is enough
        (4, 4096, 8 * GIB, 0, (4, 1920)),  # caps first
        (64, 4096, 16 * GIB, 0, (14, 1042)),  # then workers
        (8, 512, 4 * GIB, GIB, (4, 512)),  # that were asked for less
        (2, 4096, GIB, GIB, (1, 256)),  # one goes on, whatever there is
    ],
)
def test_caps_stay_within_the_memory_together(workers, cap, limit, taken, expected):
    found = within_memory(workers, cap, limit, taken)
    assert found == expected
    if limit is not None and found[1] > 256:
        assert found[0] * found[1] * MIB + taken <= limit


def cap_of_this_worker() -> int:
    import resource

    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    return resource.getrlimit(resource.RLIMIT_AS)[0] - used


@LINUX
def test_workers_are_started_with_their_share(monkeypatch):
    from hdxray_fast.data import reader_pool

    monkeypatch.setattr(reader_pool, "memory_limit", lambda: resident_memory() + 3 * GIB)
    caps = list(call_in_order(cap_of_this_worker, [(), (), (), ()], workers=2, max_memory=4096))
    assert len(caps) == 4 and all(0 < cap <= 1408 * MIB for cap in caps), caps


def test_workers_of_another_pool_take_their_share():
    assert within_memory(8, 4096, 12 * GIB, 0, others=1) == (8, 1237)
    assert within_memory(1, 4096, GIB, GIB, others=1) == (1, 256)


@LINUX
def test_fewer_workers_than_were_asked_for_do_all_jobs(monkeypatch):
    """More calls wait at first than the few workers would have ahead."""
    from hdxray_fast.data import reader_pool

    monkeypatch.setattr(reader_pool, "memory_limit", lambda: resident_memory() + int(1.4 * GIB))
    assert list(call_in_order(abs, [(-number,) for number in range(60)], workers=8)) == list(range(60))


@pytest.mark.parametrize("caps", [{"timeout": 0.0}, {"timeout": float("nan")}, {"max_memory": 255}])
def test_caps_that_no_file_could_keep_to_are_named(caps):
    with pytest.raises(ConfigError, match=f"^{next(iter(caps))}: got "):
        call_in_order(str, [("a",)], workers=0, **caps)
