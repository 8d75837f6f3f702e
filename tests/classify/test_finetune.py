"""Fine-tuning: it learns, chooses on validation, tests once, survives being killed, and fails by name."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from killed_runs import Killed, killed_at
from recorded_graph import RecordedGraphs, attention_as_on_a_gpu

import hdxray_fast as hx
from hdxray_fast.classify import predictions
from hdxray_fast.classify.classifier import load_classifier
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.evaluation import evaluate_files, predict
from hdxray_fast.classify.finetune import describe_finetuning, run_finetuning
from hdxray_fast.classify.heads import build_head
from hdxray_fast.classify.task import FinetuneTask
from hdxray_fast.cli.classify import add_commands
from hdxray_fast.cli.main import main
from hdxray_fast.data.seen_key import KEY_FILE
from hdxray_fast.errors import ConfigError
from hdxray_fast.models import layers
from hdxray_fast.training import graphs, loop

for package in ("accelerate", "sklearn", "pandas", "matplotlib", "pyarrow"):
    pytest.importorskip(package)


def split_of(patient: int) -> str:
    return "train" if patient < 18 else "val" if patient < 24 else "test"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images with a bright square above or below and left or right, two to a patient; and weights to start from."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["image,patient,split,high,right"]
    for i in range(60):
        image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
        high, right = int(rng.integers(2)), int(rng.integers(2))
        top, left = 4 if high else 40, 40 if right else 6
        image[top : top + 18, left : left + 18] = rng.integers(180, 250)
        assert cv2.imwrite(str(root / f"{i}.png"), image)
        lines.append(f"{i}.png,p{i // 2},{split_of(i // 2)},{high},{right}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(1)
    small = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
    hx.save_model(hx.create_encoder("vit_tiny_patch16", **small), root / "weights")
    return root


def config(data, out, **changes) -> FinetuneConfig:
    options = {
        "weights": str(data / "weights"),
        "contour": "rectangle",
        "epochs": 25,
        "batch_size": 6,
        "lr": 6e-3,
        "augment": "none",
        "bootstraps": 20,
        "workers": 0,
        "threads": 1,
        "text": "none",
        "tensorboard": False,
        "cache": str(data / "cache"),
        **changes,
    }
    return FinetuneConfig(data=str(data / "labels.csv"), out=str(out), **options)


def finetune(data, out, **changes):
    return run_finetuning(config(data, out, **changes), progress=False)


@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_every_head_learns_and_everything_is_written(data, tmp_path, head, capsys):
    (result,) = finetune(data, tmp_path / "run", head=head, keep="contour" if head == "attention" else None)
    assert result.finished
    assert result.report["mean"]["auroc"]["value"] > 0.85
    out = tmp_path / "run"
    for name in ("log.jsonl", "predictions.csv", "curves.png", "model/classifier.json"):
        assert (out / name).exists(), name
    assert not (out / "unreadable.csv").exists()  # there is nothing to list
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["mean"] == result.report["mean"]
    assert saved["train_images"] == 36
    assert "weights" in saved["config"] and "model" not in saved["config"]  # the default, which is not what was trained
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    scores = {line["step"]: line["val_auroc"] for line in lines if "val_auroc" in line}
    assert len(scores) == 25
    assert saved["chosen_on_validation"]["auroc"] == max(scores.values())
    assert scores[saved["chosen_on_validation"]["step"]] == max(scores.values())
    assert "chosen on validation" in describe_finetuning(config(data, out, head=head), [result])

    # the saved model gives on files what was reported
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    found = predict([row["image"] for row in rows], out / "model", batch_size=3)
    written = np.array([[float(row["high"]), float(row["right"])] for row in rows])
    np.testing.assert_allclose(found.probabilities, written, atol=1e-4)
    assert found.thresholds == [saved["classes"][name]["threshold"] for name in ("high", "right")]
    assert [row["view"] for row in rows] == found.views


def test_nothing_of_test_is_looked_at_before_the_end(data, tmp_path):
    """Other test images and labels: the same model, step for step."""
    first = finetune(data, tmp_path / "a", epochs=3)[0]
    lines = (data / "labels.csv").read_text().splitlines()
    changed = [line[:-1] + str(1 - int(line[-1])) if ",test," in line else line for line in lines]
    (data / "other.csv").write_text("\n".join(changed) + "\n")
    other = FinetuneConfig(**{**config(data, tmp_path / "b", epochs=3).as_dict(), "data": str(data / "other.csv")})
    second = run_finetuning(other, progress=False)[0]
    assert first.best == second.best
    one, two = (load_classifier(tmp_path / name / "model") for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.config.thresholds == two.config.thresholds
    assert first.report["classes"]["right"] != second.report["classes"]["right"]


def test_exclusive_classes_end_to_end(data, tmp_path):
    names = {(0, 0): "low left", (0, 1): "low right", (1, 0): "high left", (1, 1): "high right"}
    with (data / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = ["image,patient,split,label"]
    lines += [f"{r['image']},{r['patient']},{r['split']},{names[int(r['high']), int(r['right'])]}" for r in rows]
    (data / "exclusive.csv").write_text("\n".join(lines) + "\n")
    settings = config(data, tmp_path / "run", multiclass=True, class_weight="balanced", epochs=30).as_dict()
    (result,) = run_finetuning(FinetuneConfig(**{**settings, "data": str(data / "exclusive.csv")}), progress=False)
    assert set(result.report["classes"]) == set(names.values())
    assert result.report["mean"]["auroc"]["value"] > 0.8
    found = predict(data / "0.png", tmp_path / "run" / "model")
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    options = {"data": data / "exclusive.csv", "bootstraps": 20, "progress": False}
    again = evaluate_files(tmp_path / "run" / "model", out=tmp_path / "again", **options)
    assert again["mean"]["auroc"] == result.report["mean"]["auroc"]
    with (tmp_path / "again" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    scores = np.array([[float(row[name]) for name in again["classes"]] for row in rows])
    truth = np.array([[row[f"label {name}"] == "1" for name in again["classes"]] for row in rows])
    right = scores.argmax(1) == truth.argmax(1)
    assert again["decisions"] == result.report["decisions"]  # of the most probable class, and of no threshold
    assert again["decisions"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert again["mean"]["f1"] == again["decisions"]["macro_f1"]
    scaled = result.report["temperature"]
    assert scaled["value"] == load_classifier(tmp_path / "run" / "model").config.temperature != 1
    assert scaled["reason"] == ""
    after = result.report["decisions"]["calibration_error"]["value"]
    assert scaled["test"]["after"]["calibration_error"] == pytest.approx(after, abs=1e-6)
    assert "threshold" not in again["classes"]["low left"]
    wrong = not right.all()
    assert (tmp_path / "again" / "errors.png").exists() == wrong


def test_all_the_settings_together(data, tmp_path):
    """EMA, mixup, RandAugment, drop-path, accumulation, gradient checkpointing, class weights, a frozen encoder."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # one process keeps one precision
    common = {"epochs": 2, "ema": 0.5, "mixup": 0.4, "augment": "rand", "grad_accum": 2, "batch_size": 4}
    more = {"drop_path": 0.3, "checkpoint_activations": True, "class_weight": "balanced", "keep": "contour"}
    (result,) = finetune(data, tmp_path / "all", precision="bf16", select="loss", **common, **more)
    assert result.finished
    assert (tmp_path / "all" / "metrics.json").exists()
    AcceleratorState._reset_state()
    (frozen,) = finetune(data, tmp_path / "frozen", head="attention", tune="head", augment="mild", epochs=2)
    assert frozen.finished
    before = hx.create_encoder(weights=data / "weights")
    after = load_classifier(tmp_path / "frozen" / "model").encoder
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name


