"""Files that cannot be read are told on the terminal: the first few with their reasons, and where all of them are."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph
from xray_makers import dicom

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.classify.probe import run_probe
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.cli.main import main
from hdxray_fast.errors import TrainingError
from hdxray_fast.features.embedding_files import embed_files

for package in ("jsonargparse", "pyarrow", "tqdm"):
    pytest.importorskip(package)


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3, contour="rectangle"
    )
    return hx.save_model(encoder, tmp_path / "weights")


def bad_files(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"bad_{number}.png" for number in range(count)]
    for file in files:
        file.write_bytes(b"no picture")
    return files


def told(err: str, files: list[Path], listed: Path) -> None:
    """The first three by name with a reason, and the list, which holds all of them."""
    lines = [line for line in err.splitlines() if line.startswith("unreadable: ")]
    assert len(lines) == min(3, len(files))
    for line, file in zip(lines, files, strict=False):
        assert line.startswith(f"unreadable: {file}: ") and len(line) > len(f"unreadable: {file}: ")
    assert str(listed) in err
    assert (f"{len(files) - 3} more unreadable files" in err) == (len(files) > 3)
    with listed.open(newline="") as stream:
        assert [row[0] for row in csv.reader(stream)][1:] == [str(file) for file in files]


def test_predict_names_and_lists_them(radiographs, weights, tmp_path, capsys):
    files = bad_files(radiographs, 4)
    model = Classifier(hx.create_encoder(weights=weights), ClassifierConfig(["mass"], contour="rectangle"))
    save_classifier(model, tmp_path / "model")
    words = ["predict", str(radiographs), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out.csv")]
    assert main([*words, "--workers", "0"]) == 0
    told(capsys.readouterr().err, files, tmp_path / "out.unreadable.csv")
    for file in files:
        file.unlink()
    assert main([*words, "--workers", "0"]) == 0
    assert not (tmp_path / "out.unreadable.csv").exists()  # that of an earlier call is gone


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("contour", ["network", "prior"])
def test_predict_names_what_shows_no_chest(weights, tmp_path, contour, kept, capsys):
    """By the pixels where they were looked at, and else by a contour that is not to be relied on."""
    noise = tmp_path / "noise.png"
    cv2.imwrite(str(noise), np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    model = Classifier(hx.create_encoder(weights=weights), ClassifierConfig(["mass"], contour=contour))
    save_classifier(model, tmp_path / "model")
    words = ["predict", str(noise), "--model", str(tmp_path / "model"), "--workers", "0"]
    assert main([*words, "--out", str(tmp_path / "out.csv")] if kept else words) == 0
    said = f"1 of 1 may be no frontal chest radiograph: no contour to rely on; look at {noise}"
    aside = f"1 of 1 shows no frontal chest, by header or pixels (1 other): {noise}; --view frontal leaves"
    told = capsys.readouterr()
    assert (said in told.err, aside in told.err) == (contour == "prior", contour == "network")
    if kept:
        (row,) = csv.DictReader((tmp_path / "out.csv").open())
        assert row["view"] == ("other" if contour == "network" else "")
    else:
        assert ("other" in told.out) == (contour == "network")


def test_embed_names_lateral_films(radiographs, weights, tmp_path, capsys):
    """Of rows made before, too."""
    for name in ("a", "b"):
        dicom(radiographs / f"{name}.dcm", draw_radiograph(0), ViewPosition="LL")
    words = ["embed", str(radiographs), "--weights", str(weights), "--out", str(tmp_path / "f.csv"), "--workers", "0"]
    for _ in range(2):
        assert main(words) == 0
        said = f"2 of 7 show no frontal chest, by header or pixels (2 lateral): {radiographs / 'a.dcm'}, "
        assert said + f"{radiographs / 'b.dcm'}; leave them out" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert [row["view"] for row in rows if row["path"].endswith(".dcm")] == ["lateral", "lateral"]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_embed_names_them_and_writes_no_table_of_nothing(tmp_path, weights, count, capsys):
    files = bad_files(tmp_path / "xrays", count)
    out = tmp_path / "out" / "features.parquet"
    words = ["embed", str(tmp_path / "xrays"), "--weights", str(weights), "--out", str(out), "--workers", "0"]
    assert main(words) == 2
    err = capsys.readouterr().err
    told(err, files, out.with_suffix(".unreadable.csv"))
    assert f"no file can be read; {out} is not written" in err
    assert [path.name for path in out.parent.iterdir()] == ["features.unreadable.csv"]


def test_embed_writes_a_table_of_the_others(radiographs, weights, tmp_path, capsys):
    files = bad_files(radiographs, 2)
    out = tmp_path / "features.parquet"
    words = ["embed", str(radiographs), "--weights", str(weights), "--out", str(out), "--workers", "0"]
    assert main(words) == 0
    said = capsys.readouterr()
    told(said.err, files, out.with_suffix(".unreadable.csv"))
    assert "5 rows of 24 numbers" in said.out and "(5 new); 2 files could not be read" in said.out
    done = embed_files(files, out, weights, progress=False)  # rows of before stay
    assert (done.rows, done.new, done.unreadable) == (5, 0, 2)
    assert [bad.path for bad in done.quarantined] == [str(file) for file in files]
    assert len(hx.embed(radiographs, weights)) == 5


def test_a_probe_on_nothing_readable_says_so(tmp_path, weights):
    pytest.importorskip("sklearn")
    files = bad_files(tmp_path / "xrays", 12)
    rows = [f"{file},p{n},{n % 2},{('train', 'val', 'test')[n // 4]}" for n, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,patient,sick,split", *rows]) + "\n")
    config = ProbeConfig(data=str(tmp_path / "labels.csv"), weights=str(weights), out=str(tmp_path / "out"), workers=0)
    with pytest.raises(TrainingError, match=r"none of the 12 images could be read; they are listed in .*unreadable"):
        run_probe(config, progress=False)


@pytest.mark.parametrize("count", [1, 5])
def test_prepare_names_them_where_nothing_can_be_used(tmp_path, count, capsys):
    pytest.importorskip("pebble")
    files = bad_files(tmp_path / "xrays", count)
    out = tmp_path / "set"
    assert main(["prepare", str(tmp_path / "xrays"), "--out", str(out), "--workers", "0", "--img-size", "64"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"none of the {count} sources can be used" in line
    for file in files[:3]:
        assert f"{file}: " in line
    assert all(str(file) not in line for file in files[3:])
    assert line.endswith(f"all are in {out / 'quarantine.csv'}")


@pytest.mark.parametrize("count", [1, 5])
def test_prepare_and_merge_name_them_beside_the_others(radiographs, tmp_path, count, capsys):
    pytest.importorskip("pebble")
    pytest.importorskip("matplotlib")
    files = bad_files(radiographs, count)
    out = tmp_path / "set"
    words = ["prepare", str(radiographs), "--out", str(out), "--workers", "0", "--img-size", "64", "--shard-size", "4"]
    words += ["--contour", "rectangle"]
    assert main([*words, "--part", "2/2"]) == 0
    err = capsys.readouterr().err
    assert "unreadable: " in err and "quarantine.csv once all parts are merged" in err
    assert main([*words, "--part", "1/2"]) == 0
    told(capsys.readouterr().err, files, out / "quarantine.csv")
    assert main(["merge", str(out)]) == 0
    told(capsys.readouterr().err, files, out / "quarantine.csv")
