"""Workers write pixels where their shard has them: the bytes, what a pipe takes, what waits for whom, what stays."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection

import cv2
import numpy as np
import pytest
from prepared_helpers import SIZE, contents, make_folder, prepare
from toy_radiographs import draw_radiograph

from hdxray_fast.data.prepared import pool, run, slots
from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.pool import prepared_rows
from hdxray_fast.data.prepared.shards import ShardFolder
from hdxray_fast.data.prepared.slots import Slot, prepare_into, slot_size
from hdxray_fast.data.prepared.sources import Source, list_sources
from hdxray_fast.data.prepared.unpacking import Unpacker
from hdxray_fast.data.prepared.worker import Row, encode, prepare_source
from hdxray_fast.errors import TrainingError

MODULE = """
import os, time
from hdxray_fast.data.prepared import worker

def prepare_source(source, recipe, key):
    folder, name = os.path.split(source.path)
    done = folder + "-done"
    if name == "000.png":  # ends when all others have
        while len(os.listdir(done)) < len(os.listdir(folder)) - 1: time.sleep(0.01)
    row = worker.prepare_source(source, recipe, key)
    open(os.path.join(done, name), "w").close()
    return row
"""


@pytest.fixture(autouse=True)
def no_merge(monkeypatch):
    """Shards are looked at; a merge draws pictures."""
    monkeypatch.setattr(run, "merge", lambda *arguments, **settings: None)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "xrays")


def many(folder, count: int):
    """Radiographs ``000.png``, ``001.png``, ..., every seventh of which is none."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:03d}.png"
        cv2.imwrite(str(path), draw_radiograph(number))
        if number % 7 == 6:
            path.write_bytes(b"nothing")
    return folder


@pytest.mark.parametrize(("kind", "bits"), [("raw", 8), ("raw", 16), ("png", 8), ("jpeg", 8)])
def test_slots_give_the_shards_that_rows_with_their_pixels_give(folder, tmp_path, kind, bits):
    prepare([folder], tmp_path / "set", format=kind, bits=bits, shard_size=16)
    settings = {"img_size": SIZE, "contour": "rectangle", "format": kind, "bits": bits, "shard_size": 16}
    config = PrepareConfig([str(folder)], "-", **settings)
    rows = list(prepared_rows(list_sources([folder]), config.recipe(), b"key", workers=0))
    assert len(rows) == 9 and sum(bool(row.data) for row in rows) == 7
    shards = ShardFolder(tmp_path)
    shards.write(0, rows)
    made = ShardFolder(tmp_path / "set" / "shards")
    assert shards.pixels(0).read_bytes() == made.pixels(0).read_bytes()
    assert shards.read_facts(0).equals(made.read_facts(0))


def test_an_image_in_its_place_is_not_moved(tmp_path, monkeypatch):
    """Of three good ones in a row nothing goes through the process that writes the facts."""
    shards = ShardFolder(tmp_path)
    path = shards.begin(0)
    recipe = PrepareConfig(["-"], "-", img_size=SIZE, contour="rectangle").recipe()
    size = slot_size(recipe)
    rows = [
        prepare_into(Slot(str(path), place * size, size), prepare_source, Source(str(source)), recipe, None)
        for place, source in enumerate(sorted(many(tmp_path / "xrays", 3).iterdir()))
    ]
    before = path.read_bytes()
    assert [row.start for row in rows] == [0, SIZE**2, 2 * SIZE**2] and not any(row.data for row in rows)
    monkeypatch.setattr(slots, "write_all", None)
    shards.write(0, rows, path)
    assert shards.pixels(0).read_bytes() == before and len(before) == 3 * SIZE**2


def test_no_image_exceeds_its_slot():
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 2, (64, 8, 8)) * 2.0 - 1
    pictures = [rng.integers(0, 256, (64, 64)), rng.integers(0, 2, (64, 64)) * 255]
    for size in (64, 128, 260):  # of all coefficients: as many long codes as a block can hold
        blocks = np.stack([cv2.idct(block) for block in signs * size]) + 128
        pictures.append(blocks.reshape(8, 8, 8, 8).transpose(0, 2, 1, 3).reshape(64, 64).clip(0, 255))
    for picture in pictures:
        for kind, bits in (("raw", 8), ("raw", 16), ("png", 8), ("png", 16), ("jpeg", 8)):
            pixels = (picture * 257).astype(np.uint16) if bits == 16 else picture.astype(np.uint8)
            room = slot_size({"size": 64, "bits": bits, "format": kind})
            assert len(encode(pixels, kind, 100)) <= room - (0 if kind == "raw" else 1 << 16) * 0.9


