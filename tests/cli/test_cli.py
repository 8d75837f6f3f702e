"""The command line a user types."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hdxray_fast.cli.main import main

pytest.importorskip("jsonargparse")


def test_doctor_answers_as_text_and_json(capsys):
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert "versions" in json.loads(capsys.readouterr().out)


def test_pretrain_takes_yaml_and_flags_with_dashes(radiographs, tmp_path, capsys):
    pytest.importorskip("accelerate")
    (tmp_path / "c.yaml").write_text(
        "model: vit_tiny_patch16\nimg_size: 128\ndecoder_embed_dim: 32\ndecoder_depth: 1\n"
        "contour: rectangle\ntensorboard: false\nsteps: 9\n"
    )
    argv = [
        "pretrain",
        "--config",
        str(tmp_path / "c.yaml"),
        "--data",
        str(radiographs),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*argv, "--steps", "2", "--batch-size", "1"]) == 0
    out = capsys.readouterr().out
    assert "model:" in out and (tmp_path / "run" / "model" / "model.safetensors").exists()
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["steps"] == 2 and saved["batch_size"] == 1 and saved["img_size"] == 128
    assert main([*argv, "--steps", "2", "--batch-size", "1"]) == 0  # the same command goes on by itself
    assert "all 2 steps are done; --force (force=True) begins anew" in capsys.readouterr().err
    assert main([*argv, "--steps", "2", "--batch-size", "1", "--resume", "never"]) == 2
    assert "already holds a run; the same command without --resume never goes on" in capsys.readouterr().err


def test_errors_are_one_line_on_stderr(tmp_path, capsys):
    assert main(["pretrain", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("hdxray-fast: --data:") and "Traceback" not in message
    assert main(["contour", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2


def test_contour_writes_pictures(radiographs, tmp_path):
    assert main(["contour", str(radiographs), "--out", str(tmp_path / "out"), "--method", "rectangle"]) == 0
    assert len(list((tmp_path / "out").rglob("*.json"))) >= 5


@pytest.mark.slow
def test_demo_goes_from_dicom_to_panel(tmp_path, capsys):
    pytest.importorskip("pydicom")
    pytest.importorskip("data_store")
    assert main(["demo", "--steps", "3", "--img-size", "640", "--out", str(tmp_path / "demo")]) == 0
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["tokens_total"] == 1600 and 0 < metrics["tokens_kept"] < 400
    assert {"loss_first", "loss_last", "seconds_per_step", "peak_rss_mib", "inside_share", "contour_confidence"} <= set(
        metrics
    )
    assert (tmp_path / "demo" / "panel.png").stat().st_size > 10_000
    assert not any((tmp_path / "demo").glob(".*.tmp"))
    (picture,) = (tmp_path / "demo" / "features").glob("*.png")
    said = capsys.readouterr().out
    assert "panel.png" in said and str(picture) in said and picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["pretrain"], "pretrain.task.run_pretraining"),
        (["finetune"], "classify.finetune.run_finetuning"),
        (["report", "train"], "reports.run.run_report_training"),
    ],
)
def test_a_training_that_was_told_to_stop_does_not_end_as_a_finished_one(tmp_path, monkeypatch, capsys, words, run):
    """It had status 0: a scheduler could not tell."""
    result = SimpleNamespace(out=tmp_path, finished=False, losses=[], picture=None)
    monkeypatch.setattr(f"hdxray_fast.{run}", lambda config: [result] if words == ["finetune"] else result)
    told = ["--data", str(tmp_path), "--out", str(tmp_path), "--weights", "pretrained"]
    assert main([*words, *told]) == 143
    assert capsys.readouterr().out == f"stopped early, saved in {tmp_path}; the same command goes on\n"


def test_a_demo_that_is_stopped_says_so(radiographs, tmp_path, monkeypatch, capsys):
    from hdxray_fast.cli import demo
    from hdxray_fast.pretrain import task

    def stopped(config, on_step):
        on_step({"step": 2, "loss": 1.0})
        return task.PretrainResult(tmp_path, [1.2, 1.0])

    monkeypatch.setattr(task, "run_pretraining", stopped)
    monkeypatch.setattr(demo, "demo_radiograph", lambda: next(radiographs.iterdir()))
    assert main(["demo", "--steps", "3", "--out", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert "the demo was stopped at step 2 of 3" in said and "features YOUR_FOLDER --weights pretrained" in said

    def interrupted(config, on_step):
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "run_pretraining", interrupted)
    assert main(["demo", "--steps", "3", "--out", str(tmp_path / "demo")]) == 130
    first, last = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith("the demo was stopped at step 0 of 3")
    assert last == "hdxray-fast: interrupted; the same command begins anew"


@pytest.mark.parametrize(
    ("words", "module", "called", "way"),
    [
        ("pretrain --data x --out .", "pretrain.task", "run_pretraining", "goes on"),
        ("pretrain --data x --out none", "pretrain.task", "run_pretraining", "begins anew"),  # it had not begun
        ("finetune --data x --out . --weights w --resume auto", "classify.finetune", "run_finetuning", "goes on"),
        (
            "finetune --data x --out . --weights w --force",
            "classify.finetune",
            "run_finetuning",
            "without --force goes on, if this one had begun",
        ),
        ("report train --data x --out . --weights w", "reports.run", "run_report_training", "goes on"),
        ("prepare x --out y", "data.prepared.run", "run_prepare", "goes on"),
        ("stream x --out y", "data.prepared.stream_writing", "write_stream", "goes on"),
        ("embed x --weights w --out y", "features.embedding_files", "embed_files", "goes on"),
        ("predict x --model m --out y", "classify.evaluation", "predict_files", "goes on"),
        ("predict x --model m", "classify.evaluation", "predict", "begins anew"),
        ("convert x y", "weights.load", "convert", "begins anew"),
    ],
)
def test_ctrl_c_says_how_the_command_goes_on(words, module, called, way, monkeypatch, capsys):
    module = pytest.importorskip(f"hdxray_fast.{module}")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, called, interrupted)
    assert main(words.split()) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"hdxray-fast: interrupted; the same command {way}"


@pytest.mark.parametrize(
    "words",
    [["pretrain"], ["nonsense"], ["doctor", "--bogus"], ["pretrain", "--steps", "two", "--data", "x", "--out", "y"]],
)
def test_usage_errors_are_one_line(words, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hdxray-fast: ")
    assert "--help" in line


def test_contour_never_reads_its_own_overlays(radiographs):
    for _ in range(2):
        assert main(["contour", str(radiographs), "--out", str(radiographs / "out"), "--method", "rectangle"]) == 0
    assert main(["contour", str(radiographs), "--out", str(radiographs / "new"), "--method", "rectangle"]) == 0
    assert len(list((radiographs / "new").rglob("*.contour.json"))) == 5


def test_a_reader_that_has_seen_enough_is_no_error():
    """``hdxray-fast doctor | head -1``."""
    code = "import sys; from hdxray_fast.cli.main import main; sys.exit(main(['doctor']))"
    told = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -c 1",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert len(told.stdout) == 1 and not told.stderr
