"""Tests on what a classifier was trained on: noticed by patient and by pixel, in whatever manifest they come."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from killed_runs import Killed, killed_at

import hdxray_fast as hx
from hdxray_fast.classify.classifier import load_classifier, save_classifier
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.evaluation import evaluate_files, predict
from hdxray_fast.classify.finetune import run_finetuning
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.classify.probe import run_probe
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.cli.main import main
from hdxray_fast.data.seen import DRAWN_FILE, SEEN_FILE, Seen, patient_key
from hdxray_fast.data.seen_key import KEY_FILE, keep_key, run_key
from hdxray_fast.data.splits import fill_splits, patients_hash

for package in ("accelerate", "sklearn", "pandas", "matplotlib", "pyarrow"):
    pytest.importorskip(package)


ALLOWED = {"allow_training_patients": True, "progress": True}


def paint(path, high: int, rng) -> None:
    image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
    top = 4 if high else 40
    image[top : top + 18, 20:44] = rng.integers(180, 250)
    assert cv2.imwrite(str(path), image)


def write(path, rows, header="image,patient,high"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """60 images of 30 patients, and 20 of others; a probe on the first."""
    root = tmp_path_factory.mktemp("seen")
    rng = np.random.default_rng(0)
    for number in range(80):
        paint(root / f"{number}.png", number % 2, rng)
    write(root / "labels.csv", [(f"{i}.png", f"p{i // 2}", i % 2) for i in range(60)])
    torch.manual_seed(1)
    small = {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
    hx.save_model(hx.create_encoder("vit_tiny_patch16", **small), root / "weights")
    options = {"val_share": 0.2, "test_share": 0.3, "bootstraps": 0, "workers": 0}
    run_probe(
        ProbeConfig(str(root / "labels.csv"), str(root / "probe"), str(root / "weights"), **options), progress=False
    )
    return root


@pytest.fixture(scope="module")
def trained(root) -> LabelTable:
    return read_labels(root / "labels.csv", val_share=0.2, test_share=0.3)


def test_the_record_holds_hashes_and_no_ids(root, trained):
    model = load_classifier(root / "probe")
    names = [*trained.patients, "p99"]
    assert model.seen.splits_of(names) == dict(zip(trained.patients, trained.splits, strict=True))
    taught = model.seen.taught("patients", ["", *names])
    assert taught.tolist() == [False, *(split != "test" for split in trained.splits), False]
    found = predict([str(root / "0.png"), str(root / "70.png")], model)
    assert found.overlap.by["pixels"].tolist() == [trained.splits[0] != "test", False]
    content = (root / "probe" / "model" / SEEN_FILE).read_bytes()
    assert b"p17" not in content and found.hashes[0].encode() not in content
    keep_key(root / "copy", model.key)  # it is nobody's business but the owner's
    again = load_classifier(save_classifier(model, root / "copy" / "model"))
    assert again.seen.splits_of(["p0"]) == model.seen.splits_of(["p0"])
    model.seen = None
    assert load_classifier(save_classifier(model, root / "copy" / "model")).seen is None


def test_a_model_that_is_given_away_does_not_tell_whom_it_has_seen(root, trained, tmp_path, capsys):
    """Who has the model's folder and the list of patients cannot find out that it is the list; the owner can."""
    given = tmp_path / "given"
    shutil.copytree(root / "probe" / "model", given)
    told = (given / "classifier.json").read_text() + (given / SEEN_FILE).read_bytes().decode("latin-1")
    placed = [f"{patient}\0" for patient in trained.patients]
    for guess in (patients_hash(trained.patients), patients_hash(placed)):
        assert guess not in told
    assert (root / "probe" / KEY_FILE).stat().st_mode & 0o077 == 0
    assert not list(given.glob("*.key")) and (root / "probe" / KEY_FILE).read_text().strip() not in told
    shared = load_classifier(given)
    assert shared.key is None and not shared.seen.knows_patients and shared.seen.splits_of(["p0"]) == {}
    salts = [patients_hash(placed), shared.config.splits["given"], shared.seen.salt, ""]
    keys = set(load_classifier(root / "probe").seen.keys["patients"].tolist())
    assert len(keys) == 30 and not keys & {patient_key(name, salt) for name in trained.patients for salt in salts}
    with pytest.raises(hx.ConfigError, match=r"it has no splits, and whether .* cannot be told without the seen.key"):
        evaluate_files(given, root / "labels.csv", tmp_path / "test", split="test", bootstraps=0)
    report = evaluate_files(given, root / "labels.csv", tmp_path / "all", split="all", bootstraps=0, **ALLOWED)
    assert "patients" not in report["seen"] and report["seen"]["pixels"] == 60 - trained.splits.count("test")
    assert (
        f"the {KEY_FILE} of its run is not beside it: whether it was trained on these patients"
        in capsys.readouterr().err
    )
    keep_key(tmp_path, load_classifier(root / "probe").key)  # the owner lays it beside the copy
    assert load_classifier(given).seen.taught("patients", trained.patients).sum() == report["seen"]["pixels"]
    keep_key(tmp_path, bytes(32))  # of another run
    assert not load_classifier(given).seen.knows_patients
    (tmp_path / KEY_FILE).write_text("key")
    with pytest.raises(hx.ConfigError, match="is no key"):
        load_classifier(given)