@pytest.mark.parametrize("what", ["changed", "cut"])
def test_pixels_that_are_gone_are_no_shard(tmp_path, what):
    """Changed as only a row that is longer than its slot could do it."""
    shards = ShardFolder(tmp_path)
    path = shards.begin(0)
    path.write_bytes(bytes(200 if what == "changed" else 199))
    rows = [Row("a", "ok", data=bytes(150 if what == "changed" else 50)), Row("b", "ok", start=100, length=100)]
    with pytest.raises(OSError, match=f"it was {what} while it was written"):
        shards.write(0, rows, path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """A reader whose first file waits for all others."""
    pytest.importorskip("loky")
    pytest.importorskip("pebble")
    site = tmp_path / "site"
    site.mkdir()
    (site / "first_ends_last.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(site))
    import first_ends_last

    monkeypatch.setattr(pool, "prepare_source", first_ends_last.prepare_source)
    yield
    del sys.modules["first_ends_last"]


def test_a_file_that_takes_long_stops_no_other_and_pixels_pass_no_pipe(tmp_path, workers, monkeypatch):
    """Its shard's others and those of the next seven wait for it, not for their readers; the set is that of a calm
    run."""
    xrays = many(tmp_path / "xrays", 30)
    (tmp_path / "xrays-done").mkdir()
    received, usual = [], Connection._recv_bytes

    def counted(self, *arguments):
        data = usual(self, *arguments)
        received.append(len(data.getbuffer()))
        return data

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "_recv_bytes", counted)
        result = prepare([xrays], tmp_path / "set", workers=2, timeout=50.0, img_size=256)
    assert result.counts == {"ok": 26, "unreadable": 4}
    assert 1000 < sum(received) / 30 < 20_000 < 256**2
    prepare([xrays], tmp_path / "calm", img_size=256, patient_key=str(tmp_path / "set.patient.key"))
    assert contents(tmp_path / "set") == contents(tmp_path / "calm")
    assert not list((tmp_path / "set").rglob("*.tmp"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_stopped_leaves_no_file(tmp_path, workers):
    """Some shards ahead of the one whose rows are counted are begun by then."""
    out, seen = tmp_path / "set", []

    def stop(row):
        seen.append(row)
        if len(seen) == 6:
            raise KeyboardInterrupt

    config = PrepareConfig(
        [str(many(tmp_path / "xrays", 24))], str(out), img_size=SIZE, workers=workers, shard_size=4, contour="rectangle"
    )
    with pytest.raises(KeyboardInterrupt) as told:
        run.run_prepare(config, progress=False, on_row=stop)
    assert told.tb and sorted(path.name for path in (out / "shards").iterdir()) == ["00000.bin", "00000.parquet"]
    assert not list(out.glob(".unpacked*"))


def test_a_disk_that_fails_a_worker_ends_the_run_and_blames_no_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Slot", lambda path, start, size: Slot(str(tmp_path / "gone" / "shard"), start, size))
    with pytest.raises(TrainingError, match=r"shard: cannot be written \(No such file or directory\)"):
        prepare([folder], tmp_path / "set", workers=0)
    assert not list((tmp_path / "set").rglob("*.tmp"))


def test_facts_of_few_shards_are_held_when_rows_are_made_again(tmp_path, monkeypatch):
    xrays = many(tmp_path / "xrays", 28)
    prepare([xrays], tmp_path / "set", shard_size=7)
    held = []

    class Counted(run.KeptRows):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            held.append(self)

    monkeypatch.setattr(run, "KeptRows", Counted)
    monkeypatch.setattr(run, "KEPT_AHEAD", 1)
    cv2.imwrite(str(xrays / "013.png"), draw_radiograph(13))
    most = []
    config = PrepareConfig(
        [str(xrays)], str(tmp_path / "set"), img_size=SIZE, workers=1, shard_size=7, contour="rectangle", retry=True
    )
    assert run.run_prepare(config, progress=False, on_row=lambda row: most.append(len(held))).made == 4
    assert most == [1, 2, 3, 4]  # of the next shard nothing is read before
    prepare([xrays], tmp_path / "calm", shard_size=7, patient_key=str(tmp_path / "set.patient.key"))
    assert contents(tmp_path / "set") == contents(tmp_path / "calm")


def test_a_file_that_was_read_can_be_read_again_until_it_is_released(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for path in sorted(many(tmp_path / "xrays", 2).iterdir()):
            archive.add(path, path.name)
    one, two = list_sources([tmp_path / "a.tar.gz"], workers=0)
    unpacker = Unpacker(tmp_path / "scratch", workers=0, max_scratch=1)
    unpacker.max_scratch = one.size + two.size - 1
    path = unpacker.fetch(one)
    assert not unpacker.has_room(two)
    recipe = PrepareConfig(["-"], "-", img_size=SIZE, contour="rectangle").recipe()
    for _ in range(2):  # the result of the first was lost with the pool of workers
        assert prepare_into(None, prepare_source, one, recipe, None, str(path)).status == "ok"
    unpacker.release(path)
    assert unpacker.has_room(two)
    unpacker.close()
