"""Listing, caching and quarantining of files."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from hdxray_fast.errors import ConfigError, TrainingError
from hdxray_fast.prepare import PreparedImage, Quarantined, list_images, prepare_images, prepare_one, write_quarantine


def test_folder_is_listed_in_a_fixed_order_without_hidden_and_foreign_files(radiographs):
    (radiographs / "sub").mkdir()
    (radiographs / "sub" / "9.PNG").write_bytes(b"x")
    (radiographs / ".hidden.png").write_bytes(b"x")
    (radiographs / "notes.txt").write_text("no image")
    (radiographs / "IM000001").write_bytes(b"DICOM files often have no suffix")
    names = [str(path.relative_to(radiographs)) for path in list_images(radiographs)]
    assert names == sorted([*(f"{i}.png" for i in range(5)), "sub/9.PNG", "IM000001"])


@pytest.mark.parametrize("column", ["image", "path", "Path", "Image Index", " IMAGE_Path"])
def test_manifest_keeps_its_order_and_drops_repeats(radiographs, column):
    manifest = radiographs / "list.csv"
    manifest.write_text(f"patient,{column}\n1,3.png\n2,1.png\n3,3.png\n")
    assert [path.name for path in list_images(manifest)] == ["3.png", "1.png"]
    assert list_images(manifest, images="/elsewhere")[0].as_posix() == "/elsewhere/3.png"


def test_a_folder_that_cannot_be_searched_is_named(radiographs, monkeypatch):
    scan = os.scandir

    def closed(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (radiographs / "sub").mkdir()
    monkeypatch.setattr(os, "scandir", closed)  # who runs tests as root may search any folder
    with pytest.raises(ConfigError, match=r"sub: cannot be searched \(Permission denied\); give access to it"):
        list_images(radiographs)


def test_what_names_no_image_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="names no image"):
        list_images(tmp_path)
    manifest = tmp_path / "m.csv"
    manifest.write_text("picture\na.png\n")
    with pytest.raises(ConfigError, match="columns"):
        list_images(manifest)
    manifest.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="CSV"):
        list_images(manifest)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_set_aside_with_reasons_and_the_rest_is_cached(radiographs, tmp_path, workers):
    (radiographs / "empty.png").touch()
    (radiographs / "text.png").write_text("this is not an image")
    paths = list_images(radiographs)
    seen = []
    prepared, bad = prepare_images(
        paths, tmp_path / "cache", size=128, contour="rectangle", workers=workers, on_done=seen.append
    )
    assert [image.path for image in prepared] == [str(radiographs / f"{i}.png") for i in range(5)]
    assert sorted(os.path.basename(item.path) for item in bad) == ["empty.png", "text.png"]
    assert all(item.reason for item in bad) and len(seen) == 7
    write_quarantine(tmp_path / "q.csv", bad)
    with open(tmp_path / "q.csv", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [item.path for item in bad]
    with np.load(prepared[0].cache) as arrays:
        assert arrays["pixels"].shape == (128, 128) and arrays["pixels"].dtype == np.uint8
        assert arrays["polygon"].shape[1] == 2


def test_second_run_reads_the_cache_and_a_damaged_cache_is_made_again(radiographs, tmp_path):
    paths = list_images(radiographs)
    first, _ = prepare_images(paths, tmp_path / "cache", size=128, contour="rectangle")
    stamps = [os.stat(image.cache).st_mtime_ns for image in first]
    again, _ = prepare_images(paths, tmp_path / "cache", size=128, contour="rectangle")
    assert again == first and [os.stat(image.cache).st_mtime_ns for image in again] == stamps
    with open(first[0].cache, "r+b") as stream:
        stream.truncate(100)
    repaired = prepare_one(first[0].path, first[0].cache, 128, "rectangle")
    assert isinstance(repaired, PreparedImage) and repaired == first[0]
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_changed_file_gets_a_new_cache_entry(radiographs, tmp_path):
    path = radiographs / "0.png"
    (before,), _ = prepare_images([path], tmp_path / "cache", size=128, contour="rectangle")
    path.write_bytes((radiographs / "1.png").read_bytes())
    (after,), _ = prepare_images([path], tmp_path / "cache", size=128, contour="rectangle")
    assert before.cache != after.cache


def test_all_unreadable_is_a_clear_error(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("nothing here")
    with pytest.raises(TrainingError, match=r"none of the 1 files.*bad\.png"):
        prepare_images([bad], tmp_path / "cache", size=128)
    assert isinstance(prepare_one(str(bad), str(tmp_path / "x.npz"), 128, "rectangle"), Quarantined)


def test_a_reader_that_dies_costs_one_file_and_no_more(radiographs, tmp_path, monkeypatch):
    """The one file whose reader is killed is quarantined; those that waited behind it are read all the same."""
    pytest.importorskip("loky")
    from hdxray_fast import prepare

    monkeypatch.setattr(prepare, "prepare_one", _dies_on_2)
    prepared, bad = prepare_images(list_images(radiographs), tmp_path / "cache", size=128, workers=2)
    assert [os.path.basename(item.path) for item in bad] == ["2.png"]
    assert "died" in bad[0].reason
    assert len(prepared) == 4


def _dies_on_2(path, cache, size, contour):
    if path.endswith("2.png"):
        os.kill(os.getpid(), 9)
    return PreparedImage(path, cache, 1.0, contour, False, 0.5)


def test_a_script_without_a_main_guard_works(radiographs, tmp_path):
    pytest.importorskip("loky")
    script = tmp_path / "script.py"
    script.write_text(
        "from hdxray_fast.prepare import list_images, prepare_images\n"
        f"done, bad = prepare_images(list_images({str(radiographs)!r}), {str(tmp_path / 'cache')!r},\n"
        "    size=128, contour='rectangle', workers=2)\n"
        "print('ready', len(done))\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert ran.stdout == "ready 5\n"
