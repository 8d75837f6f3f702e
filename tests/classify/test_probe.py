"""The linear probe, from a manifest to a saved model that predicts; and its fit against scikit-learn."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify.classifier import load_classifier
from hdxray_fast.classify.evaluation import evaluate_files, predict
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.prediction_files import read_answers
from hdxray_fast.classify.probe import describe_probe, fit_probe, run_probe
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.cli.main import main
from hdxray_fast.data import radiographs
from hdxray_fast.images.contour import find_contour

pytest.importorskip("sklearn")
pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _quick_contours(monkeypatch):
    """These pictures show no chest: the network would look ten times at each, and nothing here depends on it."""
    monkeypatch.setattr(
        radiographs, "find_contour", lambda canvas, method, **options: find_contour(canvas, "rectangle", **options)
    )


def small_encoder(**kwargs):
    torch.manual_seed(1)
    return hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3, **kwargs)


@pytest.fixture
def manifest(tmp_path):
    """Images with a bright square above (class 1) or below (class 0), two to a patient, and one that is broken."""
    rng = np.random.default_rng(0)
    root = tmp_path / "xrays"
    root.mkdir()
    lines = ["image,patient,high"]
    for i in range(60):
        image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
        top = 4 if i % 2 else 40
        image[top : top + 18, 20:44] = rng.integers(180, 250)
        assert cv2.imwrite(str(root / f"{i}.png"), image)
        lines.append(f"xrays/{i}.png,p{i // 2},{i % 2}")
    (root / "broken.png").write_bytes(b"")
    lines.append("xrays/broken.png,px,1")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines))
    return path


def config(manifest, out, **kwargs) -> ProbeConfig:
    options = {"val_share": 0.25, "test_share": 0.3, "bootstraps": 20, "workers": 0, **kwargs}
    return ProbeConfig(str(manifest), str(out), weights="", **options)


def test_end_to_end(manifest, tmp_path, capsys):
    out = tmp_path / "probe"
    result = run_probe(config(manifest, out), small_encoder(), progress=False)
    assert result.left_out == 1
    assert result.report["mean"]["auroc"]["value"] > 0.95
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["classes"]["high"]["auroc"] == result.report["classes"]["high"]["auroc"]
    assert saved["precision"] == "fp32"
    scaled = saved["temperature"]
    assert scaled["value"] == load_classifier(out / "model").config.temperature
    assert set(scaled["test"]["before"]) == {"log_loss", "calibration_error"}
    assert scaled["test"]["after"]["calibration_error"] == pytest.approx(
        saved["classes"]["high"]["calibration_error"]["value"]
    )
    curves = cv2.imread(str(out / "curves.png"))
    assert curves.shape[1] > 1000
    assert curves.std() > 5
    assert "high" in describe_probe(result)
    # what the terminal says of a run stands on its page and in its metrics
    notes = saved["notes"]
    assert notes == result.report["notes"] and any("splits are drawn by patient" in line for line in notes)
    assert any(line.startswith("warning: test is too small") for line in notes)
    unreadable = "warning: 1 image is left out, which could not be read: "
    assert f"{unreadable}features.unreadable.csv" in notes  # beside them
    assert f"{unreadable}{out / 'features.unreadable.csv'}" in describe_probe(result)
    page = (out / "report.html").read_text()
    order = ["Test is too small", "could not be read: features.unreadable.csv", "drawn by patient", "<h2>"]
    assert sorted(order, key=page.index) == order

    # the saved model gives on files what the probe gave on features
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = predict([row["image"] for row in rows], out / "model", batch_size=3)
    assert [row["view"] for row in rows] == found.views
    np.testing.assert_allclose(found.probabilities[:, 0], [float(row["high"]) for row in rows], atol=1e-4)
    assert found.thresholds == [saved["classes"]["high"]["threshold"]]
    assert load_classifier(out / "model").config.head == "probe"
    bad = predict(manifest.parent / "xrays" / "broken.png", out / "model")
    assert (bad.images, bad.probabilities.shape, len(bad.quarantined)) == ([], (0, 1), 1)

    options = {"data": manifest, "split": "all", "bootstraps": 10, "progress": False}
    refused = r"^split: .*trained or validated on 4[0-9] of these 61 images .*allow_training_patients"
    with pytest.raises(hx.ConfigError, match=refused):
        evaluate_files(out / "model", out=tmp_path / "all", **options)
    everything = evaluate_files(out / "model", out=tmp_path / "all", **options, allow_training_patients=True)
    assert everything["images"] == 60
    assert everything["classes"]["high"]["threshold"] == saved["classes"]["high"]["threshold"]
    assert "broken.png" in (tmp_path / "all" / "unreadable.csv").read_text()
    assert everything["unreadable"] == saved["unreadable"] == 1

    assert (saved["precision"], load_classifier(out / "model").config.precision) == ("fp32", "fp32")
    with pytest.raises(hx.ConfigError, match=r"^out: .* holds a training run"):
        evaluate_files(out / "model", out=out, **options)
    assert main(["predict", str(manifest), "--model", str(out / "model"), "--out", str(tmp_path / "new")]) == 2
    assert f"out: {tmp_path}/new does not say by its ending what kind of file" in capsys.readouterr().err

    # splits that training drew are drawn again: the test metrics of the run come out again
    tested = evaluate_files(out / "model", out=tmp_path / "test", **{**options, "split": "test"})
    assert tested["images"] == result.report["images"] < 60
    assert tested["seen"]["share"] == 0
    assert tested["classes"]["high"]["auroc"]["value"] == pytest.approx(saved["classes"]["high"]["auroc"]["value"])
    options |= {"max_bad_share": 0.1}  # the broken one is in one of them
    parts = [evaluate_files(out / "model", out=tmp_path / s, **{**options, "split": s}) for s in ("train", "val")]
    assert [part["seen"]["share"] for part in parts] == [1, 1]
    assert sum(part["images"] for part in (*parts, tested)) == 60
    with (tmp_path / "test" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["view"] for row in rows] == found.views
    called = [(float(row["high"]), row["present"]) for row in rows]
    least = found.thresholds[0]
    assert all(present == ("high" if value >= least else "") for value, present in called if abs(value - least) > 1e-6)

    # a second probe takes the features as they are
    again = run_probe(config(manifest, out, label_fraction=0.3), small_encoder(), progress=False)
    assert again.report["images"] == result.report["images"]
    other = manifest.with_name("other.csv")
    other.write_text(manifest.read_text().replace("high", "low"))
    with pytest.raises(hx.ConfigError, match=r"^out: .* holds results with data=.*choose another folder"):
        run_probe(config(other, out), small_encoder(), progress=False)


def test_a_probe_says_what_it_takes_the_place_of(manifest, tmp_path, capsys):
    settings = config(manifest, tmp_path / "probe")
    for changes in ({}, {"workers": 1}, {"split_seed": 3, "val_share": 0.3}):
        run_probe(replace(settings, **changes), small_encoder())
        told = capsys.readouterr().err
        assert ("takes its place" in told) == ("split_seed" in changes)
    assert "holds a probe with other settings (val_share: 0.25 -> 0.3, split_seed: 0 -> 3)" in " ".join(told.split())


def test_a_probe_that_tells_nothing_apart_says_so(manifest, tmp_path):
    """Labels that the pictures do not tell, so that the strongest regularisation is chosen."""
    first, *rows = manifest.read_text().splitlines()
    drawn = np.random.default_rng(5).integers(0, 2, len(rows))
    manifest.write_text("\n".join([first, *(f"{row[:-1]}{value}" for row, value in zip(rows, drawn, strict=True))]))
    result = run_probe(config(manifest, tmp_path / "probe"), small_encoder(), progress=False)
    assert any(note.startswith("probabilities of high differ by less than a hundredth") for note in result.notes)


def test_no_temperature_is_told_where_none_was_asked_for(manifest, tmp_path):
    result = run_probe(config(manifest, tmp_path / "p", calibrate="none"), small_encoder(), progress=False)
    assert "temperature" not in json.loads((tmp_path / "p" / "metrics.json").read_text())
    assert "temperature" not in describe_probe(result).replace(str(tmp_path), "")


def test_other_labels_and_another_precision_than_those_of_the_run_are_told(manifest, tmp_path, capsys):
    out = tmp_path / "probe"
    run_probe(config(manifest, out, bootstraps=0), small_encoder(), progress=False)
    options = {"data": manifest, "bootstraps": 0, "out": tmp_path / "test"}
    capsys.readouterr()
    evaluate_files(out / "model", **options)
    told = capsys.readouterr().err
    assert "not what they were" not in told and "computed in" not in told
    lines = manifest.read_text().splitlines()
    lines[1] = lines[1][:-1] + "1"  # it was 0
    manifest.write_text("\n".join(lines))
    evaluate_files(out / "model", **options, precision="bf16")
    told = capsys.readouterr().err
    assert "the labels of" in told and "are not what they were in training" in told
    assert "computed in bf16; the model's thresholds and the metrics of its run are of fp32" in told
    notes = json.loads((tmp_path / "test" / "metrics.json").read_text())["notes"]
    assert notes and all(line in told for line in notes)
    page = (tmp_path / "test" / "report.html").read_text()
    assert "Computed in bf16; the model&#x27;s thresholds" in page and "are not what they were in training" in page


def test_a_pooling_that_no_probe_has_is_refused_before_an_image_is_read(manifest, tmp_path, capsys):
    with pytest.raises(hx.ConfigError, match=r"^pool: a probe is kept on 'cls' or 'mean'"):
        run_probe(config(manifest, tmp_path / "p"), small_encoder(pool="attention"))
    with pytest.raises(hx.ArgumentError, match=r"img_size"):
        run_probe(config(manifest, tmp_path / "p", img_size=65), small_encoder())
    assert capsys.readouterr().err == ""  # nor are tables printed
    assert not (tmp_path / "p").exists()


def test_two_probes_never_share_a_folder(manifest, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    held = FileLock(tmp_path / "out" / ".run.lock")
    with held, pytest.raises(hx.ConfigError, match=r"out: another run is at work in .*out; wait for its end"):
        run_probe(config(manifest, tmp_path / "out"), small_encoder(), progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".run.lock"]


def test_several_ranks_are_refused(manifest, tmp_path, monkeypatch):
    """One would wait for rows of the others, which the folder's lock keeps out."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(hx.ConfigError, match="a linear probe is for one process"):
        run_probe(config(manifest, tmp_path / "out"), small_encoder(), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_feature_that_is_no_number_is_named(manifest):
    labels = np.array([[0.0], [1.0]] * 6, np.float32)
    splits = ["train"] * 8 + ["val"] * 4
    table = LabelTable([f"{i}.png" for i in range(12)], labels, ["a"], [str(i) for i in range(12)], splits)
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    features[5, 1] = np.inf
    with pytest.raises(hx.TrainingError, match=r"the features of 1 of 12 images are not finite; the first: 5\.png"):
        fit_probe(features, table)


def test_too_few_readable_images_are_named(manifest, tmp_path):
    for i in range(1, 60, 2):
        (manifest.parent / "xrays" / f"{i}.png").write_bytes(b"")
    made = config(manifest, tmp_path / "out", max_bad_share=0.6)
    with pytest.raises(hx.ConfigError, match="class 'high' has 0 positive"):
        run_probe(made, small_encoder(), progress=False)
    with pytest.raises(hx.TrainingError, match=r"31 of 61 images .* max_bad_share=0.05.*features.unreadable.csv"):
        run_probe(config(manifest, tmp_path / "out"), small_encoder(), progress=False)


@pytest.mark.slow
def test_evaluation_reads_splits_as_training_does(manifest, tmp_path, capsys):
    out = tmp_path / "probe"
    run_probe(config(manifest, out), small_encoder(), progress=False)
    options = {"bootstraps": 0, "progress": False, "out": tmp_path / "e", "force": True}  # one folder for all tables
    again = {**options, "progress": True, "allow_training_patients": True}
    evaluate_files(out / "model", manifest, split="all", **again)
    assert "the model was trained or validated on 42 of these 60 images (70%)" in capsys.readouterr().err
    record = out / "model" / "seen.safetensors"
    record.rename(tmp_path / "kept")
    evaluate_files(out / "model", manifest, split="all", **{**options, "progress": True})  # a folder of an old release
    told = capsys.readouterr().err
    assert "was trained on patients of" in told and "has no seen.safetensors: whether it was trained" in told
    lines = manifest.read_text().splitlines()
    words = ["Training"] * 40 + ["validation"] * 10 + ["Testing"] * 10
    rows = [f"{line},{word}" for line, word in zip(lines[1:61], words, strict=True)]
    other = manifest.with_name("other.csv")

    def evaluate(split, rows, **more):
        other.write_text("\n".join([lines[0] + ",SPLIT", *rows]))
        return evaluate_files(out / "model", other, split=split, **options, **more)

    assert [evaluate(split, rows)["images"] for split in ("test", "validate", "all")] == [10, 10, 60]
    with pytest.raises(hx.ConfigError, match="split: got 'tset', accepted are train, val, test, all, training"):
        evaluate("tset", rows)
    with pytest.raises(
        hx.ConfigError, match=r"no image in 'test': it has train, val, and .* other patients, .* never saw"
    ):
        evaluate("test", rows[:50])
    assert evaluate("train", rows[:50])["images"] == 40  # not the patients that training had: splits stay as given
    every = [*rows, f"{lines[61]},train"]
    with pytest.raises(hx.ConfigError, match="has the patients that the model was trained on, in other splits"):
        evaluate("test", every)
    assert evaluate("all", every)["images"] == 60
    with pytest.raises(hx.ConfigError, match="listed more than once"):
        evaluate("test", [*rows, rows[-1].replace(",1,", ",0,")])
    with pytest.raises(hx.ConfigError, match="in two splits"):
        evaluate("test", [*rows[:-1], rows[-1].replace("p29", "p0")])
    (manifest.parent / "xrays" / "55.png").write_bytes(b"")
    with pytest.raises(hx.TrainingError, match=r"1 of 10 images .* max_bad_share=0.05.*unreadable.csv"):
        evaluate("test", rows)
    assert evaluate("test", rows, max_bad_share=0.2)["unreadable"] == 1


def test_duplicates_across_splits_are_refused(manifest, tmp_path):
    lines = manifest.read_text().splitlines()
    copy = manifest.parent / "xrays" / "copy.png"
    splits = ["train" if i < 40 else "val" if i < 50 else "test" for i in range(60)]
    copy.write_bytes((manifest.parent / "xrays" / "0.png").read_bytes())
    rows = [f"{line},{split}" for line, split in zip(lines[1:61], splits, strict=True)]
    manifest.write_text("\n".join([lines[0] + ",split", *rows, "xrays/copy.png,new,0,test"]))
    with pytest.raises(hx.ConfigError, match="hold the same pixels"):
        run_probe(config(manifest, tmp_path / "out"), small_encoder(), progress=False)


def table_of(labels, multiclass=False) -> LabelTable:
    count = len(labels)
    splits = ["train" if i % 5 < 3 else "val" if i % 5 == 3 else "test" for i in range(count)]
    classes = [f"c{i}" for i in range(labels.shape[1])]
    names = [str(i) for i in range(count)]
    return LabelTable(names, labels.astype(np.float32), classes, names, splits, multiclass)


@pytest.mark.parametrize("multiclass", [False, True])
def test_fit_is_scikit_learns(multiclass):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 6)) * [1, 10, 0.1, 5, 1, 0] + 3).astype(np.float32)
    kind = (features[:, 0] > 3).astype(int) + (features[:, 1] > 6)
    labels = np.eye(3)[kind] if multiclass else np.stack([kind > 0, kind > 1], 1).astype(float)
    table = table_of(labels, multiclass)
    probe = fit_probe(features, table, strengths=[0.1])
    train = np.array([split == "train" for split in table.splits])
    scaler = StandardScaler().fit(features[train])
    if multiclass:
        model = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(features[train]), kind[train])
        expected = model.predict_proba(scaler.transform(features))
    else:
        columns = []
        for column in range(2):
            model = LogisticRegression(C=0.1, max_iter=2000)
            model.fit(scaler.transform(features[train]), labels[train, column])
            columns.append(model.predict_proba(scaler.transform(features))[:, 1])
        expected = np.stack(columns, 1)
    np.testing.assert_allclose(probe.probabilities(features), expected, atol=1e-4)


