"""Archives as sources: zips and tars, plain and compressed, damaged and hostile."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prepared_helpers import SIZE, contents, make_folder, prepare, rows_of

import hdxray_fast as hx
from hdxray_fast.data.prepared.archives import list_members
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.sources import Source, as_file, list_sources
from hdxray_fast.data.prepared.unpacking import Unpacker
from hdxray_fast.errors import ConfigError, ImageReadError
from hdxray_fast.images.canvas import read_canvas


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "xrays")


def test_archives(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / "0.png", "deep/0.png")
        archive.writestr("__MACOSX/deep/._0.png", "rubbish")
        archive.writestr("notes.txt", "no image")
        archive.writestr("deep/broken.png", (folder / "1.png").read_bytes()[:100])
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(folder / "1.png", "1.png")
        archive.add(folder / "2.png", "x/2.png")
    prepare([tmp_path / "a.zip", tmp_path / "b.tar.gz"], tmp_path / "set")
    data = PreparedSet(tmp_path / "set")
    names = [f"{tmp_path}/a.zip::deep/0.png", f"{tmp_path}/b.tar.gz::1.png", f"{tmp_path}/b.tar.gz::x/2.png"]
    assert [data.source(row) for row in range(len(data))] == names
    for row, number in enumerate((0, 1, 2)):
        np.testing.assert_array_equal(data[row].pixels, read_canvas(folder / f"{number}.png", size=SIZE).pixels)
    (bad,) = rows_of(tmp_path / "set" / "quarantine.csv")
    assert bad["source"].endswith("a.zip::deep/broken.png") and "/tmp" not in bad["reason"]


def test_damaged_archives_and_hostile_members_are_named(tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ConfigError, match=r"cut\.zip is damaged"):
        list_sources([tmp_path / "cut.zip"])
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(5_000_000))
    bomb = str(tmp_path / "bomb.zip")
    with pytest.raises(hx.HDXrayError, match="declares 5000000 bytes"), as_file(Source(bomb, "zeros.png"), 1_000_000):
        pass
    with pytest.raises(hx.HDXrayError, match="no such member"), as_file(Source(bomb, "gone.png"), 1000):
        pass
    # a member's name never becomes a path to write to
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        info = tarfile.TarInfo("up/../../../escaped.png")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    with as_file(Source(str(tmp_path / "evil.tar"), "up/../../../escaped.png"), 1000) as path:
        assert "escaped" not in path and Path(path).read_bytes() == b"data"
    assert not (tmp_path.parent / "escaped.png").exists()


@pytest.mark.parametrize(("kind", "workers"), [("", 0), ("gz", 2), ("xz", 0)])
def test_tars_give_what_the_folder_gives(folder, tmp_path, kind, workers):
    (folder / "notes.csv").write_text("no image")
    name = tmp_path / ("all.tar" + (kind and f".{kind}"))
    with tarfile.open(name, f"w:{kind}") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    prepare([name], tmp_path / "set", workers=workers)
    prepare([folder], tmp_path / "plain")
    one, two = PreparedSet(tmp_path / "set"), PreparedSet(tmp_path / "plain")
    assert len(one) == len(two) == 6
    for row in range(6):
        assert one.source(row) == f"{name}::{Path(two.source(row)).name}"
        np.testing.assert_array_equal(one.pixels(row), two.pixels(row))
    assert not list((tmp_path / "set").glob(".unpacked*"))
    # what a run left behind that was killed once all shards were made
    (tmp_path / "set" / ".unpacked-1-of-1").mkdir()
    assert prepare([name], tmp_path / "set", workers=workers).made == 0
    assert not list((tmp_path / "set").glob(".unpacked*"))
    # a shard in the middle that was lost: the archive is gone through from its start again
    before = contents(tmp_path / "set")
    (tmp_path / "set" / "shards" / "00001.bin").unlink()
    assert prepare([name], tmp_path / "set", workers=workers).made == 1
    assert contents(tmp_path / "set") == before


def test_a_cut_tar_costs_its_last_members(folder, tmp_path):
    whole = io.BytesIO()
    rng = np.random.default_rng(0)
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 100_000
            archive.addfile(info, io.BytesIO(rng.bytes(info.size)))
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(whole.getvalue()[:250_000])
    unpacker = Unpacker(tmp_path / "scratch", workers=0)

    def fetch(member: str):
        return unpacker.fetch(Source(str(path), f"{member}.png"))

    assert fetch("0").stat().st_size == 100_000
    assert fetch("1").stat().st_size == 100_000
    for member in "234":
        assert "cannot be unpacked" in fetch(member).reason
    assert fetch("0").stat().st_size == 100_000
    assert len(list((tmp_path / "scratch").iterdir())) == 3  # nothing of those that failed
    unpacker.close()
    assert not (tmp_path / "scratch").exists()
    small = Unpacker(tmp_path / "other", workers=0, max_bytes=1000)
    assert small.fetch(Source(str(path), "0.png")) == (
        "ImageTooLargeError",
        "declares 100000 bytes; accepted: up to 1000",
    )
    small.close()


def test_a_damaged_archive_in_a_folder_is_quarantined(folder, tmp_path):
    (folder / "cut.zip").write_bytes(b"PK\x03\x04 no more")
    prepare([folder], tmp_path / "set")
    bad = {Path(row["source"]).name: row["reason"] for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    assert bad["cut.zip"] == "ImageReadError: is damaged or no archive (BadZipFile: File is not a zip file)"


def test_members_of_plain_tars_are_read_where_they_lie(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "0.png", "0.png")
    (member,) = list_members(tmp_path / "a.tar")
    assert member.size == (folder / "0.png").stat().st_size and member.offset > 0
    with open(tmp_path / "a.tar", "r+b") as stream:
        stream.truncate(member.offset + 100)
    source = Source(str(tmp_path / "a.tar"), "0.png", "", member.offset, member.size)
    with pytest.raises(ImageReadError, match="ends within it"), as_file(source, 1 << 20):
        pass
