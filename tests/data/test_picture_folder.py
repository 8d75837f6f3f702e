"""Pictures of one call never stand beside those of another, and nobody else's file is removed for that."""

from __future__ import annotations

import json

import pytest

import hdxray_fast as hx
from hdxray_fast.data.picture_folder import PictureFolder


def call(out, *files: str, force=False, **settings) -> PictureFolder:
    return PictureFolder(out, "features", settings, {f"{file}.png": f"/data/{file}" for file in files}, (), force)


def draw(folder: PictureFolder) -> None:
    folder.claim()
    for name in folder.pictures:
        (folder.path / name).write_text(str(folder.settings))


def there(out) -> list[str]:
    return sorted(path.name for path in out.glob("[!.]*"))


def test_the_same_call_again_and_with_more_files(tmp_path):
    for files in (("a", "b"), ("a", "b"), ("a", "c", "b")):
        draw(call(tmp_path, *files, at=(1, 2)))
    assert there(tmp_path) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"files": ("a",), "at": (1, 2)}, r"drew in another call \(of other files: b.png\); give another folder, or"),
        ({"files": ("a", "b"), "at": (1, 3)}, r"\(other at\)"),
        ({"files": ("a", "b"), "at": (1, 2), "keep": "contour"}, r"\(other keep\)"),
    ],
)
def test_another_call_is_refused_or_takes_its_place(tmp_path, other, why):
    draw(call(tmp_path, "a", "b", at=(1, 2)))
    (tmp_path / "notes.txt").write_text("mine")
    files, settings = other["files"], {name: value for name, value in other.items() if name != "files"}
    before = {name: (tmp_path / name).read_text() for name in there(tmp_path)}
    with pytest.raises(hx.ConfigError, match=why):
        call(tmp_path, *files, **settings).claim()
    assert {name: (tmp_path / name).read_text() for name in there(tmp_path)} == before
    draw(call(tmp_path, *files, force=True, **settings))
    assert there(tmp_path) == [*(f"{file}.png" for file in files), "notes.txt"]
    assert (tmp_path / "a.png").read_text() == str(settings) and (tmp_path / "notes.txt").read_text() == "mine"


def test_the_same_name_of_another_file_is_another_picture(tmp_path):
    draw(call(tmp_path, "a"))
    with pytest.raises(hx.ConfigError, match=r"of other files: a\.png"):
        PictureFolder(tmp_path, "features", {}, {"a.png": "/elsewhere/a"}).claim()


def test_pictures_that_were_removed_hold_up_nobody(tmp_path):
    draw(call(tmp_path, "a", at=1))
    (tmp_path / "a.png").unlink()
    draw(call(tmp_path, "b", at=2))
    assert there(tmp_path) == ["b.png"]


@pytest.mark.parametrize("record", ["", "[]", '{"files": 3}', json.dumps({"settings": {}, "files": {"../x.png": "y"}})])
def test_a_record_that_is_none_removes_nothing(tmp_path, record):
    out = tmp_path / "out"
    draw(call(out, "a"))
    (tmp_path / "x.png").write_text("mine")
    (out / ".features.drawn").write_text(record)
    draw(call(out, "b", force=True))
    assert there(out) == ["a.png", "b.png"] and (tmp_path / "x.png").read_text() == "mine"


def test_files_of_others_are_refused_even_with_force(tmp_path):
    for name in ("a.png", ".features.drawn"):
        out = tmp_path / name.strip(".")
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(hx.ConfigError, match="would be written over, and nothing says that features made"):
            call(out, "a", force=True).claim()
        assert (out / name).read_text() == "mine"