def test_two_exclusive_classes_and_unknown_labels():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4)).astype(np.float32)
    kind = (features[:, 0] > 0).astype(int)
    probe = fit_probe(features, table_of(np.eye(2)[kind], multiclass=True))
    found = probe.probabilities(features)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.argmax(1) == kind).mean() > 0.95

    labels = kind[:, None].astype(float)
    wrong = labels.copy()
    wrong[::7] = 1 - wrong[::7]
    unknown = labels.copy()
    unknown[::7] = np.nan  # where the label would have been wrong it is left out
    good, bad = fit_probe(features, table_of(unknown)), fit_probe(features, table_of(wrong))
    assert good.weight.shape == bad.weight.shape == (1, 4)
    assert abs(good.weight[0, 0]) > abs(bad.weight[0, 0])


@pytest.mark.parametrize("uncertain", ["ignore", "zeros"])
def test_an_exclusive_class_is_the_one_that_holds_whatever_else_is_not_known(uncertain):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4)).astype(np.float32)
    kind = (features[:, 0] > 0).astype(int)
    labels = np.eye(2)[kind]
    whole = fit_probe(features, table_of(labels, multiclass=True))
    table = table_of(labels, multiclass=True)
    doubted = np.arange(200) % 3 == 0
    if uncertain == "zeros":  # in training they are decided
        doubted &= np.array([split != "train" for split in table.splits])
    table.labels[doubted, 1 - kind[doubted]] = np.nan
    probe = fit_probe(features, table)
    np.testing.assert_array_equal(probe.weight, whole.weight)
    assert probe.strengths == whole.strengths


