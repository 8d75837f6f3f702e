"""Classifiers compared by pairs: the same cases or a refusal, differences that hold, and what is written of them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.delong import delong_error, delong_parts
from hdxray_fast.classify.metrics import evaluate_predictions
from hdxray_fast.classify.weighted_metrics import MEASURED, WeightedMetrics
from hdxray_fast.cli.main import main
from hdxray_fast.data.paired import Measured, difference, draw_patients, holm, p_of_draws, units_of_mean, widened

metrics = pytest.importorskip("sklearn.metrics")
pytest.importorskip("pandas")

CLASSES = ("edema", "nodule")


def made_cases(count=160, seed=0, prevalence=(0.4, 0.2)):
    """Two images a patient: names, patients and labels ``[N, 2]``."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 2)) < prevalence).astype(float)
    return [f"xrays/{i:04d}.png" for i in range(count)], [f"p{i // 2}" for i in range(count)], labels


def made_scores(labels, strength, seed, common=1):
    """Probabilities that tell the labels the better, the larger ``strength``; part of their noise is common to all."""
    noise = np.random.default_rng(common).normal(size=labels.shape)
    own = np.random.default_rng(100 + seed).normal(size=labels.shape)
    return 1 / (1 + np.exp(-(strength * (labels - 0.5) + noise + 0.5 * own)))


def write(path, images, scores, labels=None, patients=None, classes=CLASSES, present=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        head = ["image", *(["patient"] if patients else []), *classes, *(["present"] if present else [])]
        writer.writerow(head + ([f"label {name}" for name in classes] if labels is not None else []))
        for i, image in enumerate(images):
            called = "|".join(name for name, score in zip(classes, scores[i], strict=True) if score >= 0.5)
            row = [image, *([patients[i]] if patients else []), *(repr(float(score)) for score in scores[i])]
            row += [called] if present else []
            truth = [] if labels is None else ["" if np.isnan(v) else int(v) for v in labels[i]]
            writer.writerow(row + truth)
    return str(path)


@pytest.fixture
def two(tmp_path):
    """Predictions of a worse and of a better model for the same images, labels and patients with them."""
    images, patients, labels = made_cases()
    for number, (name, strength) in enumerate((("worse", 1.0), ("better", 2.5))):
        scores = made_scores(labels, strength, number)
        write(tmp_path / name / "predictions.csv", images, scores, labels, patients)
    return tmp_path


# Scores and their intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "no-ties"])
def test_weighted_metrics_are_those_of_scikit_learn(digits):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 77)
    score = np.round(rng.random(77) * 0.7 + truth * 0.3, digits)
    called = score >= 0.5
    for weights in (np.ones(77), rng.integers(0, 3, 77).astype(float)):
        given = {"sample_weight": weights}
        expected = {
            "auroc": metrics.roc_auc_score(truth, score, **given),
            "auprc": metrics.average_precision_score(truth, score, **given),
            "sensitivity": metrics.recall_score(truth, called, **given),
            "specificity": metrics.recall_score(1 - truth, ~called, **given),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, called, **given),
            "f1": metrics.f1_score(truth, called, **given),
        }
        found = dict(zip(MEASURED, WeightedMetrics(truth, score, called).measure(weights[None])[0], strict=True))
        for name, value in expected.items():
            assert abs(found[name] - value) < 1e-12, name
        if not (weights == 1).all():
            continue
        report = evaluate_predictions(truth[:, None], score[:, None], ["x"], list(map(str, range(77))), [0.5], 0)
        for name in ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error"):
            assert abs(found[name] - report["classes"]["x"][name]["value"]) < 1e-12, name
    alone = WeightedMetrics(truth, score, called).measure(truth[None].astype(float))
    assert np.isnan(alone).all()  # no negative has any weight
    assert np.isnan(WeightedMetrics(truth, score, None).measure(np.ones((1, 77)))[0, 2:6]).all()


def test_delong_is_its_definition_and_knows_that_images_of_a_patient_are_alike():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 40)
    score = np.round(rng.normal(size=40) + truth, 1)  # ties
    parts = delong_parts(truth, score)
    kernel = (score[truth == 1, None] > score[None, truth == 0]) + (score[truth == 1, None] == score[truth == 0]) / 2
    assert np.allclose(parts[truth == 1], kernel.mean(1))
    assert np.allclose(parts[truth == 0], kernel.mean(0))
    alone = (kernel.mean(1).var(ddof=1) / truth.sum() + kernel.mean(0).var(ddof=1) / (1 - truth).sum()) ** 0.5
    # without clusters what positives and negatives share is nothing: a patient is one or the other
    assert delong_error(truth, parts, list(map(str, range(40)))) == pytest.approx(alone)
    doubled = [np.tile(values, 2) for values in (truth, parts)]
    clusters = list(map(str, range(40))) * 2
    assert delong_error(*doubled, clusters) == pytest.approx(alone)  # the same films again tell nothing new


