"""Chunks at an address are read as a local copy of them is: each fetched when it is needed, within a cap, or named."""

from __future__ import annotations

import json
import os
import shutil
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
from prepared_helpers import SIZE, make_folder, prepare

import hdxray_fast as hx
from hdxray_fast.data.prepared import chunk_store
from hdxray_fast.data.prepared.chunk_store import ChunkStore, is_address
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.shards import ShardError
from hdxray_fast.data.prepared.streamed_set import StreamedSet
from hdxray_fast.data.read_ahead import BlocksAhead
from hdxray_fast.data.sampler import StepSampler

pytest.importorskip("litdata")
pytest.importorskip("fsspec")
import fsspec

from hdxray_fast.data.prepared.stream_writing import write_stream

LARGE = 1 << 30
IMAGES = 6


@pytest.fixture(scope="module")
def chunks(tmp_path_factory) -> Path:
    """Six chunks of an image each."""
    root = tmp_path_factory.mktemp("stream")
    prepare([make_folder(root / "films")], root / "set")
    assert write_stream(root / "set", root / "chunks", chunk_bytes=1) == IMAGES
    return root / "chunks"


@pytest.fixture
def address(chunks, tmp_path):
    """The chunks in a store of their own, in memory."""
    name = f"memory://{tmp_path.name}/chest"
    store = fsspec.filesystem("memory")
    store.put(f"{chunks}/*", f"/{tmp_path.name}/chest/")
    yield name
    store.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of the chunks that are fetched, as they are."""
    found, fetch = [], ChunkStore.fetch

    def noted(self, file, to, size):
        if file.startswith("chunk"):
            found.append(file)
        return fetch(self, file, to, size)

    monkeypatch.setattr(ChunkStore, "fetch", noted)
    monkeypatch.setattr(chunk_store, "PAUSE", 0.0)
    return found


def bytes_of(address: str, file: str) -> str:
    return f"{address.removeprefix('memory:/')}/{file}"


def change(address: str, file: str, change) -> None:
    store = fsspec.filesystem("memory")
    store.pipe(bytes_of(address, file), change(store.cat(bytes_of(address, file))))


def flipped(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def name_of(data: PreparedSet, row: int) -> str:
    return f"chunk-0-{data.column('shard')[row].as_py()}.bin"


def same(data, local) -> None:
    for row in range(len(local)):
        one, other = data[row], local[row]
        assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.polygon, other.polygon)
        assert one.valid_box == other.valid_box and (one.scale, one.shift) == (other.scale, other.shift)


def test_what_is_read_is_what_a_copy_gives_and_each_chunk_is_fetched_once(chunks, address, tmp_path, fetched):
    local = PreparedSet(chunks)
    for place in (address, f"file://{chunks}"):
        fetched.clear()
        data = StreamedSet(ChunkStore(place), tmp_path / "cache", LARGE)
        assert not fetched and data.sources() == local.sources()
        assert np.array_equal(data.shares_by_image(), local.shares_by_image())
        same(data, local)
        same(data, local)
        assert sorted(fetched) == sorted({name_of(local, row) for row in range(IMAGES)})
        again = StreamedSet(ChunkStore(place), tmp_path / "cache", LARGE)
        same(again, local)
        assert len(fetched) == IMAGES


def test_the_cap_holds_at_every_moment_and_what_was_not_used_for_longest_goes(address, chunks, tmp_path, monkeypatch):
    most = 2 * max(path.stat().st_size for path in chunks.glob("chunk*"))
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", most)
    taken, fetch = [], ChunkStore.fetch

    def measured(self, *arguments):
        fetch(self, *arguments)
        taken.append(sum(path.stat().st_size for path in data.folder.iterdir() if "chunk" in path.name))

    monkeypatch.setattr(ChunkStore, "fetch", measured)
    for row in (0, 1, 0, 2):
        data[row]
    assert {path.name for path in data.folder.glob("chunk-*")} == {name_of(data, 0), name_of(data, 2)}
    same(data, PreparedSet(chunks))
    assert len(taken) >= IMAGES and max(taken) <= most
    with pytest.raises(hx.ConfigError, match=r"^max_cache: .* hold less than two chunks"):
        StreamedSet(ChunkStore(address), tmp_path / "cache", most // 2)


def test_in_blocks_each_chunk_comes_once_an_epoch_ahead_of_its_images(address, chunks, tmp_path, fetched):
    """With room for two blocks of the three, as ``require_room`` asks for."""
    most = 4 * max(path.stat().st_size for path in chunks.glob("chunk*"))
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", most)
    order = BlocksAhead(data, seed=3, nodes=1, block=2)
    local = PreparedSet(chunks)
    assert np.array_equal(order.epoch(1), BlocksAhead(local, seed=3, nodes=1, block=2).epoch(1))
    seen = []
    for ((epoch, row),) in StepSampler(IMAGES, 1, last=4 * IMAGES, seed=3, order=order):
        order.reader.wait()
        ahead = len(fetched)
        assert np.array_equal(data[row].pixels, local[row].pixels)
        assert len(fetched) == ahead, "it was not there"
        seen.append((epoch, row))
    assert len(set(seen)) == 4 * IMAGES
    assert len(fetched) <= 5 * IMAGES  # four epochs, and one block of the fifth
    assert max(map(fetched.count, fetched)) <= 5


def test_a_part_of_it_is_fetched_ahead_as_all_of_it_is(address, tmp_path, fetched):
    """As what is trained on is, where others are held out."""
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    part = data.subset([0, 2, 3, 5])
    order = BlocksAhead(part, seed=3, nodes=1, block=2)
    assert part.fetchers == data.fetchers > 1 and part.run_starts().tolist() == [0, 1, 2, 3]  # a chunk an image
    for ((_, place),) in StepSampler(4, 1, last=4, seed=3, order=order):
        order.reader.wait()
        ahead = len(fetched)
        part.read(place)
        assert len(fetched) == ahead > 0, "it was not there"


def test_processes_share_what_one_of_them_fetched(address, chunks, tmp_path, fetched):
    local, faults = PreparedSet(chunks), []

    def read() -> None:
        try:
            same(StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE), local)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults and len(fetched) == IMAGES


def test_a_damaged_or_missing_chunk_is_named_and_never_kept(address, tmp_path, fetched):
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    change(address, name_of(data, 0), flipped)
    with pytest.raises(ShardError, match=rf"{address}/{name_of(data, 0)}: the image of row 0 is damaged"):
        data[0]
    change(address, name_of(data, 1), lambda content: content[:-5000])
    with pytest.raises(ShardError, match=rf"{address}/{name_of(data, 1)}: has \d+ bytes, which does not go with"):
        data[1]
    fsspec.filesystem("memory").rm(bytes_of(address, name_of(data, 2)))
    with pytest.raises(ShardError, match=rf"{address}/{name_of(data, 2)}: is missing"):
        data[2]
    assert not [path for path in data.folder.iterdir() if "chunk" in path.name]
    assert data[3].pixels.shape == (SIZE, SIZE)


def test_what_fails_once_is_tried_again_and_what_fails_always_tells_no_secret(address, tmp_path, fetched, monkeypatch):
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    read, failures = chunk_store._copy, []

    def failing(files, path, to, size):
        if failures and (found := failures.pop(0)):
            if isinstance(found, Exception):
                raise found
            read(files, path, to, size)
            to.write_bytes(found(to.read_bytes()))
            return
        read(files, path, to, size)

    monkeypatch.setattr(chunk_store, "_copy", failing)
    failures[:] = [ConnectionError("https://store/?key=SECRET"), TimeoutError()]
    assert data[0].pixels.shape == (SIZE, SIZE)
    failures[:] = [flipped]  # on its way
    assert data[1].pixels.shape == (SIZE, SIZE) and fetched.count(name_of(data, 1)) == 2
    failures[:] = [ConnectionError("https://store/?key=SECRET")] * 9
    said = rf"{name_of(data, 2)}: cannot be fetched \(ConnectionError; 8 attempts\)"
    with pytest.raises(ShardError, match=said) as told:
        data[2]
    assert "SECRET" not in "".join(traceback.format_exception(told.value))
    failures[:] = [PermissionError()]
    with pytest.raises(ShardError, match="refuses to give it"):
        data[2]


def test_what_the_disk_damaged_is_fetched_again(address, chunks, tmp_path, fetched):
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    same(data, PreparedSet(chunks))
    path = data.folder / name_of(data, 0)
    path.write_bytes(flipped(path.read_bytes()))
    (data.folder / name_of(data, 1)).write_bytes(b"")
    same(data, PreparedSet(chunks))
    assert len(fetched) == IMAGES + 2
    (data.folder / "lookup.arrow").write_bytes(b"")
    same(StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE), PreparedSet(chunks))


def test_what_a_killed_process_left_makes_room(address, chunks, tmp_path):
    most = 2 * max(path.stat().st_size for path in chunks.glob("chunk*"))
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", most)
    left = data.folder / ".chunk.1.0123456789abcdef.tmp"
    left.write_bytes(bytes(most))
    os.utime(left, (0, 0))
    same(data, PreparedSet(chunks))
    assert not left.exists()


def test_another_set_at_the_address_is_not_taken_for_the_one_before(address, chunks, tmp_path, fetched):
    first = StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    same(first, PreparedSet(chunks))
    write_stream(chunks.parent / "set", tmp_path / "other", chunk_bytes=2 * SIZE * SIZE)
    fsspec.filesystem("memory").put(f"{tmp_path / 'other'}/*", bytes_of(address, ""))
    same(StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE), PreparedSet(tmp_path / "other"))
    assert len(fetched) == IMAGES + IMAGES // 2


def test_an_index_that_does_not_go_with_its_settings_is_named(address, tmp_path):
    change(address, "lookup.arrow", flipped)
    for _ in range(2):
        with pytest.raises(hx.ConfigError, match=rf"^data: {address}/lookup.arrow is damaged"):
            StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": False}, "tells of no chunks"),
        ({"images": None}, "written by an earlier release"),
        ({"bytes": -1}, "written by an earlier release"),
        ({"checksums": {"lookup.arrow": "../x"}}, "no checksums"),
        ({"format": "other"}, "no prepared data set of this version"),
        ({"recipe": 7}, "recipe is no object"),
    ],
)
def test_settings_of_other_kinds_are_refused(address, changes, words):
    change(address, "settings.json", lambda content: json.dumps({**json.loads(content), **changes}).encode())
    with pytest.raises(hx.ConfigError, match=words):
        ChunkStore(address).settings()


def test_addresses_with_secrets_and_of_unknown_kinds_are_refused(address, tmp_path, fetched):
    for secret in ("s3://key:SECRET@bucket/chest", "https://host/chest?sig=SECRET", "simplecache::s3://SECRET/x"):
        with pytest.raises(hx.ConfigError, match=r"^data: the address holds a user, a password, a query") as told:
            ChunkStore(secret)
        assert "SECRET" not in str(told.value)
    with pytest.raises(hx.ConfigError, match="fsspec knows no store of the kind nowhere://"):
        ChunkStore("nowhere://bucket/chest")
    with pytest.raises(hx.ConfigError, match=rf"^data: {address}/elsewhere/settings.json: is missing"):
        ChunkStore(f"{address}/elsewhere").settings()
    change(address, "settings.json", lambda content: b"\xff{")
    with pytest.raises(hx.ConfigError, match=r"settings\.json is damaged"):
        ChunkStore(address).settings()
    assert is_address("s3://b/c") and not any(map(is_address, ("C:/x", "C://x", "/s3://b", Path("s3://b"))))


def test_nothing_of_anybody_else_is_written_over(address, tmp_path):
    data = StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    (data.folder / ".made-by").unlink()
    with pytest.raises(hx.ConfigError, match=r"^cache: .* would be written over"):
        StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE)
    shutil.rmtree(data.folder)
    same(StreamedSet(ChunkStore(address), tmp_path / "cache", LARGE), data)