def test_nothing_of_test_is_looked_at():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4)).astype(np.float32)
    labels = (features[:, :1] + rng.normal(size=(200, 1)) > 0).astype(float)
    table = table_of(labels)
    test = np.array([split == "test" for split in table.splits])
    other_features, other_labels = features.copy(), labels.copy()
    other_features[test] = 100
    other_labels[test] = 1 - other_labels[test]
    one, two = fit_probe(features, table), fit_probe(other_features, table_of(other_labels))
    np.testing.assert_array_equal(one.weight, two.weight)
    assert one.strengths == two.strengths


def test_bad_settings_are_named(manifest, tmp_path):
    with pytest.raises(hx.ConfigError, match=r"^label_fraction: "):
        config(manifest, tmp_path / "out", label_fraction=0)
    elsewhere = config(manifest, tmp_path / "out", images=str(tmp_path / "nowhere"))
    with pytest.raises(hx.ConfigError, match=r"^images: .*nowhere does not exist"):
        run_probe(elsewhere, small_encoder(), progress=False)
    with pytest.raises(hx.ConfigError, match=r"^images: none of the 61 images of .*csv exists in .*xrays, .* meant\?"):
        run_probe(replace(elsewhere, images=str(manifest.parent / "xrays")), small_encoder(), progress=False)


