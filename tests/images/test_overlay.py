"""Overlays, their JSON files and contact sheets."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from hdxray_fast.data import contour_files
from hdxray_fast.data.contour_files import write_contours
from hdxray_fast.data.csv_cells import read_table
from hdxray_fast.errors import ArgumentError, ArgumentTypeError, ConfigError
from hdxray_fast.images.canvas import Canvas
from hdxray_fast.images.contour import Contour, find_contour, rasterize_polygon
from hdxray_fast.images.overlay import ACCEPTED, FLAGGED, contact_tile, draw_overlay
from hdxray_fast.images.view import ChestView


def to_open(summary) -> str:
    """The table that the last line names: a workbook where one can be written."""
    return summary["table"].replace(".csv", ".xlsx") if find_spec("openpyxl") else summary["table"]


def write_image(path, seed: int = 0, shape: tuple[int, int] = (200, 160)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (8, 8)).astype(np.uint8), shape[::-1], interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(path), image)
    return path


def square_contour(size: int, flagged: bool = False) -> Contour:
    polygon = np.array([[64, 64], [192, 64], [192, 192], [64, 192]], np.float32)
    return Contour(polygon, rasterize_polygon(polygon, size, 32), 0.2 if flagged else 0.9, "network", flagged)


class TestDraw:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_line_tint_and_caption(self, dtype):
        level = 90 if dtype == np.uint8 else 90 << 8
        canvas = Canvas(np.full((256, 256), level, dtype), (0, 0, 256, 256), {})
        picture = draw_overlay(canvas, square_contour(256), "a.png")
        assert picture.dtype == np.uint8
        assert picture.shape[1:] == (256, 3)
        assert picture.shape[0] > 256  # the caption
        assert tuple(picture[20, 20]) == (90, 90, 90)  # outside: untouched
        np.testing.assert_allclose(picture[64, 128], ACCEPTED, atol=60)  # on the line, antialiased
        inside = picture[110, 110].astype(int)
        assert inside[1] > inside[2] + 10  # tinted towards the colour
        assert np.all(picture[256:] == 24, axis=2).mean() > 0.5
        assert not np.all(picture[256:] == 24)

    def test_patches_of_a_pixel_are_tinted_too(self):
        canvas = Canvas(np.full((256, 256), 90, np.uint8), (0, 0, 256, 256), {})
        contour = square_contour(256)
        fine = replace(contour, inside=rasterize_polygon(contour.polygon, 256, 1))
        picture = draw_overlay(canvas, fine)[80:180, 80:180]  # within the line
        assert (picture == picture[0, 0]).all() and tuple(picture[0, 0]) != (90, 90, 90)

    def test_flagged_is_another_colour(self):
        canvas = Canvas(np.zeros((256, 256), np.uint8), (0, 0, 256, 256), {})
        line = draw_overlay(canvas, square_contour(256, flagged=True))[64, 128]
        assert line.argmax() == np.argmax(FLAGGED) != np.argmax(ACCEPTED)

    def test_long_and_foreign_titles_fit(self):
        canvas = Canvas(np.zeros((256, 256), np.uint8), (0, 0, 256, 256), {})
        picture = draw_overlay(canvas, square_contour(256), "röntgen-" * 40)
        assert np.all(picture[256:, -1] == 24)


class TestWrite:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_files_and_summary(self, tmp_path, capsys, workers):
        good = write_image(tmp_path / "in" / "chest.png")
        bad = tmp_path / "in" / "broken.png"
        bad.write_bytes(b"")
        missing = tmp_path / "in" / "nowhere.png"
        out = tmp_path / "deep" / "out"
        summary = write_contours([good, bad, missing], out, img_size=320, workers=workers)
        assert list(summary["written"]) == [str(good)]
        assert set(summary["failed"]) == {str(bad), str(missing)}
        assert all(summary["failed"].values())
        with (out / "unreadable.csv").open(newline="") as stream:
            listed = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
        assert listed == summary["failed"]
        pictures = ["chest.contour.json", "chest.contour.png", "contacts.png"]
        hidden = [".contour.drawn", ".made-by"]
        tables = ["contours.csv", Path(to_open(summary)).name]
        assert {p.name for p in out.iterdir()} == {*hidden, *pictures, *tables, "unreadable.csv"}
        picture = cv2.imread(summary["written"][str(good)])
        assert picture.shape[1] == 320
        record = json.loads((out / "chest.contour.json").read_text())
        assert record["source"] == str(good)
        assert record["canvas_size"] == 320
        assert record["patch_size"] == 16
        grid = rasterize_polygon(record["polygon"], 320, 16)
        assert record["inside_patches"] == pytest.approx(grid.sum(), abs=2)  # the polygon is rounded to 0.01 px
        assert record["inside_share"] == pytest.approx(grid.mean(), abs=0.01)
        assert record["flagged"] is (str(good) in summary["flagged"])
        assert 0 <= record["confidence"] <= 1
        assert record["valid_box"] == [0, 32, 320, 256]
        assert isinstance(record["provenance"], dict)
        said = capsys.readouterr().err
        assert "broken.png" in said
        assert "nowhere.png" in said

    def test_a_table_and_the_last_line_say_which_are_flagged(self, tmp_path, capsys):
        paths = [write_image(tmp_path / name, k) for k, name in enumerate(("=a.png", "b.png", "c.png", "Größe.png"))]
        summary = write_contours(paths, tmp_path / "out", method="prior", img_size=160)
        assert summary["flagged"] == list(map(str, paths))  # as each of this method is
        told = (
            f"4 contours in {tmp_path / 'out'}, 4 flagged ({', '.join(map(str, paths[:3]))}, ...)\nall of them in "
            f"{tmp_path / 'out' / 'contacts.png'}; a row for each in {to_open(summary)}\n"
        )
        assert capsys.readouterr().out == told
        with open(summary["table"], newline="", encoding="utf-8") as stream:
            rows = read_table(stream, names=("source", "picture"))
        assert [row["source"] for row in rows] == summary["flagged"]
        for row in rows:
            record = json.loads((tmp_path / "out" / row["picture"]).with_suffix(".json").read_text())
            x, y = zip(*record["polygon"], strict=True)
            box = [float(row[side]) for side in ("left", "top", "right", "bottom")]
            assert box == pytest.approx([min(x), min(y), max(x), max(y)], abs=0.06)
            assert (row["flagged"], row["method"], row["canvas_size"]) == ("1", "prior", "160")
            assert float(row["confidence"]) == pytest.approx(record["confidence"], abs=1e-4)

    def test_the_last_line_says_which_show_no_frontal_chest(self, tmp_path, capsys, monkeypatch):
        paths = [write_image(tmp_path / name, k) for k, name in enumerate(("a.png", "b.png"))]
        whole = contour_files.find_contour

        def lateral(canvas, *options):
            return replace(whole(canvas, *options), view=ChestView("lateral", "header"))

        monkeypatch.setattr(contour_files, "find_contour", lateral)
        summary = write_contours(paths[:1], tmp_path / "out", method="prior", img_size=160)
        assert summary["not_frontal"] == {str(paths[0]): "lateral"}
        said = capsys.readouterr().out
        assert said.startswith("1 contour in ") and f"{paths[0]}; leave them out" in said
        assert "\n1 of 1 shows no frontal chest, by header or pixels (1 lateral): " in said

    def test_equal_names_do_not_collide(self, tmp_path):
        paths = [
            write_image(tmp_path / "a" / "x.png", 1),
            write_image(tmp_path / "b" / "x.png", 2),
            write_image(tmp_path / "b" / "X.bmp", 3),
            write_image(tmp_path / "b" / "x-2.png", 4),
        ]
        summary = write_contours(paths, tmp_path / "out", method="prior", img_size=160, progress=False)
        assert len({p.lower() for p in summary["written"].values()}) == 4
        for source, picture in summary["written"].items():
            record = json.loads(Path(picture).with_suffix(".json").read_text())
            assert record["source"] == source

    def test_writing_beside_the_images_leaves_them_alone(self, tmp_path):
        path = write_image(tmp_path / "contacts.png")
        before = path.read_bytes()
        write_contours([path], tmp_path, method="prior", img_size=160, progress=False)
        assert (tmp_path / "contacts.contour.png").exists()
        assert path.read_bytes() == before

    def test_sheets_go_on_beyond_one_page(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hdxray_fast.data.contour_files.SHEET", 2)
        paths = [write_image(tmp_path / f"{k}.png", k) for k in range(5)]
        out = tmp_path / "out"
        summary = write_contours(paths, out, method="prior", img_size=160, progress=False)
        assert [p.rsplit("/", 1)[1] for p in summary["contacts"]] == [
            "contacts.png",
            "contacts-2.png",
            "contacts-3.png",
        ]
        sheet = cv2.imread(summary["contacts"][0])
        assert sheet.shape[1] > 2 * 300

    def test_contours_of_another_call_are_not_mixed_in(self, tmp_path):
        paths = [write_image(tmp_path / f"{k}.png", k) for k in range(2)]
        out, quick = tmp_path / "out", {"img_size": 160, "progress": False}
        write_contours(paths, out, method="prior", **quick)
        for other, method, why in (
            ([paths[1]], "prior", "other files: 0.contour"),
            (paths, "rectangle", "other method"),
        ):
            with pytest.raises(ConfigError, match=f"{why}.*--force"):
                write_contours(other, out, method=method, **quick)
        write_contours([paths[1]], out, method="rectangle", force=True, **quick)
        assert sorted(p.name for p in out.glob("*.contour.*")) == [".contour.drawn", "1.contour.json", "1.contour.png"]
        assert (out / "contacts.png").exists()

    def test_only_bad_files(self, tmp_path):
        (tmp_path / "x.txt").write_text("not an image")
        summary = write_contours([tmp_path / "x.txt"], tmp_path / "out", progress=False)
        assert summary["written"] == {}
        assert summary["contacts"] == []
        assert len(summary["failed"]) == 1

    def test_one_path_and_repeated_paths(self, tmp_path):
        path = write_image(tmp_path / "a.png")
        assert len(write_contours(path, tmp_path / "o", method="prior", img_size=160, progress=False)["written"]) == 1
        twice = write_contours([path, path], tmp_path / "p", method="prior", img_size=160, progress=False)
        assert len(twice["written"]) == 1

    @pytest.mark.parametrize(
        ("paths", "options", "error", "says"),
        [
            ([], {}, ArgumentError, "empty"),
            (3, {}, ArgumentTypeError, "paths: got int, accepted are paths of files"),
            ([3], {}, ArgumentTypeError, "paths: got int, accepted are paths of files"),
            (["a.png"], {"method": "magic"}, ArgumentError, "network, classical"),
            (["a.png"], {"img_size": 100}, ArgumentError, "multiple of patch_size"),
            (["a.png"], {"img_size": 0}, ArgumentError, "multiple of patch_size"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, paths, options, error, says):
        with pytest.raises(error, match=says):
            write_contours(paths, tmp_path / "out", **options)

    def test_out_is_a_file(self, tmp_path):
        (tmp_path / "out").write_text("x")
        with pytest.raises(ArgumentError, match="is a file"):
            write_contours(["a.png"], tmp_path / "out")

    def test_picture_shows_what_find_contour_says(self, tmp_path):
        """The grid in the overlay is the grid of the API, patch by patch."""
        from hdxray_fast.images.canvas import read_canvas

        path = write_image(tmp_path / "a.png", 9)
        canvas = read_canvas(path, size=320)
        contour = find_contour(canvas, "rectangle", 32)
        drawn = draw_overlay(canvas, contour)[:320].astype(int)
        tinted = np.ptp(drawn[16::32, 16::32], axis=-1) > 4  # a grey picture has colour only where it is tinted
        np.testing.assert_array_equal(tinted, contour.inside)


@pytest.mark.parametrize("draw", [draw_overlay, contact_tile])
def test_a_lateral_is_orange_however_sure_its_contour_is(draw):
    canvas, drawn = Canvas(np.full((256, 256), 90, np.uint8), (0, 0, 256, 256), {}), {}
    for name in ("frontal", "", "lateral", "other"):
        picture = draw(canvas, replace(square_contour(256), view=ChestView(name, "pixels")), "a")
        drawn[name] = picture[: picture.shape[1]].max((0, 1)).argmax() == np.argmax(FLAGGED)
    assert drawn == {"frontal": False, "": False, "lateral": True, "other": True}
