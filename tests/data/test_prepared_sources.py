"""What is taken for a source: names by UID, links, archives in folders; what is left out is told."""

import json
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import pytest
from archive_makers import tar_of, zip_of
from prepared_helpers import SIZE, prepare, rows_of
from toy_radiographs import draw_radiograph
from xray_makers import dicom

from hdxray_fast.data.listing import list_images
from hdxray_fast.data.prepared.index import read_set_aside
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.sources import list_sources, run_sources
from hdxray_fast.data.prepared.tally import describe
from hdxray_fast.errors import ConfigError

UID = "1.2.840.113619.2.5.17"


def test_files_named_by_uid_are_taken_and_other_names_are_told(tmp_path):
    root = tmp_path / "xrays"
    (root / "deep").mkdir(parents=True)
    dicom(root / UID, draw_radiograph(0))
    dicom(root / "deep" / "IM1", draw_radiograph(1))
    for name in ("notes.txt", "deep/x.dcm.gz", "list.csv", ".hidden.doc"):
        (root / name).write_text("no image")
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.write(root / UID, f"study/{UID[:-1]}8")
        archive.writestr("study/readme.md", "no image")
        archive.writestr(".DS_Store", "no image")
    summary = prepare([root], tmp_path / "set", keep_duplicates=True).summary
    names = [Path(name.replace("::", "/")).name for name in PreparedSet(tmp_path / "set").sources()]
    assert names == [UID, "IM1", f"{UID[:-1]}8"]
    skipped = [f"{root}/deep/x.dcm.gz", f"{root}/list.csv", f"{root}/more.zip::study/readme.md", f"{root}/notes.txt"]
    assert [row["source"] for row in rows_of(tmp_path / "set" / "skipped.csv")] == skipped
    written = json.loads((tmp_path / "set" / "summary.json").read_text())
    assert (written["skipped"], written["skipped_first"]) == (4, skipped[:3])
    assert f"left out for the suffix: 4 ({', '.join(skipped[:3])}, ...); all of them: skipped.csv" in describe(summary)
    assert describe(summary).splitlines()[0].endswith(f"{3 * SIZE * SIZE / 1024:.2f} KiB")
    assert [path.name for path in list_images(root)] == [UID, "IM1"]


def test_what_to_do_about_a_damaged_list(tmp_path):
    """Merging writes its own lists again, and reads that of skipped files, which only going without helps."""
    for name, way in (("skipped.csv", "remove it"), ("quarantine.csv", f"hdxray-fast merge {tmp_path} writes it")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(ConfigError, match=rf"{name}: is missing or damaged \(its columns are not .*\); {way}"):
            read_set_aside(tmp_path)
        (tmp_path / name).unlink()


def test_a_folder_without_an_image_tells_what_was_left_out(tmp_path):
    (tmp_path / "xrays").mkdir()
    (tmp_path / "xrays" / "x.dcm.gz").write_text("")
    with pytest.raises(ConfigError, match=r"^sources: no image in .*xrays; left out .*: 1 \(.*x\.dcm\.gz\); accepted"):
        list_sources([tmp_path / "xrays"])


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_folders_are_followed_once(tmp_path):
    root, store = tmp_path / "xrays", tmp_path / "store"
    for folder in (root / "b", store / "inner"):
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "x.png"), draw_radiograph(0))
    (root / "a").symlink_to(root / "b")  # the file keeps the name where it lies
    (root / "c").symlink_to(store)
    (root / "d").symlink_to(store / "inner")
    (store / "back").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    wanted = [str(root / "b" / "x.png"), str(root / "c" / "inner" / "x.png")]
    assert [str(path) for path in list_images(root)] == wanted
    assert [source.name for source in list_sources([root])] == wanted