def test_a_table_that_is_not_the_probes_is_told_by_the_option_that_names_it(manifest, tmp_path):
    images, encoder = manifest.parent / "xrays", small_encoder()
    kept, listed = tmp_path / "f.parquet", tmp_path / "f.unreadable.csv"
    with_kept = config(manifest, tmp_path / "p", features=str(kept))
    hx.embed_files(images, kept, encoder, pool="cls", progress=False)
    with pytest.raises(
        hx.ConfigError, match=r"^features: .*f\.parquet holds rows made with other settings \(pool: cls"
    ):
        run_probe(with_kept, encoder, progress=False)
    with pytest.raises(hx.ConfigError, match=r"^out: .*f\.parquet holds rows made with other settings"):
        hx.embed_files(images, kept, encoder, progress=False)
    listed.write_text("mine")
    with pytest.raises(hx.ConfigError, match=r"^features: .*f\.unreadable\.csv would be written over"):
        run_probe(with_kept, encoder, progress=False)
    listed.unlink()
    place = tmp_path / "f.parquet.parts"
    place.mkdir(exist_ok=True)
    kept.unlink()
    (place / "join.lock").write_text("mine")
    with pytest.raises(hx.ConfigError, match=r"^features: .*join\.lock would be written over"):
        run_probe(with_kept, encoder, progress=False)
    assert (place / "join.lock").read_text() == "mine"


