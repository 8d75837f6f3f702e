"""Films of the training under other names and patients, encoded, windowed or trimmed anew: noticed by every command."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from film_makers import compressed, draw_film, windowed
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import hdxray_fast as hx
from hdxray_fast.classify.classifier import load_classifier
from hdxray_fast.classify.evaluation import evaluate_files, predict
from hdxray_fast.classify.probe import run_probe
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.data.seen import SEEN_FILE
from hdxray_fast.features.embedding_files import embed_files

for package in ("sklearn", "pandas", "matplotlib", "pyarrow"):
    pytest.importorskip(package)

TRAIN, VAL, TEST, NEW = range(14), range(14, 20), range(20, 26), range(26, 32)


def film(number: int) -> np.ndarray:
    """A toy film with detail of its own on either side."""
    blobs = np.random.default_rng(1000 + number).normal(0, 25, (20, 20))
    detail = cv2.resize(blobs, (400, 400), interpolation=cv2.INTER_CUBIC)
    return np.clip(draw_film(number) + detail, 0, 255).astype(np.uint8)


ALTERED = (lambda one: compressed(one, 80), windowed, lambda one: one[4:-3, 5:-2])


def write(path, rows, header="image,patient,high,split"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def probe(root, data, out, **options):
    settings = {"bootstraps": 0, "workers": 0, **options}
    return run_probe(ProbeConfig(str(data), str(out), str(root / "weights"), **settings), progress=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A probe on 26 films of as many patients, six new films, and copies of nine that were trained on."""
    root = tmp_path_factory.mktemp("near")
    for number in range(32):
        cv2.imwrite(str(root / f"{number}.png"), film(number))
    for number in range(9):
        cv2.imwrite(str(root / f"copy{number}.png"), ALTERED[number % 3](film(number)))
    splits = {number: name for name, part in (("train", TRAIN), ("val", VAL), ("test", TEST)) for number in part}
    write(root / "labels.csv", [(f"{i}.png", f"p{i}", i % 2, split) for i, split in splits.items()])
    torch.manual_seed(1)
    small = {"img_size": 128, "depth": 1, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
    hx.save_model(hx.create_encoder("vit_tiny_patch16", **small), root / "weights")
    probe(root, root / "labels.csv", root / "probe")
    return root


def evaluate(root, rows, out, model="probe", **more) -> dict:
    data = write(root / f"{out.name}.csv", rows)
    return evaluate_files(root / model, data, out, split="test", bootstraps=0, progress=True, **more)


def test_copies_under_other_ids_are_counted_and_most_of_them_refused(root, tmp_path, capsys):
    new = [(f"{number}.png", f"n{number}", number % 2, "test") for number in NEW]
    copies = [(f"copy{number}.png", f"q{number}", number % 2, "test") for number in range(9)]
    report = evaluate(root, [*new, *copies[:5]], tmp_path / "few")
    assert report["seen"] == {"images": 5, "share": 5 / 11, "patients": 0, "pixels": 0, "near": 5}
    assert json.loads((tmp_path / "few" / "metrics.json").read_text())["seen"] == report["seen"]
    told = "on 5 of these 11 images (45%): 5 near duplicates; the first is"
    assert told in capsys.readouterr().err
    with pytest.raises(hx.ConfigError, match=r"on 9 of these 15 images \(60%\): 9 near duplicates; the first"):
        evaluate(root, [*new, *copies], tmp_path / "most")
    assert not (tmp_path / "most" / "metrics.json").exists()
    allowed = evaluate(root, [*new, *copies], tmp_path / "most", allow_training_patients=True)
    assert allowed["seen"]["near"] == 9


def test_new_films_and_those_of_the_test_split_are_no_copies(root, tmp_path):
    rows = [(f"{number}.png", f"n{number}", number % 2, "test") for number in (*TEST, *NEW)]
    assert evaluate(root, rows, tmp_path / "new")["seen"]["images"] == 0


def test_predict_warns(root, capsys):
    found = predict([str(root / "copy0.png"), str(root / "0.png"), str(root / "30.png")], root / "probe", progress=True)
    assert found.overlap.by["near"].tolist() == [True, False, False]
    assert found.overlap.by["pixels"].tolist() == [False, True, False]
    told = capsys.readouterr().err
    assert (
        "warning: the model was trained or validated on 2 of these 3 images (67%): 1 equal to the pixel, 1 near" in told
    )


def test_a_model_of_an_earlier_release_says_what_it_cannot_tell(root, tmp_path, capsys):
    shutil.copytree(root / "probe", root / "old")
    record = root / "old" / "model" / SEEN_FILE
    with safe_open(record, "np") as file:
        about = file.metadata()
    save_file({name: value for name, value in load_file(record).items() if "near" not in name}, record, about)
    rows = [(f"copy{n}.png", f"q{n}", n % 2, "test") for n in range(4)]
    rows.append(("0.png", "other", 0, "test"))
    report = evaluate(root, rows, tmp_path / "out", model="old")
    assert report["seen"] == {"images": 1, "share": 0.2, "patients": 0, "pixels": 1}
    said = "has no signatures of films (one of an earlier release has none): equal pixels are compared, near"
    assert said in capsys.readouterr().err
    predict([str(root / "copy0.png")], root / "old", progress=True)
    assert said in capsys.readouterr().err


def test_a_probe_leaves_no_copies_across_drawn_splits_and_tells_of_given_ones(root, tmp_path):
    """Of each pair one side goes, so that the test split holds nothing that is trained on."""
    rows = [(f"{number}.png", f"p{number}", number % 2) for number in range(26)]
    rows += [(f"copy{number}.png", f"q{number}", number % 2) for number in range(9)]
    data = write(root / "drawn.csv", rows, "image,patient,high")
    result = probe(root, data, tmp_path / "drawn", val_share=0.2, test_share=0.3)
    assert any("left out of train or val, of patients who share a film" in note for note in result.notes)
    model = load_classifier(tmp_path / "drawn")
    in_test = [line.split(",")[0] for line in (tmp_path / "drawn" / "predictions.csv").read_text().splitlines()[1:]]
    overlap = predict(in_test, model).overlap
    assert overlap.by["near"].tolist() == [False] * len(in_test)

    given = [(f"{number}.png", f"p{number}", number % 2, split) for number, split in zip(
        range(26), ["train"] * 14 + ["val"] * 6 + ["test"] * 6, strict=True
    )]  # fmt: skip
    data = write(root / "given.csv", [*given, ("copy0.png", "q0", 0, "test")])
    result = probe(root, data, tmp_path / "given")
    assert any(note.startswith("warning: 1 pair of near duplicates across splits") for note in result.notes)
    assert result.report["images"] == 7


def test_features_without_thumbnails_are_used_and_it_is_said(root, tmp_path):
    """Of embed, or an earlier release: the table goes on, near duplicates are not looked for, the record has none."""
    files = [str(root / f"{number}.png") for number in range(26)]
    encoder = hx.create_encoder(weights=root / "weights")
    embed_files(files, tmp_path / "features.parquet", encoder, progress=False)
    result = probe(root, root / "labels.csv", tmp_path / "out", features=str(tmp_path / "features.parquet"))
    assert any("26 of the images have no thumbnail in" in note for note in result.notes)
    assert load_classifier(tmp_path / "out").seen.limits
