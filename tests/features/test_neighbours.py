"""The nearest radiographs of a table: the right ones, told apart by patient, and never those of another encoder."""

from __future__ import annotations

import csv
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.features import neighbours
from hdxray_fast.features.neighbour_sheet import about
from hdxray_fast.features.neighbours import find_similar
from hdxray_fast.features.told_of import ToldOf, place_of
from hdxray_fast.images.panels import display_levels

pytest.importorskip("pyarrow")
NET = {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}


def encoder_of(seed: int, **options):
    torch.manual_seed(seed)
    return hx.create_encoder("vit_tiny_patch16", **{**NET, **options}).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six radiographs, the last with the pixels of the first; their table, and its encoder's folder."""
    root = tmp_path_factory.mktemp("similar")
    (root / "xrays").mkdir()
    for number, seed in enumerate((0, 1, 2, 3, 4, 0)):
        assert cv2.imwrite(str(root / "xrays" / f"{number}.png"), draw_radiograph(seed))
    hx.save_model(encoder_of(0), root / "model")
    hx.embed_files(root / "xrays", root / "features.parquet", root / "model", progress=False, pool="mean", keep="valid")
    return root


def with_column(made, tmp_path, name, values):
    import pyarrow.parquet as pq

    table = pq.read_table(made / "features.parquet")
    pq.write_table(table.append_column(name, [values]), tmp_path / "more.parquet")
    return tmp_path / "more.parquet"


def test_distances_are_cosines_less_the_mean(made):
    from hdxray_fast.features.feature_table import read_features

    feature = read_features(made / "features.parquet")["feature"].astype(np.float64)
    feature -= feature.mean(0)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    wanted = 1 - feature @ feature[2]
    found = find_similar(made / "xrays" / "2.png", made / "features.parquet", most=99)
    assert len(found.neighbours) == 5 and found.rows == 6 and not found.patients
    assert [near.distance for near in found.neighbours] == pytest.approx(sorted(np.delete(wanted, 2)), abs=1e-5)
    names = [os.path.basename(near.path) for near in found.neighbours]
    assert names == [f"{place}.png" for place in np.argsort(wanted, kind="stable") if place != 2]


def test_the_same_pixels_are_nearest_and_said(made):
    first, *others = find_similar(made / "xrays" / "0.png", made / "features.parquet").neighbours
    assert first.path.endswith("5.png") and first.same_pixels and abs(first.distance) < 1e-6
    assert not any(near.same_pixels for near in others)


@pytest.mark.parametrize("spelt", ["xrays/0.png", "./xrays/../xrays/0.png"])
def test_a_query_is_no_neighbour_of_its_own_however_its_path_is_spelt(made, spelt, monkeypatch):
    monkeypatch.chdir(made)
    found = find_similar(spelt, made / "features.parquet", weights=made / "model")
    assert [os.path.basename(near.path) for near in found.neighbours].count("0.png") == 0


def test_a_file_with_the_time_of_an_archive_is_known_to_have_changed(made, tmp_path):
    """Archives that are made the same each time give their files the first second of 1970."""
    (tmp_path / "xrays").mkdir()
    for number in range(3):
        path = tmp_path / "xrays" / f"{number}.png"
        assert cv2.imwrite(str(path), draw_radiograph(number))
        os.utime(path, (1, 1))
    table = tmp_path / "features.parquet"
    hx.embed_files(tmp_path / "xrays", table, made / "model", progress=False)
    path = tmp_path / "xrays" / "0.png"
    assert len(find_similar(path, table).neighbours) == 2
    assert cv2.imwrite(str(path), draw_radiograph(5))
    with pytest.raises(hx.ConfigError, match="holds it as it was before it was written anew"):
        find_similar(path, table)


def test_what_is_given_is_looked_at_even_where_it_is_not_needed(made):
    query, table = made / "xrays" / "0.png", made / "features.parquet"
    with pytest.raises(hx.ConfigError, match=r"weights: are not those that .*features.parquet was made with"):
        find_similar(query, table, weights=encoder_of(1))
    for labels in ("labels.csv", {str(query): "pneumonia"}, [str(query)]):
        with pytest.raises(hx.ArgumentTypeError, match=r"^labels: got .* paths with the names of their classes"):
            find_similar(query, table, labels=labels)
    with pytest.raises(hx.ArgumentTypeError, match=r"^patients: got str, .* paths with their patients"):
        find_similar(query, table, patients="labels.csv")