def test_grad_checkpointing_and_accumulation_change_no_gradient(data, tmp_path):
    plain = finetune(data, tmp_path / "plain", epochs=2, drop_path=0.0)[0]
    both = finetune(
        data, tmp_path / "both", epochs=2, drop_path=0.0, checkpoint_activations=True, batch_size=3, grad_accum=2
    )[0]
    assert both.best["step"] == plain.best["step"]
    assert both.best["loss"] == pytest.approx(plain.best["loss"], abs=1e-4)


RECORDED = {
    "all patches": {"keep": "all", "head": "linear", "class_weight": "balanced"},
    "a query on all patches": {"keep": "all", "head": "attention"},
    "the contour": {"keep": "contour", "head": "attention"},
    "mixup": {"keep": "contour", "head": "label-query", "mixup": 0.4},
    "a frozen encoder": {"keep": "valid", "head": "attention", "tune": "head"},
}


@pytest.mark.parametrize("name", RECORDED)
def test_nothing_in_a_step_looks_at_a_value(data, tmp_path, monkeypatch, name):
    """Steps are recorded by a stand-in for CUDA graphs, to which waiting is an error, and replayed."""
    options = {"steps": 10, "eval_every": 5, "ema": 0.9, "grad_accum": 2, "batch_size": 4, "drop_path": 0.3}
    options |= {"augment": "mild", "lr": 1e-3, **RECORDED[name]}
    finetune(data, tmp_path / "now", **options)
    made = []
    monkeypatch.setattr(layers, "attention", attention_as_on_a_gpu)
    monkeypatch.setattr(loop, "graphs_for", lambda device: made.append(RecordedGraphs(device)) or made[-1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be recorded")
        finetune(data, tmp_path / "recorded", **options)
    assert made[0].recorded >= 1
    assert made[0].replayed >= 5
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("now", "recorded")
    ]
    now, recorded = ([line["loss"] for line in log] for log in logs)
    assert recorded == pytest.approx(now, rel=5e-3)  # rounded by sizes, sums are of another order
    for number in ("lr", "unreadable"):
        assert [line[number] for line in logs[0]] == [line[number] for line in logs[1]]
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 0)
    finetune(data, tmp_path / "unrecorded", **options)
    assert made[-1].recorded == 0
    lines = (tmp_path / "unrecorded" / "log.jsonl").read_text().splitlines()
    assert recorded == [json.loads(line)["loss"] for line in lines]  # to the bit


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_mild_augmentation_is_a_view(data, tmp_path, monkeypatch, keep):
    """No image is moved on the CPU; the losses are those of images that are, but for the rounding of places."""
    # not per image: a view is standardised over the radiograph, pixels over its patches, padding in them included
    fixed = hx.create_encoder(weights=data / "weights", normalisation=(0.5, 0.25))
    options = {"augment": "mild", "keep": keep, "steps": 6, "eval_every": 6, "drop_path": 0.2, "lr": 1e-3}
    options["weights"] = str(hx.save_model(fixed, tmp_path / "fixed"))

    def losses(name, **changes):
        finetune(data, tmp_path / name, **options, **changes)
        return [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    moved = []
    warp = cv2.warpAffine
    monkeypatch.setattr(cv2, "warpAffine", lambda *args, **kwargs: moved.append(1) or warp(*args, **kwargs))
    seen = losses("seen")
    assert not moved
    assert losses("in workers", workers=1) == seen
    whole = FinetuneTask.__init__

    def without_views(self, *args):
        whole(self, *args)
        self.views = False

    monkeypatch.setattr(FinetuneTask, "__init__", without_views)
    assert losses("moved") == pytest.approx(seen, rel=1e-3)
    assert moved


def test_mixup_of_mildly_augmented_images_says_that_they_are_moved(data, tmp_path, capsys):
    settings = config(data, tmp_path / "mixed", augment="mild", mixup=0.4, epochs=1)
    run_finetuning(settings, progress=True)
    assert "augment mild: mixup mixes pixels" in capsys.readouterr().err
    run_finetuning(config(data, tmp_path / "plain", augment="mild", epochs=1), progress=True)
    assert "mixup mixes" not in capsys.readouterr().err


def test_label_fractions_and_seeds_make_a_table(data, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["finetune", "--data", str(data / "labels.csv"), "--weights", str(data / "weights"), "--out", str(out)]
    arguments += ["--label-fractions", "0.3", "1", "--seeds", "0", "1", "--epochs", "2", "--contour", "rectangle"]
    arguments += ["--workers", "0", "--threads", "1", "--bootstraps", "5", "--tensorboard", "false"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| 0.3 |" in printed
    table = (out / "table.md").read_text()
    assert [line[:1] for line in table.splitlines()] == ["|", "|", "|", "|", "", "T"]
    assert table.splitlines()[-1] == "The mean is over all classes: high, right."
    found = json.loads((out / "results.json").read_text())
    assert [row["seed"] for row in found["0.3"]] == [0, 1]
    assert all(row["train_images"] == 36 for row in found["1"])
    assert all(row["train_images"] < 20 for row in found["0.3"])
    for row in found["0.3"]:
        counts = row["label_fraction"]
        assert counts["taken"] == counts["asked"] + sum(counts["added"].values()) <= row["train_images"]
    assert "| labels | patients asked | taken | added for | training images |" in table
    values = [row["auroc"]["value"] for row in found["1"]]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in table
    assert cv2.imread(str(out / "fractions.png")).std() > 5
    # again: runs that are whole are read, none is trained
    written = (out / "fraction_1" / "seed_1" / "best.safetensors").stat().st_mtime_ns
    assert main([*arguments, "--resume", "auto"]) == 0
    assert (out / "fraction_1" / "seed_1" / "best.safetensors").stat().st_mtime_ns == written
    assert (out / "table.md").read_text() == table
    assert main([*arguments, "--resume", "never"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_frozen_linear_head_is_the_probe_on_features_computed_once(data, tmp_path):
    options = {"tune": "head", "head": "linear", "label_fractions": [0.5, 1.0], "batch_size": 4}
    results = finetune(data, tmp_path / "probe", **options)
    assert [result.finished for result in results] == [True, True]
    assert (tmp_path / "probe" / "features.parquet").exists()
    assert not list((tmp_path / "probe").glob("fraction_*/**/features.parquet"))
    assert load_classifier(tmp_path / "probe" / "fraction_1" / "seed_0" / "model").config.head == "probe"


def test_a_probe_says_which_settings_have_no_effect_and_keeps_the_others(data, tmp_path):
    settings = {"tune": "head", "head": "linear", "batch_size": 4, "mixup": 0.2, "precision": "bf16"}
    settings |= {"keep": "contour", "contour": "prior"}
    with pytest.warns(UserWarning, match="tune=head .* takes no steps: .*mixup.* have no effect"):
        finetune(data, tmp_path / "probe", **settings)
    told = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    assert told["precision"] == "bf16"
    encoder = load_classifier(tmp_path / "probe" / "model").encoder
    assert (encoder.keep, encoder.contour) == ("contour", "prior")


@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_half_precision_is_tested_as_it_was_trained_and_makes_no_images_tie(data, tmp_path, head):
    (result,) = finetune(data, tmp_path / "run", head=head, precision="bf16", epochs=3)
    options = {"split": "test", "precision": "bf16", "bootstraps": 20, "progress": False, "batch_size": 6}
    report = evaluate_files(tmp_path / "run", data / "labels.csv", tmp_path / "again", **options)
    assert report["mean"]["auroc"] == pytest.approx(result.report["mean"]["auroc"])
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = np.array([float(row["high"]) for row in rows])
    rounded = torch.from_numpy(values).bfloat16().double().numpy()
    assert not np.array_equal(values, rounded)


@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_the_last_layer_is_of_full_precision(head):
    layer = build_head(head, 8, ["a", "b"], 2).fc
    torch.nn.init.normal_(layer.weight)
    features = torch.linspace(1, 1.01, 200)[:, None].expand(-1, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(features)
    assert found.dtype == torch.float32
    assert len(found[:, 0].unique()) > 100
    assert torch.equal(found, layer(features))


def test_a_run_killed_among_its_last_pictures_still_makes_them(data, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "write_error_sheet", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(data, tmp_path, epochs=1)
    (result,) = finetune(data, tmp_path, epochs=1, resume="auto")
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: saved[name] for name in result.report} == result.report
    assert cv2.imread(str(tmp_path / "errors.png")) is not None
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != KEY_FILE]
    assert len({path.stat().st_mode for path in files}) == 1  # colleagues may read all of it, or none, but for the key


@pytest.mark.parametrize("drawn", [{"augment": "rand", "mixup": 0.3}, {"augment": "mild"}])
def test_a_killed_run_goes_on_as_if_nothing_had_been(data, tmp_path, drawn):
    settings = {"epochs": 4, "drop_path": 0.2, "ema": 0.9, "save_every": 4, **drawn}
    whole = finetune(data, tmp_path / "whole", **settings)[0]
    run = config(data, tmp_path / "cut", **settings)
    with pytest.raises(Killed):
        run_finetuning(run, progress=False, on_step=killed_at(14))  # between two checkpoints, and after a validation
    again = run_finetuning(FinetuneConfig(**{**run.as_dict(), "resume": "auto"}), progress=False)[0]
    assert again.best == whole.best
    assert again.report == whole.report
    logs = [[json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_resume_refuses_what_changed_since(data, tmp_path):
    """The pixels under a name, a label, or the settings of the encoder, each named."""
    root = tmp_path / "data"
    shutil.copytree(data, root, ignore=shutil.ignore_patterns("cache"))
    run = config(root, tmp_path / "run", epochs=2, save_every=2)
    with pytest.raises(Killed):
        run_finetuning(run, progress=False, on_step=killed_at(4))
    again = FinetuneConfig(**{**run.as_dict(), "resume": "auto"})

    def refused(path, content, message):
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(hx.ConfigError, match=message):
            run_finetuning(again, progress=False)
        path.write_bytes(before)

    other = r"^data: these are other readable images \(1 changed, such as .*/7\.png\) than when the run in"
    refused(root / "7.png", (root / "8.png").read_bytes(), other)
    lines = (root / "labels.csv").read_text().splitlines()
    assert lines[4].startswith("3.png,p1,train,")
    lines[4] = lines[4][:-1] + str(1 - int(lines[4][-1]))
    other = r"^data: these are other labels or splits \(1 changed, such as .*/3\.png\) than"
    refused(root / "labels.csv", "\n".join(lines).encode(), other)
    settings = (root / "weights" / "config.json").read_text()
    assert '"margin": 1' in settings
    other = r"^weights: these are other weights \(1 changed, such as the settings of the encoder\) than"
    refused(root / "weights" / "config.json", settings.replace('"margin": 1', '"margin": 2').encode(), other)
    (result,) = run_finetuning(again, progress=False)
    assert result.finished
    other = (
        "other images, labels or splits than those .* which is finished"  # its numbers are not those of other labels
    )
    refused(root / "labels.csv", "\n".join(lines).encode(), other)
    finished = run_finetuning(again, progress=False)[0].report
    assert finished == {name: result.report[name] for name in finished}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_leaves_a_run_to_go_on_with(data, tmp_path):
    run = config(data, tmp_path / "run", epochs=3)
    seen = []

    def stop(line):
        seen.append(line["step"])
        if line["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    (result,) = run_finetuning(run, progress=False, on_step=stop)
    assert not result.finished
    assert seen[-1] in (5, 6)
    assert "the same command goes on" in describe_finetuning(run, [result])
    assert not (tmp_path / "run" / "metrics.json").exists()
    (result,) = run_finetuning(FinetuneConfig(**{**run.as_dict(), "resume": "auto"}), progress=False)
    assert result.finished


@pytest.fixture(scope="module")
def two_epochs(data, tmp_path_factory):
    """Of a run that nothing stops."""
    return finetune(data, tmp_path_factory.mktemp("whole") / "run", epochs=2)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_saves_first(data, two_epochs, tmp_path, workers, capsys, request):
    run = config(data, tmp_path / "run", epochs=2, workers=workers)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def stop(line):
        if line["step"] == 5:
            for child in multiprocessing.active_children():  # a terminal tells the readers too
                os.kill(child.pid, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_finetuning(run, progress=False, on_step=stop)
    said = capsys.readouterr()
    assert "Ctrl-C again ends at once" in said.err
    assert f"saved: {tmp_path / 'run'}" in said.err
    assert (tmp_path / "run" / "checkpoints" / "step_00000005").exists()
    (result,) = run_finetuning(FinetuneConfig(**{**run.as_dict(), "resume": "auto"}), progress=False)
    assert (result.finished, result.report) == (True, two_epochs.report)
    if workers:  # those that inherit it, too
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        again = config(data, tmp_path / "ignored", epochs=2, workers=workers)
        assert run_finetuning(again, progress=False, on_step=stop)[0].finished


def test_unreadable_images_are_set_aside_up_to_a_share(data, tmp_path):
    lines = (data / "labels.csv").read_text().splitlines()
    root = tmp_path / "data"
    root.mkdir()
    for path in data.glob("*.png"):
        (root / path.name).write_bytes(path.read_bytes())
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "3.png").write_bytes(b"\x89PNG cut short")
    (root / "5.png").unlink()

    def run(out, **changes):
        made = config(data, tmp_path / out, epochs=2, cache=str(tmp_path / out / "cache"), **changes).as_dict()
        return FinetuneConfig(**{**made, "data": str(root / "labels.csv")})

    (result,) = run_finetuning(run("some"), progress=False)
    assert (result.left_out, result.train_images) == (2, 34)
    listed = (tmp_path / "some" / "unreadable.csv").read_text()
    assert "3.png" in listed
    assert "5.png" in listed
    with pytest.raises(hx.TrainingError, match=r"2 of 60 images cannot be read, more than max_bad_share=0.02"):
        run_finetuning(run("few", max_bad_share=0.02), progress=False)
    assert not (tmp_path / "few" / "log.jsonl").exists()

    # one that goes while training: the disk loses the cache and the file
    def lose(line):
        if line["step"] == 2:
            shutil.rmtree(tmp_path / "later" / "cache")
            (root / "7.png").unlink()

    (result,) = run_finetuning(run("later"), progress=False, on_step=lose)
    assert result.finished
    assert result.left_out == 3
    last = (tmp_path / "later" / "unreadable.csv").read_text().splitlines()[-1]
    assert "7.png,ImageReadError," in last
    assert sum(json.loads(line)["unreadable"] for line in (tmp_path / "later" / "log.jsonl").open()) >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [line.replace("image,", "picture,") for line in lines], "has no column of images"),
        (lambda lines: [lines[0], *[line[:-1] + "nan" for line in lines[1:]]], "column 'right' holds 'nan'"),
        (lambda lines: [lines[0], *[line[:-1] + ("1" if "p1," in line else "0") for line in lines[1:]]], None),
        (lambda lines: [lines[0], *[line[:-1] + ("1" if line.startswith("4.") else "0") for line in lines[1:]]],
         "'right' has 1 positive"),
        (lambda lines: [*lines[:-1], lines[-1].replace("p29", "p0")], r"row 2 .* and row \d+ .* are of one patient"),
    ],
)  # fmt: skip
def test_bad_manifests_are_named_before_anything_is_written(data, tmp_path, change, message):
    lines = (data / "labels.csv").read_text().splitlines()
    (data / "bad.csv").write_text("\n".join(change(lines)) + "\n")
    settings = {**config(data, tmp_path / "run", epochs=1).as_dict(), "data": str(data / "bad.csv")}
    if message is None:  # two positives of one patient are enough to learn from
        assert run_finetuning(FinetuneConfig(**settings), progress=False)[0].finished
        return
    with pytest.raises(hx.ConfigError, match=message):
        run_finetuning(FinetuneConfig(**settings), progress=False)
    assert not (tmp_path / "run").exists()


def test_two_fine_tunings_never_share_a_folder(data, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    held = FileLock(tmp_path / "run" / ".run.lock")
    with held, pytest.raises(hx.ConfigError, match=r"out: another run is at work in .*run; wait for its end"):
        finetune(data, tmp_path / "run", epochs=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".run.lock"]


def test_the_list_of_bad_files_is_written_once(data, tmp_path, monkeypatch):
    from hdxray_fast.classify import data as labelled
    from hdxray_fast.training import run_images

    write, written = run_images.write_quarantine, []

    def noted(path, rows):
        written.append([getattr(row, "path", row[0] if isinstance(row, tuple) else None) for row in rows])
        write(path, rows)

    for module in (labelled, run_images):
        monkeypatch.setattr(module, "write_quarantine", noted)
    (tmp_path / "images").mkdir()
    for path in data.glob("*.png"):
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    settings = {"epochs": 1, "images": str(tmp_path / "images"), "cache": str(tmp_path / "cache")}
    finetune(data, tmp_path / "run", **settings)
    assert written == [[str(tmp_path / "images" / "3.png")]]
    assert "3.png" in (tmp_path / "run" / "unreadable.csv").read_text()


def test_logits_that_are_no_numbers_choose_no_model(data, tmp_path, monkeypatch, capsys):
    """Those of one image, in one validation: the run goes on, and says so."""
    from hdxray_fast.classify import task

    predict_rows, calls = task.predict_rows, iter(range(100))

    def poisoned(*arguments, **options):
        rows, logits = predict_rows(*arguments, **options)
        if next(calls) == 1:
            logits[2, 0] = np.nan
        return rows, logits

    monkeypatch.setattr(task, "predict_rows", poisoned)
    (result,) = finetune(data, tmp_path / "run", epochs=2, eval_every=4)
    assert result.finished
    said = "warning: step 8: the logits of 1 of 12 validation images are not finite (the first is "
    assert said in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 12]
    assert result.best["step"] in (4, 12)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_prepared_data_set_is_read_in_the_place_of_files(data, tmp_path, bits):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pebble")
    from hdxray_fast.data.prepared.config import PrepareConfig
    from hdxray_fast.data.prepared.run import run_prepare

    sources = [str(data / f"{i}.png") for i in range(60) if i != 3]
    prepared = tmp_path / "prepared"
    settings = {"img_size": 64, "bits": bits, "contour": "rectangle", "workers": 1}
    run_prepare(PrepareConfig(sources=sources, out=str(prepared), **settings), progress=False)
    options = {"epochs": 2, "augment": "rand", "keep": "contour", "prepared": str(prepared)}
    (result,) = finetune(data, tmp_path / "run", **options)
    assert (result.train_images, result.left_out) == (35, 1)
    assert "3.png,NotPrepared" in (tmp_path / "run" / "unreadable.csv").read_text()
    assert not (tmp_path / "run" / "cache").exists()
    with (tmp_path / "run" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = predict([row["image"] for row in rows], tmp_path / "run" / "model")
    written = np.array([[float(row["high"]), float(row["right"])] for row in rows])
    np.testing.assert_allclose(found.probabilities, written, atol=1e-3)
    with pytest.raises(hx.ConfigError, match=r"^img_size: .* was prepared with 64"):
        finetune(data, tmp_path / "other", **options, img_size=128)


def test_the_same_pixels_in_two_splits_are_refused(data, tmp_path):
    (data / "copy.png").write_bytes((data / "0.png").read_bytes())
    (data / "twice.csv").write_text((data / "labels.csv").read_text() + "copy.png,new,test,0,1\n")
    settings = {**config(data, tmp_path / "run").as_dict(), "data": str(data / "twice.csv")}
    with pytest.raises(hx.ConfigError, match="hold the same pixels"):
        run_finetuning(FinetuneConfig(**settings), progress=False)
    (data / "copy.png").unlink()


def test_balance_and_missing_files_are_told_first(data, tmp_path, capsys):
    (data / "lacking.csv").write_text((data / "labels.csv").read_text() + "gone.png,new,train,0,1\n")
    settings = {**config(data, tmp_path / "run", epochs=1).as_dict(), "data": str(data / "lacking.csv")}
    run_finetuning(FinetuneConfig(**settings))
    told = capsys.readouterr().err
    assert "37 images, 19 patients" in told
    assert "1 of these 61 images is missing and left out of what follows, the first is" in told
    shown = (tmp_path / "run" / "report.html").read_text()
    assert (
        "1 of these 61 images is missing and left out of what follows, the first is" in shown
        and "warning: test is too small" in told
    )
    assert shown.index("Test is too small") < shown.index("<h2>")
    assert told.index("37 images") < told.index("radiographs ready")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_fractions": [0.0]}, r"^label_fractions: 0.0"),
        ({"label_fractions": []}, r"^label_fractions: \[\]"),
        ({"seeds": [1, 1]}, r"^seeds: "),
        ({"layer_decay": 0.0}, r"^layer_decay: "),
        ({"drop_path": 1.0}, r"^drop_path: "),
        ({"epochs": 0}, r"^epochs: "),
        ({"augment_operations": 99}, r"^augment_operations: "),
        ({"mixup": 0.2, "batch_size": 1}, r"^mixup: "),
        ({"max_bad_share": 2}, r"^max_bad_share: "),
    ],
)
def test_bad_settings_are_named(data, tmp_path, changes, message):
    with pytest.raises(hx.ConfigError, match=message):
        config(data, tmp_path / "out", **changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("head", ["linear", "attention", "label-query"])
def test_half_precision_on_a_gpu(data, tmp_path, precision, head):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    (result,) = finetune(data, tmp_path / "run", precision=precision, head=head, keep="contour")
    AcceleratorState._reset_state()
    assert result.report["mean"]["auroc"]["value"] > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECORDED)
def test_a_run_recorded_on_a_gpu_is_the_run(data, tmp_path, monkeypatch, name):
    recorded, record = [], graphs.CudaGraphs.record
    monkeypatch.setattr(graphs.CudaGraphs, "record", lambda self, work: recorded.append(1) or record(self, work))
    options = {"steps": 16, "eval_every": 8, "batch_size": 4, "drop_path": 0.3, "augment": "mild", "lr": 1e-3}
    options |= {"precision": "fp32", "compile": "off", **RECORDED[name]}
    losses = []
    for graph in ("auto", "off"):
        finetune(data, tmp_path / graph, graph=graph, **options)
        losses.append([json.loads(line)["loss"] for line in (tmp_path / graph / "log.jsonl").open()])
        assert recorded
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_fp16_needs_a_gpu(data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(hx.ConfigError, match=r"^precision: fp16 needs a GPU"):
        finetune(data, tmp_path / "run", precision="fp16")


def test_several_values_on_the_command_line():
    from hdxray_fast.cli.parser import CommandParser, command_words, join_lists, tidy

    words = ["finetune", "--seeds", "0", "1", "--classes", "Lung Opacity", "it's", "--out", "x", "--seeds", "[3]"]
    parser = CommandParser()
    add_commands(parser.add_subcommands(required=True, dest="command"), CommandParser)
    tidy(parser)
    assert join_lists(command_words(parser, words)[1], words) == [
        "finetune", "--seeds", "[0, 1]", "--classes", "['Lung Opacity', 'it''s']", "--out", "x", "--seeds", "[3]",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_train_one_model(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    command += ["-m", "hdxray_fast", "finetune", "--data", str(data / "labels.csv"), "--weights", str(data / "weights")]
    common = ["--contour", "rectangle", "--epochs", "3", "--batch-size", "4", "--workers", "0", "--threads", "1"]
    common += ["--tensorboard", "false", "--bootstraps", "5", "--augment", "rand", "--lr", "0.001"]
    common += ["--drop-path", "0.3", "--mixup", "0.4"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two"), *common],
        capture_output=True, text=True, timeout=300, env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    same = {"augment": "rand", "lr": 1e-3, "drop_path": 0.3, "mixup": 0.4}
    one = finetune(data, tmp_path / "one", epochs=3, batch_size=8, **same)[0]
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    saved = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert saved["chosen_on_validation"]["loss"] == pytest.approx(one.best["loss"], abs=1e-3)
    assert saved["train_images"] == 36


def test_a_probe_by_finetune_reads_the_columns_that_are_named(data, tmp_path):
    header, *rows = (data / "labels.csv").read_text().splitlines()
    header = header.replace("image", "Bildchen").replace("patient", "Fall")
    (data / "named.csv").write_text("\n".join([header, *rows]))
    settings = config(data, tmp_path / "run", tune="head", head="linear", batch_size=4)
    settings = replace(settings, data=str(data / "named.csv"), image_column="Bildchen", patient_column="Fall")
    (result,) = run_finetuning(settings, progress=False)
    assert result.finished and result.report["patients"] is not None
    with pytest.raises(ConfigError, match=r"^force: .* is a probe"):
        replace(settings, force=True)


def test_force_begins_all_runs_anew_before_the_first(data, tmp_path):
    """So that what is stopped goes on, without it, with no results of before; and over a damaged best model."""
    settings = config(data, tmp_path / "runs", head="linear", epochs=1, seeds=[0, 1])
    run_finetuning(settings, progress=False)
    first, second = (Path(run.out) for run in settings.runs())
    (first / "best.safetensors").write_bytes(b"damaged")

    def stop(line):
        assert not (second / "log.jsonl").exists() and not (second / "model").exists()
        os.kill(os.getpid(), signal.SIGTERM)

    anew = replace(settings, lr=1e-3, force=True)
    (stopped,) = run_finetuning(anew, progress=False, on_step=stop)
    assert not stopped.finished
    assert [one.finished for one in run_finetuning(replace(anew, force=False), progress=False)] == [True, True]