def test_the_commands(manifest, tmp_path, capsys):
    folder = hx.save_model(small_encoder(pool="mean"), tmp_path / "weights")
    common = ["--val-share", "0.25", "--test-share", "0.3", "--bootstraps", "5", "--workers", "0"]
    assert (
        main(["probe", "--data", str(manifest), "--weights", str(folder), "--out", str(tmp_path / "p"), *common]) == 0
    )
    assert "high" in capsys.readouterr().out
    model = str(tmp_path / "p" / "model")
    out = tmp_path / "new.csv"
    paths = [str(manifest.parent / "xrays" / name) for name in ("0.png", "1.png", "broken.png")]
    assert main(["predict", *paths, "--model", model, "--out", str(out), "--workers", "0"]) == 0
    assert len(out.read_text().splitlines()) == 3
    assert "unreadable" in capsys.readouterr().err
    arguments = ["--data", str(manifest), "--split", "all", "--out", str(tmp_path / "e"), "--workers", "0"]
    assert main(["evaluate", "--model", model, *arguments]) == 2
    assert "--split: the model was trained or validated on" in (told := capsys.readouterr().err)
    assert "give --allow-training-patients" in told
    arguments.append("--allow-training-patients")
    assert main(["evaluate", "--model", model, "--bootstraps", "5", "--precision", "bf16", *arguments]) == 0
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["precision"] == "bf16"
    assert main(["evaluate", "--model", str(tmp_path), *arguments]) == 2
    assert "is missing" in capsys.readouterr().err