def test_draws_take_all_images_of_a_patient_and_do_not_depend_on_how_they_are_parted(monkeypatch):
    patients = [f"p{i // 3}" for i in range(30)]
    drawn = np.concatenate(list(draw_patients(patients, 50, 7)))
    assert drawn.shape == (50, 30)
    assert (drawn.reshape(50, 10, 3) == drawn.reshape(50, 10, 3)[:, :, :1]).all()
    assert (drawn.sum(1) == 30).all()
    monkeypatch.setattr("hdxray_fast.data.paired.CHUNK", 200)
    parts = list(draw_patients(patients, 50, 7))
    assert len(parts) > 1
    assert (np.concatenate(parts) == drawn).all()


def test_p_is_the_level_at_which_the_interval_touches_zero():
    rng = np.random.default_rng(0)
    for units in (10, 50, 1000):
        drawn = rng.normal(size=100_000)
        edge = np.percentile(drawn, 100 * widened(0.025, units))
        assert p_of_draws(drawn - edge, -edge, units) == pytest.approx(0.05, rel=0.05)
    assert widened(0.025, 1e9) == pytest.approx(0.025, rel=1e-4)
    assert p_of_draws(np.zeros(100), 0.0, 20) == pytest.approx(1.0, abs=0.02)
    far = p_of_draws(rng.normal(8, 1, 2000), 8.0, 1000)
    assert 0 < far < 1e-10  # no draw is beyond zero, and 1/2000 would be all that draws could tell


def test_holm_is_as_holm_has_it():
    assert holm([0.01, 0.04, 0.03, None, 0.5]) == pytest.approx([0.04, 0.09, 0.09, None, 0.5], abs=1e-12)
    assert holm([]) == []
    assert units_of_mean([1, 1], [10, 10]) == pytest.approx(19)
    assert units_of_mean([1, 0], [10, 500]) == pytest.approx(10)


def test_runs_of_a_model_are_a_sample_of_those_it_could_have_had():
    rng = np.random.default_rng(3)
    patients = rng.normal(0, 0.01, 2000)
    one = Measured(np.array([0.8]), 0.8 + patients[None])
    two = Measured(np.array([0.70, 0.80, 0.90]), np.array([[0.7], [0.8], [0.9]]) + patients)
    row = difference(one, two, 1000)
    assert row["difference"] == pytest.approx(0)
    half = 4.303 * 0.1 / 3**0.5  # Student t with 2 degrees: patients cancel out, the runs' spread is left
    assert row["high"] == pytest.approx(half, rel=0.15)
    assert row["low"] == pytest.approx(-half, rel=0.15)
    both = difference(two, two, 1000)
    assert both["high"] == pytest.approx(2.776 * 0.1 * (2 / 3) ** 0.5, rel=0.15)  # of both: Welch's four degrees
    alike = difference(one, Measured(np.array([0.8, 0.8, 0.8]), 0.8 + np.tile(patients, (3, 1))), 1000)
    assert alike["high"] - alike["low"] < 1e-9


# The comparison -------------------------------------------------------------------------------------------------------


