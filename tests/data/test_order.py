"""A shuffle in blocks: every image once an epoch, a node's images its own, and its bytes read ahead once."""

from __future__ import annotations

import os

import numpy as np
import pytest
from prepared_helpers import make_folder, prepare

from hdxray_fast.data import order as orders
from hdxray_fast.data import read_ahead
from hdxray_fast.data.order import BlockOrder, GlobalOrder
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.read_ahead import BlocksAhead, ReadAhead
from hdxray_fast.data.sampler import StepSampler

LENGTHS = [(1000, 1), (1000, 2), (1003, 4), (997, 8), (5, 8), (257, 3)]


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(orders, "RUN", 16)


@pytest.mark.parametrize(("length", "nodes"), LENGTHS)
def test_every_image_comes_once_an_epoch(length, nodes):
    order = BlockOrder(length, 3, nodes, 100)
    epochs = [order.epoch(epoch) for epoch in range(4)]
    for epoch, rows in enumerate(epochs):
        assert sorted(rows.tolist()) == list(range(length))
        np.testing.assert_array_equal(rows, BlockOrder(length, 3, nodes, 100).epoch(epoch))
    if length > 100:
        assert not any(np.array_equal(epochs[0], other) for other in epochs[1:])
        assert not np.array_equal(epochs[0], BlockOrder(length, 4, nodes, 100).epoch(0))


@pytest.mark.parametrize(("length", "nodes"), LENGTHS)
def test_a_node_has_its_turns_of_the_walk(length, nodes):
    """Position p of the walk through all epochs is of node p % nodes, also where epochs do not end at a step."""
    order = BlockOrder(length, 0, nodes, 100)
    for epoch in range(5):
        rows, runs = order.epoch(epoch), [order.runs(epoch, node) for node in range(nodes)]
        for node in range(nodes):
            its = [row for place, row in enumerate(rows.tolist()) if (epoch * length + place) % nodes == node]
            assert sorted(its) == sorted(np.concatenate(runs[node]).tolist())
            for block in runs[node]:
                assert sorted(its[: len(block)]) == sorted(block.tolist())  # block after block
                its = its[len(block) :]
                assert len(block) >= 100 or len(runs[node]) == 1


def test_blocks_are_runs_of_the_set_and_are_shuffled():
    order = BlockOrder(4096, 0, 2, 512)
    blocks, runs = order.blocks(0), order.runs(0, 0)
    assert len(blocks[0]) == len(runs) == 4 and all(len(block) == 512 for block in runs)
    for rows, shuffled in zip(runs, blocks[0], strict=True):
        whole = [rows[start] + np.arange(16) for start in range(0, 512, 16)]
        np.testing.assert_array_equal(rows, np.concatenate(whole))
        assert np.mean(np.diff(shuffled) == 1) < 0.02


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_ranks_of_a_node_share_its_images_however_a_step_is_split(nodes):
    length, images, steps = 203, 16, 30
    order = BlockOrder(length, 1, nodes, 20)
    costs = np.random.default_rng(0).uniform(1, 9, length)
    found = []
    for batch, accum, ranks in [(16 // ranks // accum, accum, ranks) for ranks in (nodes, 4, 8) for accum in (1, 2)]:
        options = {"last": steps * accum, "world_size": ranks, "grad_accum": accum, "costs": costs, "order": order}
        walks = [list(StepSampler(length, batch, rank=rank, **options)) for rank in range(ranks)]
        of_node = []
        for node in range(nodes):
            group = walks[node * ranks // nodes : (node + 1) * ranks // nodes]
            assert all(len(keys) == batch for walk in group for keys in walk)
            steps_of = [[walk[s * accum : (s + 1) * accum] for walk in group] for s in range(steps)]
            of_node.append([sorted(key for walk in step for keys in walk for key in keys) for step in steps_of])
        found.append(of_node)
        assert all(len(step) == images // nodes for its in of_node for step in its)
    assert all(each == found[0] for each in found)
    seen = sorted(key for its in found[0] for step in its for key in step)
    whole = images * steps // length
    assert [key for key in seen if key[0] < whole] == [(e, row) for e in range(whole) for row in range(length)]


def test_a_later_start_goes_on_with_the_same_walk():
    options = {"last": 40, "world_size": 2, "rank": 1, "order": BlockOrder(101, 0, 2, 20)}
    assert list(StepSampler(101, 4, **options))[17:] == list(StepSampler(101, 4, first=17, **options))


def test_a_full_shuffle_is_the_one_that_it_was():
    rng = np.random.Generator(np.random.Philox(key=[5, 2]))
    np.testing.assert_array_equal(GlobalOrder(77, 5).epoch(2), rng.permutation(77))
    walk = [key for keys in StepSampler(77, 7, last=33, seed=5) for key in keys]
    assert walk[2 * 77 : 3 * 77] == [(2, row) for row in GlobalOrder(77, 5).epoch(2).tolist()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedSet:
    root = tmp_path_factory.mktemp("order")
    make_folder(root / "xrays")
    prepare([root / "xrays"], root / "set", shard_size=2)
    return PreparedSet(root / "set")


def test_extents_join_what_lies_together(data):
    size = int(data.column("length").to_numpy()[0])
    path = data.folder / "shards"
    assert data.extents(np.array([0, 1, 2, 5])) == [
        (path / "00000.bin", 0, 2 * size),
        (path / "00001.bin", 0, size),
        (path / "00002.bin", size, 2 * size),
    ]
    assert data.extents(np.array([], np.int64)) == []
    assert data.subset([5, 4]).extents(np.array([1, 0])) == [(path / "00002.bin", 0, 2 * size)]


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="counts calls of preadv")
def test_each_byte_is_read_ahead_once_by_one_process_of_the_node(data, monkeypatch):
    """The block of the first step and the next one at once, the others as the walk gets there."""
    monkeypatch.setattr(orders, "RUN", 2)
    read, usual = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *call: read.append(usual(*call)) or read[-1])
    size = int(data.column("length").to_numpy()[0])
    taken = []
    for place in range(2):
        order = BlocksAhead(data, 0, 1, 2, share=(place, 2))
        steps = iter(StepSampler(len(data), 1, rank=place, world_size=2, last=3, order=order))
        read.clear()
        next(steps)
        order.reader.wait()
        first = sum(read)
        list(steps)
        order.reader.wait()
        taken.append((first, sum(read)))
    # 3 blocks of 2 images an epoch, a step each: two at first, and four when the walk is in the last
    assert sum(first for first, _ in taken) == 4 * size
    assert sum(whole for _, whole in taken) == 8 * size


def test_what_cannot_be_read_ahead_is_left_to_its_reader(tmp_path, monkeypatch):
    good = tmp_path / "good"
    good.write_bytes(bytes(100))
    read = []
    monkeypatch.setattr(
        read_ahead, "read_at", lambda descriptor, start, out: read.append((start, len(out))) or len(out)
    )
    monkeypatch.setattr(read_ahead, "PIECE", 32)
    reader = ReadAhead()
    reader.want([(tmp_path / "gone", 0, 100), (good, 10, 100)])
    reader.wait()
    assert read == [(10, 32), (42, 32), (74, 26)]
    reader.want([(good, 0, 5)])  # a thread that has ended is started again
    reader.wait()
    assert read[-1] == (0, 5)