def test_what_is_chosen_and_reported_is_what_the_saved_model_answers(manifest, tmp_path):
    """On validation no threshold of another has a better F1; on test each image has its probability and decision."""
    rng = np.random.default_rng(0)
    lines = manifest.read_text().splitlines()
    answers = rng.integers(0, 2, (61, 4))  # noise: thresholds lie among images
    rows = [f"{line},{','.join(map(str, own))}" for line, own in zip(lines[1:], answers, strict=True)]
    manifest.write_text("\n".join([lines[0] + ",a,b,c,d", *rows]))
    out = tmp_path / "probe"
    encoder = small_encoder()
    with torch.no_grad():
        encoder.norm.bias.fill_(100.0)  # large features: the regression's float64 and the head's float32 differ
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    result = run_probe(config(manifest, out, bootstraps=0), encoder, progress=False)
    options = {"data": manifest, "bootstraps": 0, "progress": False, "batch_size": 7, "max_bad_share": 0.1}
    tested = evaluate_files(out / "model", out=tmp_path / "test", split="test", **options)
    for name, measured in tested["classes"].items():
        for metric in ("auroc", "auprc", "f1", "balanced_accuracy"):
            assert measured[metric]["value"] == result.report["classes"][name][metric]["value"]
    written = [read_answers(folder) for folder in (out, tmp_path / "test")]
    assert written[0].images == written[1].images
    assert np.array_equal(written[0].called, written[1].called)
    np.testing.assert_allclose(written[0].probabilities, written[1].probabilities, atol=1e-6)
    chosen = evaluate_files(out / "model", out=tmp_path / "val", split="val", **options)
    val = read_answers(tmp_path / "val")
    for column, (name, measured) in enumerate(chosen["classes"].items()):
        score, truth = val.probabilities[:, column], val.labels[:, column]
        best = max(f1_score(truth, score >= threshold) for threshold in score)
        assert measured["f1"]["value"] == pytest.approx(best), name