def test_a_record_of_an_earlier_release_is_read(root, trained):
    """Its hashes of patients need no key, and its splits are found again."""
    origin = dict(trained.origin)
    keys = {patient_key(name, origin["given"]): 0 for name in trained.patients}
    old = Seen.of_origin(origin)
    old.keys["patients"] = np.array(sorted(keys), np.int64)
    old.places["patients"] = np.zeros(len(keys), np.uint8)
    assert old.knows_patients and old.is_of(origin["given"]) and not old.is_of("other")
    assert set(old.splits_of([*trained.patients, "p99"])) == set(trained.patients)
    old.key = bytes(32)  # of a run that goes on since
    assert old.taught("patients", [*trained.patients[:2], "p99"]).tolist() == [True, True, False]


def evaluate(root, data, split, out, **more) -> dict:
    options = {"bootstraps": 0, "progress": True, "max_bad_share": 0, "force": True, **more}
    return evaluate_files(root / "probe", data, out, split=split, **options)


@pytest.mark.parametrize("split", ["all", "test", "train"])
def test_the_same_pixels_under_another_id(root, trained, tmp_path, capsys, split):
    """Refused after reading: most of what is to be tested on is equal to the pixel, in another file, too."""
    named = "train" if split == "all" else split
    copies = []
    for number in [row for row, own in enumerate(trained.splits) if own != "test"][:12]:
        copy = tmp_path / f"other{number}.png"
        assert cv2.imwrite(str(copy), cv2.imread(str(root / f"{number}.png"), cv2.IMREAD_UNCHANGED), [16, 0])
        copies.append((copy, f"q{number}", number % 2, named))
    new = [(root / f"{number}.png", f"n{number}", number % 2, named) for number in range(60, 68)]
    data = write(tmp_path / "labels.csv", [*new, *copies], "image,patient,high,split")
    if split == "train":
        report = evaluate(root, data, split, tmp_path / "out")
    else:
        with pytest.raises(hx.ConfigError, match=r"on 12 of these 20 images \(60%\): 12 equal to the pixel; the"):
            evaluate(root, data, split, tmp_path / "out")
        assert not (tmp_path / "out" / "metrics.json").exists()
        report = evaluate(root, data, split, tmp_path / "out", allow_training_patients=True)
    assert report["seen"] == {"images": 12, "share": 0.6, "patients": 0, "pixels": 12, "near": 0}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["seen"] == report["seen"]
    told = "warning: the model was trained or validated on 12 of these 20 images (60%): 12 equal to the pixel; the "
    assert told + f"first is {copies[0][0]}; metrics on these flatter" in capsys.readouterr().err