def test_a_query_beside_the_table_is_embedded_as_its_rows_were(made, tmp_path):
    assert cv2.imwrite(str(tmp_path / "new.png"), draw_radiograph(3))
    found = find_similar(tmp_path / "new.png", made / "features.parquet", weights=made / "model", most=2)
    assert found.neighbours[0].path.endswith("3.png") and found.neighbours[0].same_pixels
    assert abs(found.neighbours[0].distance) < 1e-5 < found.neighbours[1].distance


@pytest.mark.parametrize(
    ("weights", "refusal"),
    [
        (None, "new.png: the table .* does not hold it; give weights"),
        (encoder_of(1), r"weights: are not those that .*features.parquet was made with \(other: weights\)"),
        (encoder_of(0, margin=2), r"\(other: margin\)"),
    ],
)
def test_features_of_another_encoder_are_refused(made, tmp_path, weights, refusal):
    assert cv2.imwrite(str(tmp_path / "new.png"), draw_radiograph(3))
    with pytest.raises(hx.ConfigError, match=refusal):
        find_similar(tmp_path / "new.png", made / "features.parquet", weights=weights)


def test_weights_of_another_size_are_taken_at_the_tables(made, tmp_path):
    """As ``embed --img-size`` does; what cannot be told apart from the table's encoder is no other one."""
    assert cv2.imwrite(str(tmp_path / "new.png"), draw_radiograph(3))
    larger = encoder_of(0, img_size=128)
    found = find_similar(tmp_path / "new.png", made / "features.parquet", weights=larger, most=1)
    assert found.neighbours[0].path.endswith("3.png") and larger.img_size == (128, 128)