def test_reasons_advise_nothing_that_prepare_cannot_do(tmp_path):
    root = tmp_path / "xrays"
    root.mkdir()
    cv2.imwrite(str(root / "good.png"), draw_radiograph(0))
    cv2.imwritemulti(str(root / "pages.tiff"), [draw_radiograph(1), draw_radiograph(2)])
    whole = dicom(tmp_path / "whole.dcm", draw_radiograph(4), "1.2.840.10008.1.2").read_bytes()
    (root / "bare.dcm").write_bytes(whole[144 + int.from_bytes(whole[140:144], "little") :])
    (root / "large.png").write_bytes(huge_png())
    prepare([root], tmp_path / "set")
    reasons = {Path(row["source"]).stem: row["reason"] for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    assert reasons.keys() == {"pages", "bare", "large"}
    assert reasons["pages"].endswith("holds 2 frames; only files of a single frame are read")
    assert reasons["large"].partition("accepted: up to ")[2].isdecimal()
    assert not any(re.search(r"pass |\w=", reason) for reason in reasons.values()), reasons


def huge_png() -> bytes:
    """A head that declares 200,000 x 200,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 0, 0, 0, 0)
    data, end = b"IDAT" + zlib.compress(bytes(1000)), b"IEND"
    chunks = (
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data, end)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_archive_without_an_image_is_quarantined_with_its_reason(tmp_path):
    root = tmp_path / "xrays"
    root.mkdir()
    cv2.imwrite(str(root / "good.png"), draw_radiograph(0))
    (root / "texts.zip").write_bytes(zip_of({"a.txt": b"", "b.txt": b""}))
    (root / "hidden.tar").write_bytes(tar_of({".DS_Store": b""}))
    (tmp_path / "empty.zip").write_bytes(zip_of({}))
    result = prepare([root, tmp_path / "empty.zip"], tmp_path / "set")
    assert result.counts == {"ok": 1, "unreadable": 3}
    quarantine = {Path(row["source"]).name: row["reason"] for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    begin = "UnsupportedImageError: holds no image: "
    assert quarantine == {
        "hidden.tar": begin + "none of its 1 files has the name of one",
        "texts.zip": begin + "none of its 2 files has the name of one",
        "empty.zip": begin + "it is empty",
    }
    with pytest.raises(ConfigError, match=r"no image in .*texts\.zip; left out for the suffix: 2 \("):
        list_sources([root / "texts.zip"], workers=0)


def test_lists_of_names_that_drive_a_terminal_show_and_lose_nothing(tmp_path):
    root = tmp_path / "xrays"
    root.mkdir()
    names = ["a\x1b[2J\n.png", "b\x9b2J\r.png", "bad\x07.png", "text\x1b]0;.doc"]
    for name in names[:2]:
        (root / name).write_bytes(cv2.imencode(".png", draw_radiograph(0))[1].tobytes())
    for name in names[2:]:
        (root / name).write_text("no image")
    prepare([root], tmp_path / "set")
    for table in (tmp_path / "set").glob("*.csv"):
        assert "".join(table.read_text("utf-8").splitlines()).isprintable()
        assert len(rows_of(table)) == 1, table.name
    (copy,) = rows_of(tmp_path / "set" / "duplicates.csv")
    assert (copy["source"], copy["same_pixels_as"]) == (rf"{root}/b\u009b2J\x0d.png", rf"{root}/a\x1b[2J\x0a.png")
    assert set(read_set_aside(tmp_path / "set")) == {f"{root}/{name}" for name in names[1:]}
    assert PreparedSet(tmp_path / "set").sources() == [f"{root}/{names[0]}"]


def test_a_manifest_none_of_whose_files_is_there_is_refused_with_the_folder_that_is_meant(tmp_path):
    """Its films, in another folder that is a source as well, would count as unreadable beside themselves."""
    for folder in ("xrays", "lists"):
        (tmp_path / folder).mkdir()
    (tmp_path / "xrays" / "a.png").touch()
    listed = tmp_path / "lists" / "list.csv"
    listed.write_text("image,patient\na.png,p1\n")
    with pytest.raises(ConfigError, match=r"list.csv: none of the 1 images exists, .*; is --images .*xrays meant\?$"):
        list_sources([tmp_path / "xrays", listed])
    with pytest.raises(ConfigError, match=r"^sources: .*xrais does not exist; is .*xrays meant\?$"):
        list_sources([tmp_path / "xrais"])


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_that_a_folder_and_a_manifest_name_is_one_source_of_a_patient(first, tmp_path, monkeypatch):
    """However each spells its place, and whichever comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xrays").mkdir()
    (tmp_path / "xrays" / "a.png").touch()
    (tmp_path / "list.csv").write_text("image,patient\nxrays/a.png,p1\n")
    data = [Path("xrays"), tmp_path / "list.csv"]
    (source,) = list_sources([data[first], data[1 - first]])
    assert (Path(source.name).absolute(), source.patient) == (tmp_path / "xrays" / "a.png", "p1")


def test_a_run_tells_of_archives_that_it_passes_over(tmp_path, capsys):
    """Those of a folder; where one is named, its members are read."""
    root = tmp_path / "films"
    root.mkdir()
    cv2.imwrite(str(root / "a.png"), draw_radiograph(0))
    (root / "notes.txt").touch()
    assert len(run_sources(root)) == 1 and "archive" not in capsys.readouterr().err
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.write(root / "a.png", "b.png")
    assert len(run_sources(root)) == 1
    assert f"{root}: 1 archive is passed over (more.zip); name archives themselves" in capsys.readouterr().err
    assert len(run_sources(root / "more.zip", workers=0)) == 1 and "archive" not in capsys.readouterr().err
