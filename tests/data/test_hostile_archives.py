"""Archives that lie about themselves: each costs its own time and memory, within caps, and is one row of quarantine."""

import io
import os
import stat
import sys
import tarfile
import time
import tracemalloc
import zipfile
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from archive_makers import KINDS, PACK, damaged, hostile_tars, pax_record, suffix, tar_header, tar_of, zip_of
from prepared_helpers import SIZE, prepare, rows_of
from toy_radiographs import draw_radiograph

from hdxray_fast.data import reader_pool
from hdxray_fast.data.prepared import archive_lists
from hdxray_fast.data.prepared.archive_lists import list_archives
from hdxray_fast.data.prepared.archives import list_members
from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.pool import prepared_rows
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.sources import Source, list_sources
from hdxray_fast.data.prepared.unpacking import Unpacker
from hdxray_fast.data.reader_pool import LATER, Failed, call_in_order
from hdxray_fast.errors import ConfigError, ImageReadError
from hdxray_fast.names import escaped

RECIPE = PrepareConfig(["-"], "-", img_size=SIZE, contour="rectangle", view="any", body_part="any").recipe()
REFUSED = {
    "negative size": "points backwards|size is negative",
    "negative size of the first": "points backwards|size is negative",
    "negative size in a record": "points backwards|size is negative",
    "negative size of a record": "longer than 64 KiB",
    "long record": "longer than 64 KiB",
    "long name": "longer than 64 KiB",
    "records without end": "longer than 64 KiB",
    "size beyond all files": "",
    "a broken header within": "a header in it is damaged",
}


@pytest.fixture(scope="module")
def image() -> bytes:
    return cv2.imencode(".png", draw_radiograph(0))[1].tobytes()


@pytest.fixture
def pool() -> None:
    pytest.importorskip("loky")
    pytest.importorskip("pebble")


@pytest.fixture
def bomb(tmp_path) -> Path:
    """8 MB that unpack to 8 GiB, which takes longer than a second anywhere."""
    packed = tmp_path / "bomb.tar.gz"
    filler = PACK["gz"](bytes(16 << 20))
    packed.write_bytes(PACK["gz"](tar_header(b"filler.bin", 512 * (16 << 20))) + 512 * filler)
    return packed


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", ["tar", "gz", "bz2"])
def test_a_tar_that_lies_is_refused_in_no_time_and_no_memory(image, tmp_path, case, kind):
    data = hostile_tars(image)[case]
    path = tmp_path / f"x{suffix(kind)}"
    path.write_bytes(PACK[kind](data) if kind in PACK else data)
    del data
    tracemalloc.start()
    try:
        with pytest.raises(ImageReadError, match=f"is damaged or no archive .*({REFUSED[case]})"):
            list_members(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match=r"x\..*is no regular file"):
        list_sources([tmp_path / name], workers=0)
    (row,) = prepared_rows([Source(str(tmp_path / name), "0.png")], RECIPE, None, workers=0)
    assert "is no regular file" in row.reason