def test_a_query_that_changed_is_told(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    query = tmp_path / "copy" / "xrays" / "1.png"
    hx.embed_files(query, tmp_path / "one.parquet", made / "model", progress=False)
    assert cv2.imwrite(str(query), draw_radiograph(9, 99, 99))
    with pytest.raises(hx.ConfigError, match=r"1.png: the table .*one.parquet holds it as it was before"):
        find_similar(query, tmp_path / "one.parquet")


def test_what_is_no_table_and_no_picture_are_told(made, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(hx.ArgumentError, match=r"query: .*bad.png cannot be read: is text"):
        find_similar(tmp_path / "bad.png", made / "features.parquet", weights=made / "model")
    with pytest.raises(hx.ConfigError, match=r"bad.png: cannot be read as Parquet"):
        find_similar(tmp_path / "bad.png", tmp_path / "bad.png")
    with pytest.raises(hx.ConfigError, match=r"none.parquet: does not exist; name the table that embed wrote"):
        find_similar(tmp_path / "bad.png", tmp_path / "none.parquet")
    (tmp_path / "t.csv").write_text("path\n")
    with pytest.raises(hx.ConfigError, match=r"t.csv: is a CSV, .* name one that embed --out features.parquet writes"):
        find_similar(tmp_path / "bad.png", tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(hx.ConfigError, match=r"name .*t.parquet, which embed wrote with it"):
        find_similar(tmp_path / "bad.png", tmp_path / "t.csv")


def test_no_weights_are_those_of_the_package(tmp_path, capsys, monkeypatch):
    """``embed`` takes them and says so; ``similar`` takes them for a table that was made with them."""
    for number in range(3):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), draw_radiograph(number))
    table = str(tmp_path / "f.parquet")
    reading = ["--workers", "0"]
    words = ["embed", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--out", table, "--img-size", "64", *reading]
    assert main(words) == 0
    told = "encoder: the first 8 blocks of vit_tiny_patch16, which comes with the package (--weights takes others)"
    assert told in capsys.readouterr().err
    made, create = [], neighbours.encoder_of_size
    monkeypatch.setattr(neighbours, "encoder_of_size", lambda *given: made.append(create(*given)) or made[-1])
    assert main(["similar", str(tmp_path / "2.png"), "--in", table, "--out", str(tmp_path / "out"), *reading]) == 0
    assert len({id(encoder) for encoder in made}) == 1
    assert "of 2 radiographs" in capsys.readouterr().out
    pq = pytest.importorskip("pyarrow.parquet")
    rows = pq.read_table(table)  # as the package's encoder of an earlier version would have made them
    settings = json.loads(rows.schema.metadata[b"hdxray_fast"])
    assert settings["shipped"] == "vit_tiny_patch16"
    earlier = json.dumps({**settings, "weights": "0" * 16}).encode()
    pq.write_table(rows.replace_schema_metadata({b"hdxray_fast": earlier}), table)
    told = "those of the encoder that came with an earlier version of this package"
    for weights in ([], ["--weights", "pretrained"]):
        assert main(["similar", str(tmp_path / "2.png"), "--in", table, "--out", str(tmp_path / "o"), *weights]) == 2
        error = capsys.readouterr().err
        assert told in error and f"remove {table} and make it anew: embed IMAGES --out {table}" in error


def test_a_sheet_with_distances_and_patients(made, tmp_path, capsys):
    table = with_column(made, tmp_path, "patient", ["f00dfeed01", "cafe", "f00dfeed01", "", "beef", "f00dfeed01"])
    (made / "xrays").rename(made / "moved")  # as a table is sent without its radiographs' place
    try:
        out = tmp_path / "out"
        words = ["similar", str(made / "xrays" / "0.png"), "--in", str(table), "--out", str(out), "--workers", "0"]
        assert main([*words, "--images", str(made / "moved")]) == 0
        told = capsys.readouterr()
        scale, first, *_ = told.out.splitlines()
        assert scale == "cosine distance: 0 is alike, less is more alike" and not told.err
        assert first.endswith("5.png, the same patient, the same pixels")
        sheet = cv2.imread(str(out / "similar.png"))
        assert sheet.shape == (32 + 2 * (300 + 3 * 18 + 6) + 6, 4 * 306 + 6, 3)
        assert sheet[:32].std() > 20  # the scale
        pixels = hx.read_canvas(made / "moved" / "0.png", size=300).pixels  # the query, in the greys of other pictures
        assert np.array_equal(sheet[38:338, 6:306, 0], display_levels(pixels)[pixels])
        rows = list(csv.DictReader((out / "similar.csv").open(newline="")))
        by_name = {os.path.basename(row["path"]): row for row in rows}
        assert [by_name[f"{n}.png"]["same_patient"] for n in (1, 2, 3, 4, 5)] == ["0", "1", "", "0", "1"]
        assert main([*words, "--images", str(made)]) == 0  # nothing of these names is there
        assert "5 of them are not found" in capsys.readouterr().err
        assert main([*words, "--images", str(table)]) == 2
        assert "--images: " in capsys.readouterr().err
        another = ["similar", str(made / "xrays" / "1.png"), *words[2:], "--images", str(made / "moved")]
        assert main(another) == 2
        assert "holds what similar drew in another call (other query)" in capsys.readouterr().err
        assert list(csv.DictReader((out / "similar.csv").open(newline=""))) == rows
        assert main([*another, "--force"]) == 0
    finally:
        (made / "moved").rename(made / "xrays")


def test_views_and_labels_are_told_beside_each(made, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pandas")
    rows = pq.read_table(made / "features.parquet")
    views = ["frontal", "lateral", "other", "frontal", "", None]
    rows = rows.set_column(rows.schema.get_field_index("view"), "view", [views])
    pq.write_table(rows, tmp_path / "f.parquet")
    (made / "labels.csv").write_text(
        "image,a,b,c,d\nxrays/0.png,1,0,0,0\nxrays/1.png,1,1,1,1\nxrays/2.png,0,0,0,-1\nxrays/5.png,0,1,1,0\n"
    )
    words = ["similar", str(made / "xrays" / "0.png"), "--in", str(tmp_path / "f.parquet"), "--workers", "0"]
    assert main([*words, "--out", str(tmp_path / "out"), "--labels", str(made / "labels.csv")]) == 0
    said = {line.split(", ", 1)[0][-5:]: line.split(", ", 1)[1] for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert said == {
        "1.png": "patient unknown, lateral view, a, b, c, ...",
        "2.png": "patient unknown, other view, none of the labels is 1",
        "3.png": "patient unknown, labels unknown",
        "4.png": "patient unknown, labels unknown",
        "5.png": "patient unknown, the same pixels, b, c",
    }
    listed = {row["path"][-5:]: row for row in csv.DictReader((tmp_path / "out" / "similar.csv").open(newline=""))}
    assert (listed["1.png"]["view"], listed["1.png"]["labels"], listed["3.png"]["labels"]) == ("lateral", "a|b|c|d", "")
    (made / "xrays" / "0.png").rename(made / "xrays" / "moved.png")  # found by the table alone
    try:
        found = find_similar(made / "xrays" / "0.png", tmp_path / "f.parquet", labels={"elsewhere.png": ["a"]})
    finally:
        (made / "xrays" / "moved.png").rename(made / "xrays" / "0.png")
    assert found.labelled and about(found.neighbours[0], True)[-1] == "labels unknown"
    assert main([*words, "--out", str(tmp_path / "o"), "--labels", str(tmp_path / "none.csv")]) == 2
    assert "--labels: " in capsys.readouterr().err


def test_labels_beside_no_radiograph_are_matched_and_tell_whose_each_is(made, tmp_path, capsys):
    """The table of findings lies elsewhere, as it was sent; of patients nothing but the same or another is told."""
    pytest.importorskip("pandas")
    findings = tmp_path / "findings.csv"
    findings.write_text("Foto,Fall,a\n0.png,ann,1\n1.png,ann,0\nxrays/2.png,bob,1\nother/3.png,ann,1\n5.png,cid,1\n")
    words = ["similar", str(made / "xrays" / "0.png"), "--in", str(made / "features.parquet"), "--workers", "0"]
    words += ["--out", str(tmp_path / "out"), "--labels", str(findings)]
    words += ["--image-column", "Foto", "--patient-column", "Fall"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    said = {line.split(", ", 1)[0][-5:]: line.split(", ", 1)[1] for line in printed.splitlines()[1:-1]}
    assert said == {
        "1.png": "the same patient, none of the labels is 1",
        "2.png": "another patient, a",
        "3.png": "patient unknown, labels unknown",  # that is another folder's
        "4.png": "patient unknown, labels unknown",
        "5.png": "another patient, the same pixels, a",
    }
    listed = (tmp_path / "out" / "similar.csv").read_text()
    assert not any(name in text for name in ("ann", "bob", "cid") for text in (listed, printed))
    for more, other in (["--most", "2"], "most"), (["--labels", str(tmp_path / "one.csv")], "labels"):
        (tmp_path / "one.csv").write_text("Foto,Fall,a\n0.png,ann,1\n1.png,ann,1\n")
        assert main([*words, *more]) == 2
        assert f"drew in another call (other {other})" in capsys.readouterr().err
    assert (tmp_path / "out" / "similar.csv").read_text() == listed


def test_what_is_told_of_a_path_that_two_radiographs_end_in_is_of_neither(tmp_path):
    table = ["/data/a/x.png", "/data/b/x.png", "/data/b/y.png"]
    told = {str(tmp_path / name): name for name in ("x.png", "b/y.png", "z.png")}
    found = ToldOf(told, None, tmp_path, table)
    assert [found.of(path) for path in (*table, "/data/z.png")] == [None, None, "b/y.png", None]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.png").touch()  # which is then a radiograph of its own
    assert ToldOf(told, None, tmp_path, table).of("/data/b/y.png") is None
    assert ToldOf(told, None, None, table).of("/data/b/y.png") is None


def test_a_path_of_the_table_leads_nowhere_above_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "root").mkdir()
    assert place_of("../secret.png", tmp_path / "root") is None
    (tmp_path / "root" / "a").mkdir()
    for name in ("a/x.png", "x.png"):
        (tmp_path / "root" / name).write_bytes(b"")
    assert place_of("/data/a/x.png", tmp_path / "root") == str(tmp_path / "root" / "a" / "x.png")
