"""Loading prepared data sets: the same samples by every way, and clear errors for damage."""

import os
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from prepared_helpers import SIZE, make_folder, prepare
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from hdxray_fast.data.prepared import shard_files
from hdxray_fast.data.prepared.loader import PreparedLoader, collate, empty_batch, valid_grid
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.shards import ShardError
from hdxray_fast.errors import ArgumentError, ConfigError
from hdxray_fast.images.canvas import Canvas


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    make_folder(root / "xrays")
    sets = {}
    for kind, bits in (("raw", 8), ("raw", 16), ("png", 8)):
        prepare([root / "xrays"], root / f"{kind}{bits}", format=kind, bits=bits)
        sets[kind, bits] = root / f"{kind}{bits}"
    return sets


def rows_of_batches(count, size):
    return list(BatchSampler(SequentialSampler(range(count)), size, drop_last=False))


@pytest.mark.parametrize(("kind", "bits"), [("raw", 8), ("raw", 16), ("png", 8)])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_is_its_samples(made, kind, bits, threads):
    data = PreparedSet(made[kind, bits], verify=True)
    batches = [[3, 0], [5], [1, 1], [2, 4], [0, 5]]
    loader = PreparedLoader(data, batches, threads=threads)
    assert len(loader) == 5
    for _ in range(2):  # the loader can be gone through again
        seen = 0
        for rows, batch in zip(batches, loader, strict=True):
            seen += 1
            assert batch["index"].tolist() == rows and batch["pixels"].shape == (len(rows), 1, SIZE, SIZE)
            assert batch["pixels"].dtype == (torch.uint16 if bits == 16 else torch.uint8)
            for place, row in enumerate(rows):
                sample = data[row]
                np.testing.assert_array_equal(batch["pixels"][place, 0].numpy(), sample.pixels)
                np.testing.assert_array_equal(batch["inside"][place].numpy(), sample.inside)
                valid = Canvas(sample.pixels, sample.valid_box).valid_grid()
                np.testing.assert_array_equal(batch["valid"][place].numpy(), valid)
                assert batch["scale"][place].item() == pytest.approx(sample.scale, rel=1e-6)
                assert batch["shift"][place].item() == pytest.approx(sample.shift, rel=1e-6)
        assert seen == 5


def test_threads_share_a_set_of_more_shards_than_stay_open(tmp_path, monkeypatch):
    """One closes what another has just found; each still reads its own image."""
    make_folder(tmp_path / "xrays")
    prepare([tmp_path / "xrays"], tmp_path / "set", shard_size=1)
    monkeypatch.setattr(shard_files, "MOST_OPEN", 1)
    data = PreparedSet(tmp_path / "set", verify=True)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            rows = [number % len(data) for number in range(1500)]
            found = list(threads.map(lambda row: zlib.crc32(data.encoded(row)), rows))
    finally:
        sys.setswitchinterval(before)
    alone = [zlib.crc32(data.encoded(row)) for row in range(len(data))]
    assert found == [alone[row] for row in rows] and len(set(alone)) == len(data)


def test_memory_is_used_again(made):
    data = PreparedSet(made["raw", 8])
    places = {batch["pixels"].data_ptr() for batch in PreparedLoader(data, [[0, 1]] * 30, ahead=2)}
    assert len(places) <= 5  # two ahead, one being read, one in use, one on its way


def test_stopping_early_leaves_no_thread(made):
    import threading

    data = PreparedSet(made["raw", 8])
    before = threading.active_count()
    for _ in range(3):
        for batch in PreparedLoader(data, [[0]] * 100):
            assert batch["index"].item() == 0
            break
    for _ in range(100):
        if threading.active_count() <= before:
            break
        import gc
        import time

        gc.collect()
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_torchs_loader_works_too(made):
    data = PreparedSet(made["raw", 8])
    for workers in (0, 1):
        loader = DataLoader(data, batch_sampler=rows_of_batches(6, 4), collate_fn=collate, num_workers=workers)
        pixels = torch.cat([batch["pixels"] for batch in loader])
        np.testing.assert_array_equal(pixels[:, 0].numpy(), np.stack([data[row].pixels for row in range(6)]))