def test_a_comparison_finds_the_better_model_and_agrees_with_delong(two):
    report = hx.compare({"worse": two / "worse", "better": two / "better"}, two / "out", bootstraps=1000)
    (pair,) = report["comparisons"]
    for name in CLASSES:
        row = pair["classes"][name]["auroc"]
        assert row["low"] > 0
        assert row["difference"] == pytest.approx(row["second"] - row["first"])
        assert row["p"] <= row["p_holm"] < 0.05
        for end in ("low", "high"):
            assert row[end] == pytest.approx(row["delong"][end], abs=0.03)
    assert pair["classes"]["edema"]["positive"] + pair["classes"]["edema"]["negative"] == report["images"] == 160
    assert report["patients"] == 80
    assert pair["mean"]["auroc"]["over"] == list(CLASSES)
    assert {path.name for path in (two / "out").iterdir()} == {
        ".made-by", "comparison.json", "comparison.csv", "comparison.md", "forest.png",
    }  # fmt: skip
    assert json.loads((two / "out" / "comparison.json").read_text()) == json.loads(json.dumps(report))
    with (two / "out" / "comparison.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * len(MEASURED)  # two classes and the mean
    first = rows[0]
    assert (first["first"], first["second"], first["class"], first["metric"]) == ("worse", "better", "edema", "auroc")
    exact = pair["classes"]["edema"]["auroc"]
    assert float(first["p_holm"]) == pytest.approx(exact["p_holm"], rel=1e-5)
    assert {name: float(first[name]) for name in ("difference", "low", "high")} == {
        name: float(f"{exact[name]:.6g}") for name in ("difference", "low", "high")
    }
    text = (two / "out" / "comparison.md").read_text()
    assert "better minus worse: AUROC" in text
    assert "what another seed would change" in text


def test_the_other_way_round_is_the_same_with_the_sign_turned(two):
    one = hx.compare([str(two / "worse"), str(two / "better")], bootstraps=200)["comparisons"][0]
    other = hx.compare([str(two / "better"), str(two / "worse")], bootstraps=200)["comparisons"][0]
    for metric in MEASURED:
        there, back = one["classes"]["nodule"][metric], other["classes"]["nodule"][metric]
        assert there["low"] == pytest.approx(-back["high"])
        assert there["p"] == pytest.approx(back["p"])


def test_a_model_is_no_better_than_itself_and_rows_may_come_in_any_order(two):
    lines = (two / "worse" / "predictions.csv").read_text().splitlines()
    (two / "again.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    (pair,) = hx.compare([str(two / "worse"), str(two / "again.csv")], bootstraps=200)["comparisons"]
    assert pair["second"] == "again"
    for metric in MEASURED:
        row = pair["classes"]["edema"][metric]
        assert row["difference"] == 0
        assert row["low"] == row["high"] == 0
        assert row["p"] == pytest.approx(1, abs=0.02)


def test_several_runs_widen_the_interval_by_their_spread(tmp_path):
    images, patients, labels = made_cases()
    strengths = {"a": (1.0, 1.0, 1.0), "b": (0.5, 2.0, 3.5)}
    for name, values in strengths.items():
        for number, strength in enumerate(values):
            scores = made_scores(labels, strength, number)
            write(tmp_path / f"{name}{number}.csv", images, scores, labels, patients)
    words = [f"{name}=" + ",".join(str(tmp_path / f"{name}{i}.csv") for i in range(3)) for name in strengths]
    report = hx.compare(words, bootstraps=400)
    row = report["comparisons"][0]["classes"]["edema"]["auroc"]
    single = hx.compare([str(tmp_path / "a0.csv"), str(tmp_path / "b1.csv")], bootstraps=400)
    alone = single["comparisons"][0]["classes"]["edema"]["auroc"]
    assert row["high"] - row["low"] > 2 * (alone["high"] - alone["low"])
    assert [len(runs) for runs in report["models"].values()] == [3, 3]
    assert not report["notes"]
    assert "one run of a0, b1" in single["notes"][0]


def test_rare_classes_have_no_interval_and_are_not_in_the_mean(tmp_path):
    images, patients, labels = made_cases(seed=4)
    labels[:, 1] = 0
    labels[[0, 1, 2, 10], 1] = 1  # three patients
    for number in range(2):
        write(tmp_path / f"{number}.csv", images, made_scores(labels, 1, number), labels, patients)
    report = hx.compare([str(tmp_path / "0.csv"), str(tmp_path / "1.csv")], tmp_path / "out", bootstraps=200)
    (pair,) = report["comparisons"]
    rare = pair["classes"]["nodule"]
    assert (rare["positive"], rare["positive_patients"], rare["few"]) == (4, 3, "too few")
    assert rare["auroc"]["low"] is rare["auroc"]["p"] is rare["auroc"]["delong"] is None
    assert pair["mean"]["auroc"]["over"] == ["edema"]
    assert pair["mean"]["auroc"]["left_out"] == ["nodule"]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "(too few)" in text
    assert "without nodule" in text


def test_of_classes_that_exclude_each_other_there_is_an_accuracy(tmp_path):
    images, patients, labels = made_cases()
    labels = np.stack([labels[:, 0], 1 - labels[:, 0]], axis=1)
    right = []
    for number, strength in enumerate((0.5, 2.5)):
        scores = made_scores(labels, strength, number)
        scores /= scores.sum(1, keepdims=True)
        right.append((scores.argmax(1) == labels.argmax(1)).mean())
        write(tmp_path / f"{number}.csv", images, scores, labels, patients)
    report = hx.compare([str(tmp_path / "0.csv"), str(tmp_path / "1.csv")], tmp_path / "out", bootstraps=200)
    row = report["comparisons"][0]["mean"]["accuracy"]
    assert [row["first"], row["second"]] == pytest.approx(right)
    assert row["low"] > 0
    assert "1 minus 0: accuracy" in (tmp_path / "out" / "comparison.md").read_text()


def test_labels_and_patients_may_come_from_a_table(tmp_path, two):
    images, patients, labels = made_cases()
    rows = zip(images, patients, labels.astype(int), strict=True)
    table = ["image,patient,edema,nodule"] + [f"{i},{p},{a},{b}" for i, p, (a, b) in rows]
    (tmp_path / "labels.csv").write_text("\n".join([*table, "xrays/more.png,px,1,0"]))
    for number, name in enumerate(("worse", "better")):
        # named from elsewhere, without labels, and all numbers: what predict writes for files on another disk
        scores = made_scores(labels, (1.0, 2.5)[number], number)
        write(tmp_path / f"{name}.csv", [f"/disk/{image}" for image in images], scores)
    names = [str(tmp_path / "worse.csv"), str(tmp_path / "better.csv")]
    with pytest.raises(hx.ConfigError, match=r"data: .*worse\.csv and the others have no labels"):
        hx.compare(names)
    given = hx.compare(names, data=tmp_path / "labels.csv", bootstraps=200)
    own = hx.compare([str(two / "worse"), str(two / "better")], bootstraps=200)
    assert given["comparisons"] == own["comparisons"]


def test_without_decisions_or_patients_that_is_said(tmp_path):
    images, _, labels = made_cases()
    for number in range(2):
        write(tmp_path / f"{number}.csv", images, made_scores(labels, 1, number), labels, present=False)
    report = hx.compare([str(tmp_path / "0.csv"), str(tmp_path / "1.csv")], bootstraps=100)
    assert (report["images"], report["patients"]) == (160, None)  # each counts as a patient of its own
    assert any("every image counts as a patient" in note for note in report["notes"])
    assert any("no column 'present'" in note for note in report["notes"])
    assert report["comparisons"][0]["classes"]["edema"]["f1"] is None
    assert report["comparisons"][0]["mean"]["f1"] is None


# Refusals -------------------------------------------------------------------------------------------------------------


def test_what_is_not_of_the_same_cases_is_refused_by_name(tmp_path, two):
    images, patients, labels = made_cases()
    scores = made_scores(labels, 1, 0)
    worse = str(two / "worse")

    def refused(match, **changes):
        given = {"images": images, "scores": scores, "labels": labels, "patients": patients, **changes}
        write(tmp_path / "other.csv", **given)
        with pytest.raises(hx.ConfigError, match=match):
            hx.compare([worse, str(tmp_path / "other.csv")], tmp_path / "none")

    fewer = {"images": images[1:], "scores": scores[1:], "labels": labels[1:], "patients": patients[1:]}
    refused(r"1 images of .*worse.* are not in .*other\.csv, the first is xrays/0000\.png", **fewer)
    more = {"images": [*images, "new.png"], "patients": [*patients, "q"]}
    more |= {"scores": np.vstack([scores, scores[:1]]), "labels": np.vstack([labels, labels[:1]])}
    refused(r"1 images of .*other\.csv are not in .*worse", **more)
    turned = labels.copy()
    turned[3, 1] = 1 - turned[3, 1]
    refused(r"other\.csv has other labels than .*for 1 of 160 images, the first is xrays/0003\.png", labels=turned)
    unknown = labels.copy()
    unknown[5, 0] = np.nan
    refused("other labels than", labels=unknown)
    refused("other patients than", patients=[*patients[:-1], "q"])
    refused("rows 2 and 3 name one image", images=[images[0], *images[:-1]])
    refused("no class is in all of them: .*edema, nodule; .*fracture, mass", classes=("fracture", "mass"))
    wrong = scores.copy()
    wrong[7, 0] = 1.5
    refused(r"other\.csv, row 9, column 'edema': no probability", scores=wrong)
    assert not list((tmp_path / "none").iterdir())  # nothing was written


@pytest.mark.parametrize(
    ("models", "match"),
    [
        (["a.csv"], "got 1, needed are two"),
        (["x=a.csv", "x=b.csv"], "two are named 'x'"),
        (["x=a.csv", "y=a.csv"], "is given twice"),
        (["x=", "y=a.csv"], "x has no run"),
        (["nowhere", "a.csv"], "nowhere does not exist"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(models, match):
    with pytest.raises(hx.ConfigError, match=match):
        hx.compare(models)


def test_a_class_that_one_model_lacks_is_left_out_and_said(tmp_path, two):
    images, patients, labels = made_cases()
    write(tmp_path / "one.csv", images, made_scores(labels, 1, 0)[:, :1], labels[:, :1], patients, classes=("edema",))
    report = hx.compare([str(two / "worse"), str(tmp_path / "one.csv")], bootstraps=100)
    assert list(report["comparisons"][0]["classes"]) == ["edema"]
    assert "not compared, since not all models have them: nodule" in report["notes"]
    with pytest.raises(hx.ConfigError, match=r"classes: .*one\.csv has no 'nodule'"):
        hx.compare([str(two / "worse"), str(tmp_path / "one.csv")], classes=["nodule"])


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_compares_and_prints(two, capsys):
    words = ["compare", str(two / "worse"), f"good={two / 'better'}", "--out", str(two / "out"), "--bootstraps", "200"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "good minus worse: AUROC" in told
    assert "80 patients" in told
    assert (two / "out" / "forest.png").is_file()
    assert main(["compare", str(two / "worse"), "--out", str(two / "out")]) == 2
    assert "needed are two or more" in capsys.readouterr().err


def test_a_model_is_evaluated_against_another(tmp_path, monkeypatch, capsys):
    """Two small classifiers on drawn images: what one of them gets wrong is paired with what the other does."""
    torch = pytest.importorskip("torch")
    cv2 = pytest.importorskip("cv2")
    from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
    from hdxray_fast.data import radiographs
    from hdxray_fast.images.contour import find_contour

    monkeypatch.setattr(radiographs, "find_contour", lambda canvas, method, **given: find_contour(canvas, "rectangle"))
    rng = np.random.default_rng(0)
    lines = ["image,Fall,bright light"]  # columns that have to be named reach the comparison too
    for i in range(40):
        image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
        image[20:40, 20:44] += np.uint8(80 * (i % 2))
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        lines.append(f"{i}.png,p{i // 2},{i % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3)
        model = Classifier(encoder, ClassifierConfig(["bright"], head="linear", pool="mean"))
        model.config.thresholds = [0.5]
        torch.nn.init.normal_(model.head.fc.weight)
        save_classifier(model, tmp_path / f"model{seed}")
    words = ["evaluate", "--data", str(tmp_path / "labels.csv"), "--split", "all", "--out", str(tmp_path / "out")]
    words += ["--workers", "0", "--bootstraps", "20", "--model", str(tmp_path / "model1")]
    words += ["--patient-column", "Fall", "--rename", "bright light=bright"]
    assert main([*words, "--against", str(tmp_path / "model2")]) == 0
    assert "model minus against: AUROC" in capsys.readouterr().out
    before = (tmp_path / "out" / "predictions.csv").stat().st_mtime_ns
    assert main([*words, "--against", str(tmp_path / "model1")]) == 2
    assert "out/against holds an evaluation of another model" in capsys.readouterr().err
    assert (tmp_path / "out" / "predictions.csv").stat().st_mtime_ns == before  # nor was the first made anew
    report = json.loads((tmp_path / "out" / "comparison" / "comparison.json").read_text())
    assert report["patients"] == 20  # of the table: two images each
    row = report["comparisons"][0]["classes"]["bright"]["auroc"]
    for side, folder in (("second", "out"), ("first", "out/against")):
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert row[side] == pytest.approx(metrics["classes"]["bright"]["auroc"]["value"], abs=1e-3)
    words[6] = str(tmp_path / "other")
    assert main([*words, "--against", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "other").exists()  # known before anything was computed


def test_nothing_to_compare_is_said(tmp_path, capsys):
    from hdxray_fast.cli.main import main

    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(
            "image,patient,mass,present,label mass\n" + "".join(f"{n}.png,p{n},0.{n + 1},mass,1\n" for n in range(6))
        )
    words = ["compare", *(str(tmp_path / f"{name}.csv") for name in ("one", "two")), "--out", str(tmp_path / "out")]
    assert main([*words, "--bootstraps", "50"]) == 0
    told = capsys.readouterr().out
    assert "nothing to compare: no class has both positives and negatives" in told
    assert "comparison.json, and no plot, since nothing was compared, are in" in told
