"""Embedding images: the same features whatever form they come in, and a table that survives interruptions."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.data.inputs import inputs_of
from hdxray_fast.data.radiographs import read_radiograph
from hdxray_fast.features import filling
from hdxray_fast.features.embedding import Embedder
from hdxray_fast.features.embedding_files import embed_files, embed_list, fingerprint
from hdxray_fast.features.feature_table import FeatureTable, read_features
from hdxray_fast.images.canvas import read_canvas
from hdxray_fast.images.standardise import standardisation


def small(**kwargs):
    torch.manual_seed(1)
    options = {"img_size": 128, "depth": 2, "embed_dim": 48, "num_heads": 3, "contour": "rectangle", **kwargs}
    return hx.create_encoder("vit_tiny_patch16", **options).eval()


@pytest.fixture
def folder(tmp_path):
    """Three readable images of different shapes and one that is not."""
    root = tmp_path / "xrays"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a", (300, 200)), ("b", (128, 128)), ("d", (150, 260))):
        image = cv2.resize(rng.integers(0, 256, (9, 9)).astype(np.uint8), shape[::-1], interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(root / f"{name}.png"), image)
    (root / "c.png").write_bytes(b"not a picture")
    return root


@pytest.mark.parametrize("keep", ["all", "valid", "contour"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_are_the_encoders(folder, keep, pool):
    contour = "network" if (keep, pool) == ("contour", "mean") else "rectangle"
    encoder = small(contour=contour)
    result = hx.embed(folder, encoder, keep=keep, pool=pool, batch_size=2)
    assert [source.rsplit("/", 1)[-1] for source in result.sources] == ["a.png", "b.png", "d.png"]
    assert [bad.path.rsplit("/", 1)[-1] for bad in result.quarantined] == ["c.png"]
    assert result.features.shape == (3, 48)
    assert result.features.dtype == np.float32
    alone = small(keep=keep, pool=pool)
    for row, source in enumerate(result.sources):
        read = read_radiograph(source, source, 128, 16, contour)
        grids = {name: torch.from_numpy(getattr(read, name))[None] for name in ("inside", "valid")}
        with torch.no_grad():
            expected = alone(torch.from_numpy(read.pixels)[None, None], None, read.scale, read.shift, **grids)
        np.testing.assert_allclose(result.features[row], expected[0].numpy(), rtol=1e-4, atol=1e-5)
        canvas = read_canvas(source, size=128)
        assert result.provenance_ids[row] == canvas.provenance["pixel_sha256"]
        assert result.confidence[row] == np.float32(hx.find_contour(canvas, contour).confidence)
    everything = 64
    assert (result.kept == everything).all() if keep == "all" else (result.kept < everything).any()


def test_files_arrays_and_workers_agree(folder):
    encoder = small(keep="contour")
    paths = [folder / "a.png", folder / "b.png"]
    files = hx.embed(paths, encoder)
    arrays = hx.embed([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths], encoder)
    np.testing.assert_array_equal(files.features, arrays.features)
    assert arrays.sources == ["<array 0>", "<array 1>"]
    parallel = hx.embed(folder, encoder, workers=2)
    np.testing.assert_array_equal(parallel.features[:2], files.features)
    assert len(parallel.quarantined) == 1


def test_tensors_are_taken_as_they_are():
    encoder = small(img_size=(64, 96), pool="cls")
    images = torch.rand(5, 1, 64, 96)
    result = hx.embed(images, encoder, batch_size=2)
    with torch.no_grad():
        expected = torch.cat([encoder(part) for part in images.split(2)])
    np.testing.assert_allclose(result.features, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert np.isnan(result.confidence).all()
    assert len(hx.embed(images[:0], encoder)) == 0


def test_one_image_in_colour_is_one_image():
    grey = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    one = hx.embed(np.repeat(grey[:, :, None], 3, axis=2), small())
    np.testing.assert_allclose(one.features, hx.embed(grey, small()).features, rtol=1e-3, atol=1e-3)
    assert one.sources == ["<array 0>"]
    first = np.repeat(grey[None], 3, axis=0)
    for alike in ([first], torch.from_numpy(first)):
        np.testing.assert_allclose(hx.embed(alike, small()).features, one.features, rtol=1e-3, atol=1e-3)
    assert len(hx.embed(list(first), small())) == 3 and len(hx.embed(first[:2], small())) == 2
    with pytest.raises(hx.ArgumentError, match=r"got shape \[3, 90, 70\], .*\[array\] for the one, list\(array\) for"):
        hx.embed(first, small())


def test_files_tensors_and_what_is_valid_agree(folder):
    """An encoder called with a canvas and its grids gives what ``embed`` gives for the file, padding or not."""
    encoder = small(keep="contour", pool="mean")
    for path in sorted(folder.glob("[abd].png")):
        read = read_radiograph(str(path), str(path), 128, 16, "rectangle")
        pixels, inside, valid = (torch.from_numpy(v)[None] for v in (read.pixels, read.inside, read.valid))
        direct = encoder(pixels[None], inside=inside, valid=valid).detach().numpy()
        np.testing.assert_allclose(hx.embed(path, encoder).features, direct, rtol=1e-4, atol=1e-4)


def test_embedding_files_leaves_the_encoder_its_size(folder, tmp_path):
    pytest.importorskip("pyarrow")
    encoder = small()
    embed_files(folder / "a.png", tmp_path / "one.parquet", encoder, img_size=64, progress=False)
    assert encoder.img_size == (128, 128)
    with pytest.raises(hx.ArgumentTypeError, match=r"^paths: got ndarray, accepted are .*; embed takes arrays"):
        embed_files([np.zeros((3, 3))], tmp_path / "two.parquet", encoder, progress=False)


def test_a_csv_is_written_from_the_table_that_later_calls_go_on_from(folder, tmp_path):
    pytest.importorskip("pyarrow")
    out, encoder = tmp_path / "f.csv", small()
    done = embed_files([folder / "a.png"], out, encoder, progress=False)
    assert (done.out, done.table, done.rows) == (out, tmp_path / "f.parquet", 1)
    done = embed_files([folder], out, encoder, progress=False)
    assert (done.rows, done.new) == (3, 2)
    header, *rows = list(csv.reader(out.open(encoding="utf-8")))
    assert header == [
        "path",
        "confidence",
        "flagged",
        "provenance_id",
        "kept",
        "view",
        *(f"feature_{n}" for n in range(done.width)),
    ]
    table = read_features(done.table)
    assert [row[0] for row in rows] == table["path"]
    np.testing.assert_array_equal(np.array([row[6:] for row in rows], np.float32), table["feature"])
    assert all(len(cell.lstrip("-").partition("e")[0]) <= 11 for row in rows for cell in row[6:])  # of a float32
    (tmp_path / "labels.csv").write_text("image,sick\n")
    with pytest.raises(hx.ConfigError, match=r"^out: .*labels.csv would be written over, and is no table of features"):
        embed_files([folder], tmp_path / "labels.csv", encoder, progress=False)
    assert embed_files([folder], tmp_path, encoder, progress=False).out == tmp_path / "features.parquet"


def test_three_channels_and_fixed_normalisation(folder):
    encoder = small(in_chans=3, normalisation=(0.5, 0.25), pool="mean")
    result = hx.embed([folder / "b.png"], encoder)
    pixels = torch.from_numpy(read_canvas(folder / "b.png", size=128).pixels)[None, None].float()
    with torch.no_grad():
        expected = encoder(((pixels / 255 - 0.5) / 0.25).expand(-1, 3, -1, -1))
    np.testing.assert_allclose(result.features, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_table_goes_on_where_it_was_interrupted(folder, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(filling, "ROWS_PER_PART", 1)
    out = tmp_path / "features.parquet"
    encoder = small()
    whole = embed_files([folder], tmp_path / "whole.parquet", encoder, batch_size=1, progress=False)
    assert (whole.rows, whole.new, whole.unreadable) == (3, 3, 1)

    read, original = [], Embedder._radiographs

    def interrupted(self, found):
        read.extend(item.source for item in found[0])
        if len(read) == 2:
            raise KeyboardInterrupt
        return original(self, found)

    monkeypatch.setattr(Embedder, "_radiographs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_files([folder], out, encoder, batch_size=1, progress=False)
    assert not out.exists()
    result = embed_files([folder], out, encoder, batch_size=1, progress=False)
    assert (result.rows, result.new) == (3, 2)
    assert parquet.read_table(out).equals(parquet.read_table(tmp_path / "whole.parquet"))
    assert not (tmp_path / "features.parquet.parts").exists()
    with result.unreadable_csv.open(newline="") as stream:
        (bad,) = csv.DictReader(stream)
    assert bad["path"].endswith("c.png")

    again = embed_files([folder], out, encoder, progress=False)  # nothing to do
    assert (again.rows, again.new) == (3, 0)
    assert parquet.read_table(out).equals(parquet.read_table(tmp_path / "whole.parquet"))
    row = parquet.read_table(out).to_pylist()[0]
    facts = {"path", "feature", "confidence", "flagged", "provenance_id", "kept", "view", "size", "mtime_ns"}
    assert row.keys() == facts
    assert len(row["feature"]) == 48


def test_tables_of_other_settings_are_never_mixed(folder, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "features.parquet"
    encoder = small()
    embed_files([folder], out, encoder, progress=False)
    with pytest.raises(hx.ConfigError, match="other settings \\(keep: all -> "):
        embed_files([folder], out, encoder, keep="contour", progress=False)
    other = small()
    with torch.no_grad():
        other.cls_token += 1
    assert fingerprint(other) != fingerprint(encoder)
    with pytest.raises(hx.ConfigError, match="other settings \\(weights\\)"):
        embed_files([folder], out, other, progress=False)
    out.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(hx.ConfigError, match="cannot be read as Parquet"):
        embed_files([folder], out, encoder, progress=False)


def test_bad_input_is_named(folder):
    encoder = small()
    with pytest.raises(hx.ArgumentError, match=r"^encoder: takes 64 x 96"):
        hx.embed(folder, small(img_size=(64, 96)))
    for culprit, kwargs in (("pool", {"pool": "max"}), ("keep", {"keep": "lungs"}), ("batch_size", {"batch_size": 0})):
        with pytest.raises(hx.ArgumentError, match=f"^{culprit}: "):
            hx.embed(folder, encoder, **kwargs)
    with pytest.raises(hx.ArgumentTypeError, match=r"^encoder: "):
        hx.embed(folder, torch.nn.Identity())
    for culprit, kwargs in (
        ("batch_size", {"batch_size": "4"}),
        ("workers", {"workers": -5}),
        ("workers", {"workers": "x"}),
        ("device", {"device": "gpu"}),
        ("device", {"device": "cuda:99"}),
    ):
        with pytest.raises((hx.ArgumentError, hx.ArgumentTypeError), match=f"^{culprit}: "):
            hx.embed(folder, encoder, **kwargs)
    with pytest.raises(hx.ArgumentError, match=r"no device has this name; cpu is one, and cuda"):
        hx.embed(folder, encoder, device="gpu")
    with pytest.raises(hx.ArgumentError, match=r"^batch_size: "):
        hx.embed(torch.rand(1, 1, 128, 128), encoder, batch_size=0)
    for wrong, error in ((0, hx.ArgumentError), (2.5, hx.ArgumentTypeError)):
        with pytest.raises(error, match=r"^batch_size: "):
            hx.embed_files(folder, folder / "f.parquet", encoder, batch_size=wrong, progress=False)
    assert not list(folder.glob("f.*"))
    for images in (3, [3], [None]):
        with pytest.raises(hx.ArgumentTypeError, match=r"^images: "):
            hx.embed(images, encoder)
    with pytest.raises(hx.ConfigError, match="nowhere"):
        hx.embed(folder / "nowhere", encoder)
    with pytest.raises(hx.ImageReadError, match=r"c\.png: "):
        hx.embed(folder / "c.png", encoder)
    blank = np.zeros((64, 64), np.uint8)
    with pytest.raises(hx.ImageReadError, match=r"^<array 0>: .*same value.* \(none of 1 others can be read either\)$"):
        hx.embed([blank, blank], encoder)
    assert len(hx.embed([], encoder)) == 0


def test_standardisation_looks_at_valid_patches_alone():
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:16, :16] = np.arange(256).reshape(16, 16)
    valid = np.zeros((2, 2), bool)
    valid[0, 0] = True
    scale, shift = standardisation(pixels, valid)
    assert scale * 127.5 + shift == pytest.approx(0, abs=1e-6)


def test_a_file_that_changed_is_embedded_anew(folder, tmp_path):
    pytest.importorskip("pyarrow")
    out, encoder = tmp_path / "features.parquet", small()
    a, b, d = (str(folder / f"{name}.png") for name in "abd")
    before = embed_files([folder], out, encoder, progress=False)
    first = read_features(out)
    shutil.copy2(b, a)  # another patient's image under the name
    again = embed_files([folder], out, encoder, progress=False)
    assert (before.new, again.new, again.rows) == (3, 1, 3)
    now = read_features(out)
    assert now["path"] == [a, b, d]  # a row each
    np.testing.assert_allclose(now["feature"], first["feature"][[1, 1, 2]], rtol=1e-4, atol=1e-5)
    assert now["provenance_id"][0] == first["provenance_id"][1]
    assert embed_files([folder], out, encoder, progress=False).new == 0

    (folder / "a.png").write_bytes(b"no picture any more")
    (folder / "b.png").unlink()  # what is gone has not changed
    last = embed_list(inputs_of([a, b, d], None, ""), out, encoder, progress=False)
    assert (last.rows, last.new, last.unreadable) == (2, 0, 1)
    assert read_features(out)["path"] == [b, d]


def test_an_interruption_leaves_one_row_of_a_file_that_changed(folder, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    out, encoder = tmp_path / "features.parquet", small()
    embed_files([folder], out, encoder, progress=False)
    shutil.copy(folder / "b.png", folder / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureTable, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embed_files([folder], out, encoder, progress=False)
    assert len(list((tmp_path / "features.parquet.parts").glob("*.parquet"))) == 1
    assert embed_files([folder], out, encoder, progress=False).new == 0
    rows = read_features(out)
    assert len(rows["path"]) == 3
    assert rows["provenance_id"][0] == rows["provenance_id"][1]


def test_files_of_others_among_the_parts_are_left_alone(folder, tmp_path):
    pytest.importorskip("pyarrow")
    parts = tmp_path / "features.parquet.parts"
    parts.mkdir()
    for name in ("notes.txt", "mine.parquet", "1.parquet"):
        (parts / name).write_text("mine")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (parts / f".00000000.parquet.{gone.pid}.0123456789abcdef.tmp").touch()  # of a run that was killed as it wrote
    result = embed_files([folder], tmp_path / "features.parquet", small(), progress=False)
    assert result.rows == 3 and result.out.exists()
    assert sorted(path.name for path in parts.iterdir()) == ["1.parquet", "mine.parquet", "notes.txt"]
    assert all(path.read_text() == "mine" for path in parts.iterdir())


@pytest.mark.parametrize("change", ["no path", "two", "other kind", "null", "no size", "null feature"])
def test_tables_that_say_they_are_ours_and_are_not(folder, tmp_path, change):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out, encoder = tmp_path / "features.parquet", small()
    embed_files([folder], out, encoder, progress=False)
    table, names = parquet.read_table(out), pa.array([None, "b", "c"])
    changed = {
        "no path": lambda: table.drop_columns(["path"]),
        "two": lambda: table.append_column("path", names),
        "other kind": lambda: table.drop_columns(["feature"]).append_column("feature", names),
        "null": lambda: table.set_column(0, "path", names),
        "no size": lambda: table.drop_columns(["size"]),
        "null feature": lambda: table.set_column(1, "feature", pa.nulls(3, table.schema.field("feature").type)),
    }[change]()
    parquet.write_table(changed.replace_schema_metadata(table.schema.metadata), out)
    with pytest.raises(hx.ConfigError, match=r"features\.parquet is no table of features"):
        embed_files([folder], out, encoder, progress=False)
    with pytest.raises(hx.ConfigError, match=r"features\.parquet: is no table of features"):
        read_features(out)


def test_tables_from_before_files_were_stamped_go_on(folder, tmp_path):
    """Their rows are of files that are older than the table; what is newer is read again."""
    parquet = pytest.importorskip("pyarrow.parquet")
    out, encoder = tmp_path / "features.parquet", small()
    embed_files([folder], out, encoder, progress=False)
    time.sleep(0.05)  # longer than the clock of a file system ticks
    columns = ["path", "feature", "confidence", "flagged", "provenance_id", "kept"]
    parquet.write_table(parquet.read_table(out, columns=columns), out)
    assert embed_files([folder / "b.png"], out, encoder, progress=False).new == 0
    assert parquet.read_table(out).num_rows == 3
    time.sleep(0.05)
    shutil.copy2(folder / "b.png", folder / "a.png")  # with the other's time, but new here
    done = embed_files([folder], out, encoder, progress=False)
    assert (done.rows, done.new) == (3, 1)
    rows = read_features(out)
    assert rows["provenance_id"][0] == rows["provenance_id"][1]
    assert embed_files([folder], out, encoder, progress=False).new == 0


def test_nothing_to_do_shows_no_bar(folder, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    out, encoder = tmp_path / "features.parquet", small()
    embed_files([folder / "b.png"], out, encoder)
    assert capsys.readouterr().err == "embed: 1 of 1 image after 0 s\n"
    embed_files([folder / "b.png"], out, encoder)
    assert capsys.readouterr().err == ""
    embed_files([folder / "b.png", folder / "d.png"], out, encoder)  # the bar begins with what was done before
    assert capsys.readouterr().err == "embed: 2 of 2 images after 0 s\n"


def test_learned_positions_are_resampled_once(folder, tmp_path):
    """From the weights' own grid to the size asked for, and not by way of another."""
    pytest.importorskip("pyarrow")
    encoder = small(img_size=64, learned_positions=True, embed_dim=192, depth=1)
    with torch.no_grad():
        encoder.pos_embed.normal_()
    weights = tmp_path / "published.pth"
    torch.save({"model": encoder.state_dict()}, weights)
    embed_files([folder / "b.png"], tmp_path / "f.parquet", weights, img_size=64, progress=False)
    expected = hx.embed([folder / "b.png"], encoder).features
    np.testing.assert_allclose(read_features(tmp_path / "f.parquet")["feature"], expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_in_training_stays_in_it_and_a_compiled_one_is_taken():
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=64, embed_dim=24, depth=2, num_heads=3, pool="mean", contour="rectangle"
    )
    encoder.train()
    encoder.blocks[0].eval()
    grey = (np.arange(64 * 64).reshape(64, 64) % 251).astype(np.uint8)
    expected = hx.embed([grey], encoder, keep="all").features
    assert encoder.training and encoder.blocks[1].training and not encoder.blocks[0].training
    compiled = torch.compile(encoder, backend="eager")
    assert np.array_equal(hx.embed([grey], compiled, keep="all").features, expected)
