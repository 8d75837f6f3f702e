"""Shards are read through descriptors that stay open: how many bytes and files that takes, and what failures say."""

from __future__ import annotations

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hdxray_fast.data.prepared import shard_files
from hdxray_fast.data.prepared.loader import PreparedLoader
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.shard_files import ShardFiles, read_at
from hdxray_fast.data.prepared.shards import ShardError, ShardFolder
from hdxray_fast.errors import ArgumentError

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system has no preadv")
SHARDS, LENGTH = 12, 1000


@pytest.fixture
def shards(tmp_path):
    """Shards of 1000 bytes, each of its own number."""
    folder = ShardFolder(tmp_path)
    for number in range(SHARDS):
        folder.pixels(number).write_bytes(bytes([number]) * LENGTH)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What is opened, and the bytes asked for by each read."""
    found = {"opened": 0, "read": []}
    usual_open, usual_read = os.open, os.preadv

    def counted_open(*arguments, **options):
        found["opened"] += 1
        return usual_open(*arguments, **options)

    def counted_read(descriptor, buffers, offset):
        found["read"].append(sum(len(buffer) for buffer in buffers))
        return usual_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "open", counted_open)
    monkeypatch.setattr(os, "preadv", counted_read)
    return found


def read(files: ShardFiles, number: int, start: int = 0, count: int = LENGTH) -> np.ndarray:
    out = np.full(count, 255, np.uint8)
    return out[: files.read(number, start, out)]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_shard_is_opened_once_and_an_image_is_one_read(shards, calls):
    files = ShardFiles(shards)
    for number in np.random.default_rng(0).integers(0, SHARDS, 200).tolist():
        assert (read(files, number, 100, 300) == number).all()
    assert calls["opened"] == SHARDS and calls["read"] == [300] * 200


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors by /proc")
def test_no_more_stay_open_than_are_allowed(shards, calls):
    before = open_files()
    files = ShardFiles(shards, most=3)
    for number in [*range(SHARDS), SHARDS - 1, SHARDS - 2, SHARDS - 3, 0, SHARDS - 3]:
        assert (read(files, number) == number).all()
    assert calls["opened"] == SHARDS + 1  # of the last five only 0 was not among the latest three
    assert open_files() == before + 3
    del files
    assert open_files() == before


def test_half_of_what_a_process_may_have_open(monkeypatch):
    resource = pytest.importorskip("resource")
    for soft, most in ((20, 10), (1024, 512), (10**6, 4096), (-1, 4096), (1, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda what, soft=soft: (soft, soft))
        assert shard_files.allowed() == most


def test_too_many_open_files_are_closed_and_go_on(shards, monkeypatch):
    usual, left = os.open, [5]

    def few(*arguments, **options):
        if not left[0]:
            left[0] = 5  # this process closes some
            raise OSError(errno.EMFILE, "Too many open files")
        left[0] -= 1
        return usual(*arguments, **options)

    monkeypatch.setattr(os, "open", few)
    files = ShardFiles(shards)
    assert all((read(files, number) == number).all() for number in range(SHARDS))


def test_a_short_read_is_asked_again(shards, monkeypatch):
    usual = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, at: usual(descriptor, [buffers[0][:7]], at))
    assert (read(ShardFiles(shards), 3) == 3).all() and len(read(ShardFiles(shards), 3)) == LENGTH
    assert len(read(ShardFiles(shards), 3, LENGTH - 10)) == 10  # the shard ends
    assert len(read(ShardFiles(shards), 3, LENGTH + 10)) == 0


def test_systems_without_preadv(shards, monkeypatch):
    monkeypatch.delattr(os, "preadv")
    with ThreadPoolExecutor(4) as threads:
        files = ShardFiles(shards, most=2)
        found = list(threads.map(lambda k: read(files, k % SHARDS, k % 7, 100), range(300)))
    assert all(len(data) == 100 and (data == k % SHARDS).all() for k, data in enumerate(found))


def test_failures_have_names(shards, monkeypatch):
    files = ShardFiles(shards)
    read(files, 2)

    def fails(descriptor, buffers, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(
        ShardError, match=r"00002\.bin: cannot be read \(Input/output error\); look at its disk"
    ) as told:
        read(files, 2)
    assert told.value.__cause__.errno == errno.EIO
    monkeypatch.undo()
    shards.pixels(4).unlink()
    with pytest.raises(ShardError, match=r"00004\.bin: cannot be read \(No such file.*run prepare again"):
        read(files, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_process_reads_while_its_parent_does(shards):
    files = ShardFiles(shards)
    read(files, 1)
    files._lock.acquire()  # as if another thread were at it
    if not (child := os.fork()):
        good = all((read(files, number) == number).all() for number in range(SHARDS))
        os._exit(0 if good else 1)
    files._lock.release()
    assert os.waitpid(child, 0)[1] == 0


def test_a_shard_that_is_cut_while_it_is_open(made_set):
    """A map of it would end the process with SIGBUS."""
    data = PreparedSet(made_set)
    path = made_set / "shards" / "00000.bin"
    data[1]
    os.truncate(path, 100)
    with pytest.raises(ShardError, match=r"00000\.bin: ends before the image of row 1"):
        data[1]
    assert read_at_end(path) == 100


def read_at_end(path) -> int:
    with path.open("rb") as stream:
        return read_at(stream.fileno(), 0, np.empty(LENGTH, np.uint8))


def test_a_batch_is_filled_where_it_lies(made_set, calls):
    """One read an image, of its own bytes alone, and no copy after it."""
    data = PreparedSet(made_set)
    calls["read"].clear()
    for batch in PreparedLoader(data, [[0, 2], [1, 3]]):
        assert batch["pixels"].shape[0] == 2
    assert calls["read"] == [data.size**2] * 4
    out = np.zeros((data.size, data.size), np.uint8)
    sample = data.read(1, out)
    assert sample.pixels is out
    np.testing.assert_array_equal(out, data[1].pixels)
    for wrong in (np.zeros(out.shape, np.uint16), out[1:], np.asfortranarray(out)):
        with pytest.raises(ArgumentError, match="out: got"):
            data.read(1, wrong)


@pytest.fixture
def made_set(tmp_path):
    from prepared_helpers import make_folder, prepare

    make_folder(tmp_path / "xrays")
    prepare([tmp_path / "xrays"], tmp_path / "set")
    return tmp_path / "set"
