"""What a person looks at after `prepare`: the canvases that a wrong table, window or polarity has made."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from prepared_helpers import SIZE, make_folder, prepare, rows_of
from toy_radiographs import draw_radiograph
from xray_makers import dicom

from hdxray_fast.cli.main import main
from hdxray_fast.data.prepared import summary
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.summary import EXTREME, SPREAD, UNSURE, contact_rows, grey_levels, size_range
from hdxray_fast.images.canvas import Canvas


def test_rows_of_the_contact_sheet():
    levels = np.random.default_rng(0).permutation(1000) / 5.0
    confidence = np.linspace(1, 0, 1000)
    rows = contact_rows(levels, confidence)
    order = np.argsort(levels).tolist()
    dark = [row for row, words in rows.items() if words.startswith("darkest 1 %")]
    bright = [row for row, words in rows.items() if words.startswith("brightest 1 %")]
    assert dark == order[:10] and bright == order[:-11:-1]  # ten are a percent of a thousand
    assert rows[order[0]] == "darkest 1 %, mean 0" and rows[order[-1]] == "brightest 1 %, mean 200"
    assert sum(not words for words in rows.values()) >= SPREAD - 2
    assert {row for row, words in rows.items() if words.endswith("least sure")} == set(range(1000 - UNSURE, 1000))
    large = contact_rows(np.arange(30_000) / 200.0, np.ones(30_000))
    dark = [row for row, words in large.items() if words.startswith("darkest")]
    assert len(dark) == EXTREME and dark[0] == 0 and dark[-1] == 299  # over the whole percent


@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_sets_show_every_image_once(count):
    rows = contact_rows(np.arange(count) * 10.0, np.ones(count))
    assert sorted(rows) == list(range(count))
    assert rows[0] == "darkest 1 %, mean 0, least sure"


@pytest.mark.parametrize("bits", [8, 16])
def test_the_darkest_canvas_is_shown_as_dark_as_it_is(tmp_path, bits, monkeypatch):
    folder = make_folder(tmp_path / "xrays")
    dark = cv2.imread(str(folder / "4.png"), cv2.IMREAD_UNCHANGED) // 16
    cv2.imwrite(str(folder / "4.png"), dark)
    shown = []
    monkeypatch.setattr(summary, "contact_tile", lambda canvas, _, name, tint: shown.append((name, canvas, tint)))
    monkeypatch.setattr(summary, "contact_sheet", lambda tiles: np.zeros((8, 8, 3), np.uint8))
    prepare([folder], tmp_path / "set", format="raw", bits=bits)
    data = PreparedSet(tmp_path / "set")
    levels = grey_levels(data.index, bits)
    for row in range(len(data)):
        canvas = Canvas(data[row].pixels, data[row].valid_box)
        inner = canvas.pixels[np.kron(canvas.valid_grid(), np.ones((16, 16), bool))]
        assert levels[row] == pytest.approx(inner.mean() / (2**bits - 1) * 255, abs=0.01)
    (row,) = (row for row in range(len(data)) if data.source(row).endswith("4.png"))
    ((canvas, tint),) = ((canvas, tint) for name, canvas, tint in shown if name.startswith(f"row {row}, darkest"))
    assert canvas.pixels.shape == (SIZE, SIZE) and canvas.pixels.max() <= 16 and not tint


def test_flags_are_counted(tmp_path):
    folder = make_folder(tmp_path / "xrays")
    found = prepare([folder], tmp_path / "set").summary["flags"]
    rows = PreparedSet(tmp_path / "set").index.column("flags").to_pylist()
    assert found == {flag: sum(flag in flags for flags in rows) for flag in found}
    assert set(found) == {flag for flags in rows for flag in flags}


def test_what_was_left_out_is_told_with_its_reason_and_its_file(tmp_path, capsys):
    films, out = tmp_path / "films", tmp_path / "set"
    films.mkdir()
    for number, about in enumerate(({}, {}, {"ViewPosition": "LL"}, {"BodyPartExamined": "KNEE"})):
        dicom(films / f"{number}.dcm", draw_radiograph(number), PatientID="", **about)
    small = ("--img-size", str(SIZE), "--contour", "rectangle", "--workers", "0")
    assert main(["prepare", str(films), "--out", str(out), *small]) == 0
    told = capsys.readouterr()
    reasons = "1 x lateral view (header), 1 x body part is not the chest"
    assert f"filtered: {reasons}; in a new set, --view any --body-part any keeps them\n" in told.out
    assert "look at summary.png, contacts.png, left_out.png (contacts.csv: the file of each tile)" in told.out
    assert "key" not in told.out + told.err  # no patient is known
    assert main(["prepare", str(films), "--out", str(out), *small]) == 0
    again = capsys.readouterr()
    assert again.out.startswith("nothing to do: 2 images of 4 sources, prepared before; --add takes in")
    assert again.out.splitlines()[1:] == told.out.splitlines()[-1:] and "filtered" not in again.out + again.err
    tiles = rows_of(out / "contacts.csv")
    data, bad = PreparedSet(out), rows_of(out / "quarantine.csv")
    for row in tiles:
        number = int(row["caption"].split(",")[0].split()[1])
        name = data.source(number) if row["picture"] == "contacts.png" else bad[number - 2]["source"]
        assert row["source"] == name, row
    places = [(row["picture"], int(row["tile"])) for row in tiles]
    assert places == [(name, tile) for name in ("contacts.png", "left_out.png") for tile in (1, 2)]


def test_the_histogram_of_sizes_spans_more_than_one_size():
    assert size_range(np.array([1024, 1024])) == (1008.0, 1040.0)
    assert size_range(np.array([64, 1024])) == (64.0, 1024.0)