def test_the_same_patients_with_other_images(root, trained, tmp_path, capsys):
    """Refused before anything is read; of the test patients nothing was learned."""
    for split, refused in (("train", True), ("val", True), ("test", False)):
        patients = sorted(
            {patient for patient, own in zip(trained.patients, trained.splits, strict=True) if own == split}
        )
        rows = [(root / f"{60 + number}.png", patient, number % 2) for number, patient in enumerate(patients)][:20]
        data = write(tmp_path / f"{split}.csv", rows)
        if refused:
            unread = write(tmp_path / "unread.csv", [(root / "labels.csv", *row[1:]) for row in rows[:1]])
            with pytest.raises(hx.ConfigError, match=r"1 of these 1 images \(100%\): 1 of the same patients; .*csv"):
                evaluate(root, unread, "all", tmp_path / "out")
            with pytest.raises(hx.ConfigError, match=rf"on {len(rows)} of these {len(rows)} images"):
                evaluate(root, data, "all", tmp_path / "out")
        else:
            assert evaluate(root, data, "all", tmp_path / "out")["seen"]["images"] == 0
            assert "warning" not in capsys.readouterr().err


def test_a_manifest_with_half_its_patients_from_training(root, trained, tmp_path, capsys):
    """Not most of it: it is tested on, and the share is told."""
    known = [row for row, split in enumerate(trained.splits) if split == "train"][:10]
    rows = [(root / f"{row}.png", trained.patients[row], row % 2) for row in known]
    rows += [(root / f"{number}.png", f"n{number}", number % 2) for number in range(60, 70)]
    data = write(tmp_path / "labels.csv", rows)
    report = evaluate(root, data, "all", tmp_path / "out")
    assert report["seen"] == {"images": 10, "share": 0.5, "patients": 10, "pixels": 10, "near": 0}
    told = "the model was trained or validated on 10 of these 20 images (50%): 10 of the same patients, 10 equal to the"
    assert told in capsys.readouterr().err
    command = [
        "predict",
        str(data),
        "--model",
        str(root / "probe"),
        "--out",
        str(tmp_path / "new.csv"),
        "--workers",
        "0",
    ]
    assert main(command) == 0
    assert f"warning: {told}" in capsys.readouterr().err
    found = predict(data, root / "probe")
    assert found.overlap.rows.tolist() == [True] * 10 + [False] * 10


def test_the_training_split_of_another_manifest_is_told(root, tmp_path, capsys):
    """A subset of the training's manifest under its own split column: not the same set of patients."""
    rows = [(f"{i}.png", f"p{i // 2}", i % 2, "train") for i in range(40)]
    data = write(root / "subset.csv", rows, "image,patient,high,split")
    report = evaluate(root, data, "train", tmp_path / "out")
    assert 20 < report["seen"]["patients"] == report["seen"]["pixels"] < 40
    assert "metrics on these flatter" in capsys.readouterr().err


def test_splits_are_those_of_the_training_whatever_is_asked(root, trained, tmp_path):
    """Uncertain labels, or other labels: a draw would be another, the record is not."""
    rows = [(f"{i}.png", f"p{i // 2}", -1 if i in (3, 4, 9) else 1 - i % 2) for i in range(60)]
    data = write(root / "relabelled.csv", rows)
    report = evaluate(root, data, "test", tmp_path / "out")
    unsure = sum(path.endswith(("/3.png", "/4.png", "/9.png")) for path in trained.split("test").paths)
    assert report["images"] == trained.splits.count("test") - unsure
    assert report["seen"]["images"] == 0
    record = root / "probe" / "model" / SEEN_FILE
    record.rename(tmp_path / "kept")
    try:
        with pytest.raises(hx.ConfigError, match="splits cannot be drawn as in training: the labels are others"):
            evaluate(root, data, "test", tmp_path / "out")
        report = evaluate(root, root / "labels.csv", "test", tmp_path / "out")  # the same labels draw the same
        assert report["images"] == trained.splits.count("test") and report["seen"] is None
    finally:
        (tmp_path / "kept").rename(record)


def test_a_damaged_record_is_named(root, tmp_path):
    folder = save_classifier(load_classifier(root / "probe"), tmp_path / "model")
    (folder / SEEN_FILE).write_bytes(b"nothing")
    with pytest.raises(hx.CheckpointError, match=r"seen\.safetensors: is damaged .*; remove it to go without"):
        load_classifier(folder)
    (folder / SEEN_FILE).write_bytes((folder / "head.safetensors").read_bytes())
    with pytest.raises(hx.CheckpointError, match=r"seen\.safetensors: is no record of patients"):
        load_classifier(folder)