def test_damage_reaches_the_consumer(made, tmp_path):
    import shutil

    shutil.copytree(made["raw", 8], tmp_path / "set")
    shard = tmp_path / "set" / "shards" / "00001.bin"
    shard.write_bytes(shard.read_bytes()[: SIZE * SIZE + 7])
    data = PreparedSet(tmp_path / "set")
    with pytest.raises(ShardError, match=r"00001\.bin.*run prepare again"):
        data.check()
    with pytest.raises(ShardError, match=r"00001\.bin: ends before the image of row"):
        list(PreparedLoader(data, rows_of_batches(6, 2)))

    def broken():
        yield [0]
        raise RuntimeError("of the sampler")

    with pytest.raises(RuntimeError, match="of the sampler"):
        list(PreparedLoader(PreparedSet(made["raw", 8]), broken()))
    with pytest.raises(ArgumentError, match="ahead"):
        PreparedLoader(data, [], ahead=0)


def test_valid_grid_and_memory_shapes():
    for box in ((0, 0, 96, 96), (17, 3, 30, 95), (40, 40, 1, 1), (95, 0, 1, 96)):
        expected = Canvas(np.zeros((96, 96), np.uint8), box).valid_grid()
        np.testing.assert_array_equal(valid_grid(box, 96), expected)
    assert empty_batch(3, 96)["inside"].shape == (3, 6, 6)


# --- object stores ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "bits"), [("raw", 16), ("png", 8)])
def test_a_stream_gives_the_same_samples(made, tmp_path, kind, bits):
    litdata = pytest.importorskip("litdata")
    from hdxray_fast.data.order import generator
    from hdxray_fast.data.prepared.stream_writing import SEED, write_stream
    from hdxray_fast.data.prepared.streaming import read_stream

    data = PreparedSet(made[kind, bits])
    assert write_stream(made[kind, bits], tmp_path / "chunks", chunk_bytes=3 * SIZE * SIZE) == 6
    assert len(list((tmp_path / "chunks").glob("*.bin"))) > 1
    stream = read_stream(str(tmp_path / "chunks"))
    assert len(stream) == 6
    order = generator(SEED, 0).permutation(6).tolist()
    assert order != sorted(order)
    for place, row in enumerate(order):
        for one, two in zip(stream[place], data[row], strict=True):
            np.testing.assert_array_equal(one, two)
    batches = list(litdata.StreamingDataLoader(read_stream(str(tmp_path / "chunks")), batch_size=4, collate_fn=collate))
    assert [len(batch["index"]) for batch in batches] == [4, 2]
    np.testing.assert_array_equal(batches[1]["pixels"][1, 0].numpy(), data[order[5]].pixels)
    shuffled = read_stream(str(tmp_path / "chunks"), shuffle=True, seed=3)
    found = sorted(hash(sample.pixels.tobytes()) for sample in shuffled)
    assert found == sorted(hash(sample.pixels.tobytes()) for sample in (data[row] for row in range(6)))
    # chunks hold no name of a source
    for path in (tmp_path / "chunks").iterdir():
        assert b"xrays" not in path.read_bytes()


def test_streams_are_written_whole_or_refused(made, tmp_path):
    pytest.importorskip("litdata")
    from hdxray_fast.cli.main import main
    from hdxray_fast.data.prepared.stream_writing import write_stream
    from hdxray_fast.data.prepared.streaming import read_stream

    assert main(["stream", str(made["raw", 8]), "--out", str(tmp_path / "one")]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        write_stream(made["raw", 8], tmp_path / "mine")
    write_stream(made["raw", 8], tmp_path / "two")
    names = sorted(os.listdir(tmp_path / "one"))
    assert names == sorted(os.listdir(tmp_path / "two"))
    for name in names:
        if name.endswith(".bin"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(ConfigError, match=r"index\.json is missing"):
        read_stream(str(tmp_path))


def test_lookups_span_several_batches(made, monkeypatch):
    """As the index of a large data set does."""
    from hdxray_fast.data.prepared import index_files, lookup, reading, shards
    from hdxray_fast.data.prepared.index import merge

    calm = PreparedSet(made["raw", 8])
    expected = [calm[row] for row in range(6)]
    for module in (shards, index_files, lookup, reading):
        monkeypatch.setattr(module, "LOOKUP_ROWS", 4)
    merge(made["raw", 8])
    data = PreparedSet(made["raw", 8])
    assert len(data) == 6
    for row in range(6):
        for one, two in zip(data[row], expected[row], strict=True):
            np.testing.assert_array_equal(one, two)
    monkeypatch.undo()
    merge(made["raw", 8])
