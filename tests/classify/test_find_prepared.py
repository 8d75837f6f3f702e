"""Images of a manifest in a prepared data set: by path, by a name that nothing else has, and never by a guess."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from prepared_helpers import prepare
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.classify.data import without_filtered
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.data.prepared.finding import find_filtered, find_prepared
from hdxray_fast.data.prepared.reading import PreparedSet

pytest.importorskip("pyarrow")


def draw(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), draw_radiograph(seed))
    return str(path)


def found(paths, folder, *listed) -> dict[str, str]:
    """Of each path that was found, the source whose image it gets."""
    images = PreparedSet(folder)
    subset = find_prepared(paths, images, listed)
    assert len(set(subset.rows.tolist())) == len(subset)
    return {path: images.source(int(row)) for path, row in zip(subset.sources(), subset.rows, strict=True)}


def test_by_path_or_by_a_name_that_nothing_else_has(tmp_path):
    first, second = (draw(tmp_path / "old" / f"{name}.png", seed) for seed, name in enumerate("ab"))
    prepare([tmp_path / "old"], tmp_path / "set")
    assert found([second, first], tmp_path / "set") == {second: second, first: first}
    moved = str(tmp_path / "new" / "b.png")
    assert found([moved, str(tmp_path / "new" / "c.png")], tmp_path / "set") == {moved: second}
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert found([moved], tmp_path / "set") == {moved: second}


def test_what_is_set_aside_takes_no_others_pixels(tmp_path):
    """An unreadable image, a repeated one, and one left out, each with the name of another patient's good one."""
    good = [draw(tmp_path / "xrays" / f"patient{i}" / f"view{i}.png", i) for i in range(3)]
    broken = tmp_path / "xrays" / "patient8" / "view0.png"
    broken.parent.mkdir()
    broken.write_bytes(b"\x89PNG cut short")
    repeated = tmp_path / "xrays" / "patient9" / "view1.png"
    repeated.parent.mkdir()
    shutil.copy(good[2], repeated)
    prepare([tmp_path / "xrays"], tmp_path / "set")
    both = [str(broken), str(repeated)]
    assert len(PreparedSet(tmp_path / "set")) == 3
    assert found(both, tmp_path / "set") == {}
    assert found([*good, *both], tmp_path / "set") == {path: path for path in good}
    elsewhere = [path.replace("xrays", "moved") for path in both]
    assert found(elsewhere, tmp_path / "set") == {}


def test_no_row_for_two_paths(tmp_path):
    """Three patients' first views, of which one was prepared, and the manifest's others beside a part of it."""
    view = draw(tmp_path / "patient1" / "view1.png", 0)
    prepare([tmp_path / "patient1"], tmp_path / "set")
    others = [str(tmp_path / f"patient{i}" / "view1.png") for i in (2, 3)]
    assert found([view, *others], tmp_path / "set") == {view: view}
    assert found(others, tmp_path / "set") == {}
    assert found(others[:1], tmp_path / "set", *others) == {}
    draw(Path(others[0]), 1)  # both are there, and not the same
    assert found(others[:1], tmp_path / "set") == {}
    with pytest.raises(hx.ConfigError, match=r"^data: .*view1.png and .*view1.png are one file"):
        found([view, str(tmp_path / "patient1" / ".." / "patient1" / "view1.png")], tmp_path / "set")


def test_members_of_archives(tmp_path):
    draw(tmp_path / "xrays" / "a.png", 0), draw(tmp_path / "xrays" / "b.png", 1)
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "xrays")
    prepare([tmp_path / "all.zip"], tmp_path / "set")
    path = str(tmp_path / "xrays" / "b.png")
    assert found([path], tmp_path / "set") == {path: f"{tmp_path / 'all.zip'}::b.png"}


def test_what_was_left_out_on_purpose_is_no_unreadable_file(tmp_path):
    paths = [draw(tmp_path / "xrays" / f"{name}.png", seed) for seed, name in enumerate("abc")]
    prepare(paths[:2], tmp_path / "set")
    with (tmp_path / "set" / "quarantine.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"{paths[2]},filtered,lateral view (header)\n")
    moved = str(tmp_path / "moved" / "c.png")
    images = PreparedSet(tmp_path / "set")
    assert find_filtered([*paths, moved], images) == {paths[2]: "lateral view (header)"}  # two are called c.png
    assert find_filtered([paths[0], moved], images) == {moved: "lateral view (header)"}
    assert find_filtered([moved], images, [*paths[:2], moved, "other/c.png"]) == {}  # of a split, another in the table
    table = LabelTable(paths, np.ones((3, 1), np.float32), ["mass"], [*"xyz"], ["train"] * 3)
    kept = without_filtered(table, str(tmp_path / "set"))
    assert kept.paths == paths[:2] and without_filtered(kept, str(tmp_path / "set")) is kept
    assert kept.notes == [f"1 image is left out, as {tmp_path / 'set'} was prepared without: 1 lateral view (header)"]
    with pytest.raises(hx.ConfigError, match=r"^prepared: .*1 image is left out, as .*lateral view"):
        without_filtered(table.rows([2]), str(tmp_path / "set"))