def test_one_bad_archive_is_one_row_however_it_is_named(image, tmp_path, pool):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(image)
    (tmp_path / "in" / "negative.tar").write_bytes(hostile_tars(image)["negative size"])
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 no more")
    result = prepare([tmp_path / "cut.zip", tmp_path / "in"], tmp_path / "set", workers=1)
    assert result.counts == {"ok": 1, "unreadable": 2}
    bad = {Path(row["source"]).name: row["reason"] for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    assert set(bad) == {"cut.zip", "negative.tar"}
    assert bad["cut.zip"] == "ImageReadError: is damaged or no archive (BadZipFile: File is not a zip file)"
    # a list of sources that an earlier version wrote
    import pyarrow.parquet as parquet

    table = parquet.read_table(tmp_path / "set" / "sources.parquet")
    parquet.write_table(table.drop_columns(["refused"]), tmp_path / "set" / "sources.parquet")
    (tmp_path / "set" / "shards" / "00000.bin").unlink()
    assert prepare([tmp_path / "in"], tmp_path / "set", workers=0).counts == {"ok": 1, "unreadable": 2}
    with pytest.raises(ConfigError, match=r"cut\.zip is damaged or no archive .*; leave it out or fetch it again"):
        list_sources([tmp_path / "cut.zip"])


def test_listing_ends_at_the_limits_on_time_and_memory(image, tmp_path, bomb, pool, monkeypatch):
    entry = b"PK\1\2" + bytes([20, 3, 20, 0]) + bytes(20) + b"\5\0" + bytes(16) + b"0.png"  # of a list of files
    entries, end = 400_000 * entry, b"PK\5\6" + bytes(4) + b"\xff" * 4
    big = end + len(entry * 400_000).to_bytes(4, "little") + bytes(6)
    (tmp_path / "many.zip").write_bytes(entries + big)
    (tmp_path / "good.zip").write_bytes(zip_of({"0.png": image}))
    slow, good = list_archives([bomb, tmp_path / "good.zip"], timeout=1.0).values()
    assert slow == Failed("TimeoutError", "takes longer than 1 s")
    assert [member.name for member in good] == ["0.png"]
    if sys.platform == "linux":
        monkeypatch.setattr(reader_pool, "LEAST_MEMORY", 64)
        large, good = list_archives([tmp_path / "many.zip", tmp_path / "good.zip"], max_memory=64).values()
        assert large == Failed("MemoryError", "needs more memory than one file may take (64 MiB)")
        assert [member.name for member in good] == ["0.png"]


def test_an_archive_that_hangs_while_it_is_unpacked_hangs_once(bomb, tmp_path, pool):
    with closing(Unpacker(tmp_path / "scratch", timeout=1.0)) as unpacker:
        assert unpacker.fetch(Source(str(bomb), "late.png")).error == "TimeoutError"
        before = time.monotonic()
        assert unpacker.fetch(Source(str(bomb), "later.png")).error == "TimeoutError"
        assert time.monotonic() - before < 0.5
        good = tmp_path / "good.tar.gz"
        good.write_bytes(PACK["gz"](tar_of({"0.png": b"data"})))
        assert unpacker.fetch(Source(str(good), "0.png")).read_bytes() == b"data"
    assert not (tmp_path / "scratch").exists()


def test_larger_archives_have_more_time(tmp_path):
    path = tmp_path / "large.tar"
    with path.open("wb") as stream:
        stream.truncate(256 << 20)
    assert archive_lists.archive_timeout(path, 60) == 60
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    assert archive_lists.archive_timeout(path, 60) == 240
    assert archive_lists.archive_timeout(tmp_path / "gone.tar", 60) == 60


def test_what_is_unpacked_ahead_stays_below_its_cap(tmp_path, pool, monkeypatch):
    rng = np.random.default_rng(0)
    files = {
        f"{n}.png": cv2.imencode(".png", rng.integers(0, 256, (500, 600), np.uint8))[1].tobytes() for n in range(9)
    }
    (tmp_path / "a.tar.gz").write_bytes(PACK["gz"](tar_of(files)))
    held, fetch = [], Unpacker.fetch

    def noted(self, source):
        path = fetch(self, source)
        held.append(sum(file.stat().st_size for file in self.folder.iterdir()))
        return path

    sources = list_sources([tmp_path / "a.tar.gz"])
    assert [source.size for source in sources] == [len(data) for data in files.values()]
    monkeypatch.setattr(Unpacker, "fetch", noted)
    for cap, most in ((1, 3), (4096, 9)):
        held.clear()
        rows = list(prepared_rows(sources, RECIPE, None, workers=2, max_scratch=cap))
        assert [(row.source, row.status) for row in rows] == [(source.name, "ok") for source in sources]
        assert max(held) <= cap << 20 and round(max(held) / len(files["0.png"])) <= most
    monkeypatch.undo()
    # a member that is larger than the cap is refused before anything is written
    large = Source(str(tmp_path / "a.tar.gz"), "0.png", "", -1, 2 << 20)
    (row,) = prepared_rows([large], RECIPE, None, workers=0, max_scratch=1)
    assert row.reason == "ImageTooLargeError: declares 2097152 bytes; accepted: up to 1048576"


def test_calls_that_must_wait_for_a_result_are_asked_for_again(pool):
    running, most = set(), []

    def jobs():
        for number in range(6):
            while len(running) == 2:
                yield LATER
            running.add(number)
            most.append(len(running))
            yield (str(number),)

    found = []
    for text in call_in_order(str, jobs(), workers=2):
        running.remove(int(text))
        found.append(text)
    assert found == list("012345") and max(most) == 2


def test_limits_on_what_is_listed(image, tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of({f"{n}.png": image for n in range(4)}))
    assert len(list_members(tmp_path / "a.zip", max_members=4)) == 4
    with pytest.raises(ImageReadError, match="lists more than 3 files; --max-members allows more"):
        list_members(tmp_path / "a.zip", max_members=3)
    record = pax_record(b"path", b"n" * 5000)
    long = tar_header(b"x", len(record), b"x") + record.ljust(5120, b"\0") + tar_header(b"a.png", 0) + bytes(1024)
    (tmp_path / "long.tar").write_bytes(long)
    with pytest.raises(ImageReadError, match="longer than 4096 characters"):
        list_members(tmp_path / "long.tar")
    (tmp_path / "names.tar").write_bytes(tar_of({"n" * 2000: b""}))
    with pytest.raises(ImageReadError, match="the names in it are too long"):
        list_members(tmp_path / "names.tar", max_members=7)


def test_only_regular_files_are_members(image, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("fifo.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("0.png")
        info.size = len(image)
        tar.addfile(info, io.BytesIO(image))
    assert [member.name for member in list_members(tmp_path / "a.tar")] == ["0.png"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("0.png", image)
    assert [member.name for member in list_members(tmp_path / "a.zip")] == ["0.png"]
    (tmp_path / "sparse.tar").write_bytes(tar_header(b"0.png", 512, b"S") + bytes(1536))
    with pytest.raises(ImageReadError, match="sparse"):
        list_members(tmp_path / "sparse.tar")


def test_names_that_are_no_text_are_prepared(image, tmp_path, pool):
    for kind in ("tar", "gz"):
        data = hostile_tars(image)["no text for a name"]
        (tmp_path / f"a{suffix(kind)}").write_bytes(PACK[kind](data) if kind in PACK else data)
    sources = [tmp_path / "a.tar", tmp_path / "a.tar.gz"]
    assert prepare(sources, tmp_path / "set", workers=1, keep_duplicates=True).counts == {"ok": 2}
    names = [Path(name).name.partition("::")[2] for name in PreparedSet(tmp_path / "set").sources()]
    assert [escaped(name) for name in names] == [r"\xff\xfe\xed\xa0\x80.png"] * 2


def test_the_last_file_of_a_name_counts(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (("a.png", b"1"), ("b.png", b"22"), ("a.png", b"333")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "a.tar.gz").write_bytes(PACK["gz"](out.getvalue()))
    sources = list_sources([tmp_path / "a.tar.gz"], workers=0)
    with closing(Unpacker(tmp_path / "scratch", workers=0)) as unpacker:
        assert [unpacker.fetch(source).read_bytes() for source in sources] == [b"22", b"333"]


def test_a_folder_without_archives_starts_no_worker(image, tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(image)
    monkeypatch.setattr(archive_lists, "call_in_order", None)
    assert [source.name for source in list_sources([tmp_path])] == [str(tmp_path / "0.png")]


def test_damaged_archives_end_in_rows(image, tmp_path, pool):
    """A few of each kind; benchmarks/reliability/fuzz_archives.py sends thousands."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(image)
    for place, kind in enumerate(KINDS):
        for number in range(20):
            data = damaged(kind, [image[:500], image[:200], b"no image"], np.random.default_rng([place, number]))
            (folder / f"{number:02d}{suffix(kind)}").write_bytes(data)
    sources = list_sources([folder], timeout=20.0)
    refused = [source for source in sources if source.refused]
    assert 20 < len(refused) < 100
    assert not [source for source in refused if not source.refused.startswith("ImageReadError: ")]
    rows = list(prepared_rows(sources, RECIPE, None, workers=1, timeout=20.0))
    assert [row.source for row in rows] == [source.name for source in sources]
    named = {"ImageReadError", "ImageTooLargeError", "UnsupportedImageError"}
    assert {row.error for row in rows if row.status == "unreadable"} <= named
    assert rows[0].status == "ok"