def test_patients_left_out_of_a_fraction_are_not_of_the_training():
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    names = [f"{i}.png" for i in range(10)]
    whole = LabelTable(names, np.zeros((10, 1), np.float32), ["a"], [f"p{i}" for i in range(10)], splits)
    used = whole.rows([0, 1, 2, 6, 7, 8, 9])
    seen = Seen.of(whole, used, ["%016x" % (16 * row) if row != 2 else "" for row in range(7)])
    assert seen.taught("patients", whole.patients).tolist() == [True] * 3 + [False] * 3 + [True] * 2 + [False] * 2
    assert seen.splits_of(whole.patients) == dict(zip(whole.patients, splits, strict=True))
    hashes = ["%016x" % (16 * row) for row in range(8)]
    assert seen.taught("pixels", [*hashes, ""]).tolist() == [True, True, False, True, True, *[False] * 4]


def test_a_resumed_run_keeps_its_splits(root, tmp_path):
    """One begun here, after its draw has changed; and one of a release that drew by patient id alone."""
    options = {
        "weights": str(root / "weights"), "contour": "rectangle", "epochs": 2, "batch_size": 6, "bootstraps": 0,
        "workers": 0, "threads": 1, "text": "none", "tensorboard": False, "save_every": 2, "val_share": 0.2,
        "test_share": 0.3, "cache": str(tmp_path / "cache"), "augment": "none",
    }  # fmt: skip
    rows = [(f"{i}.png", f"p{i // 2}", i % 2) for i in range(60)]
    data = write(root / "resumed.csv", rows)
    config = FinetuneConfig(data=str(data), out=str(tmp_path / "run"), **options)
    with pytest.raises(Killed):
        run_finetuning(config, progress=False, on_step=killed_at(4))
    kept = Seen.load(tmp_path / "run" / DRAWN_FILE)
    patients = [f"p{i}" for i in range(30)]
    drawn = kept.splits_of(patients)
    table = read_labels(data, val_share=0.2, test_share=0.3)
    assert drawn == dict(zip(table.patients, table.splits, strict=True))

    # as if another release had drawn: the run goes on with what it has, where a new draw would be refused
    turned = dict(zip(patients, fill_splits([""] * 30, patients, 0.2, 0.3, 0), strict=True))
    assert turned != drawn
    again = FinetuneConfig(**{**config.as_dict(), "resume": "auto"})
    other = replace(table, splits=[turned[patient] for patient in table.patients])
    Seen.of(other, key=run_key(tmp_path / "run")).save(tmp_path / "run" / DRAWN_FILE)
    with pytest.raises(hx.ConfigError, match=r"^data: these are other labels or splits"):
        run_finetuning(again, progress=False)
    (tmp_path / "run" / DRAWN_FILE).unlink()
    with pytest.raises(hx.ConfigError, match=r"^data: these are other labels or splits"):  # taken for an old one
        run_finetuning(again, progress=False)
    kept.save(tmp_path / "run" / DRAWN_FILE)
    (result,) = run_finetuning(again, progress=False)
    assert result.finished
    assert load_classifier(result.out).seen.splits_of(patients) == drawn

    # a run of an earlier release: no record of its splits, and drawn by patient id alone
    old = FinetuneConfig(**{**config.as_dict(), "out": str(tmp_path / "old")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hdxray_fast.classify.finetune._begun", lambda *_: "hashed")
        with pytest.raises(Killed):
            run_finetuning(old, progress=False, on_step=killed_at(4))
    (tmp_path / "old" / DRAWN_FILE).unlink()
    (result,) = run_finetuning(FinetuneConfig(**{**old.as_dict(), "resume": "auto"}), progress=False)
    assert result.finished
    assert load_classifier(result.out).seen.splits_of(patients) == turned
    tested = evaluate_files(result.out, data, tmp_path / "tested", bootstraps=0, progress=False)
    assert tested["images"] == 2 * list(turned.values()).count("test")