def test_at_another_size_the_saved_model_gives_the_runs_own_table(manifest, tmp_path):
    """One encoder computes the features, is saved, and draws the error sheet."""
    weights = small_encoder(learned_positions=True)
    with torch.no_grad():
        weights.pos_embed.normal_()
    hx.save_model(weights, tmp_path / "weights")
    given = small_encoder(learned_positions=True)
    given.load_state_dict(weights.state_dict())
    probabilities = []
    for name, encoder in (("loaded", None), ("given", given)):
        out = tmp_path / name
        settings = replace(config(manifest, out, img_size=96, keep="valid"), weights=str(tmp_path / "weights"))
        run_probe(settings, encoder, progress=False)
        with (out / "predictions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        found = predict([row["image"] for row in rows], out / "model", batch_size=3)
        np.testing.assert_allclose(found.probabilities[:, 0], [float(row["high"]) for row in rows], atol=1e-4)
        assert load_classifier(out / "model").encoder.img_size == (96, 96)
        probabilities.append(found.probabilities)
    np.testing.assert_allclose(*probabilities, atol=1e-4)
    assert (given.img_size, given.keep) == ((64, 64), "all")  # the caller's encoder stays as it is


def test_a_class_that_an_exact_fraction_lacks_is_said_to_be_as_frequent_as_it_is_known():
    """Nothing can be fitted to it: no coefficient, and Laplace's rule for the probability."""
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(30) % 2, np.zeros(30)], 1).astype(np.float32)
    labels[20:, 1] = np.arange(10) % 2
    splits = ["train"] * 18 + ["val"] * 6 + ["test"] * 6
    table = LabelTable([f"{i}.png" for i in range(30)], labels, ["a", "rare"], [f"p{i}" for i in range(30)], splits)
    probe = fit_probe(rng.normal(size=(30, 4)), table)
    assert np.allclose(probe.probabilities(rng.normal(size=(5, 4)))[:, 1], 1 / 20)
    assert probe.strengths[1] == 0 < probe.strengths[0]


def test_a_class_without_labels_to_choose_by_is_regularised_as_usual():
    """No loss tells the strengths apart: the first, 1e-5, shrinks every probability to the mean."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4)).astype(np.float32)
    labels = np.stack([features[:, 0] > 0, features[:, 1] > 0], 1).astype(float)
    table = table_of(labels)
    val = [split == "val" for split in table.splits]
    table.labels[np.array(val), 1] = np.nan
    probe = fit_probe(features, table)
    assert (probe.not_chosen, probe.strengths[1]) == (["c1"], 0.1)
    assert np.ptp(probe.probabilities(features)[:, 1]) > 0.9
