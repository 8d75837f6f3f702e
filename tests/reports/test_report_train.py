"""Report models from files to files: train, generate, evaluate, through the command line."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from recorded_graph import WatchedGraphs, attention_as_on_a_gpu
from report_makers import write_annotation, write_csv
from report_model_makers import CHINESE, ENGLISH, radiograph, save_small_encoder, small_language_model, study_csv

pytest.importorskip("transformers")
from killed_runs import Killed, killed_at

from hdxray_fast.cli.main import main
from hdxray_fast.data.radiograph_dataset import RadiographDataset
from hdxray_fast.errors import CheckpointError, ConfigError, TrainingError
from hdxray_fast.files import checksum
from hdxray_fast.models import layers
from hdxray_fast.reports.attention_picture import draw_attention, relative_maps
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.features import FeatureStore
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.predictions import read_predictions
from hdxray_fast.reports.run import run_report_training
from hdxray_fast.reports.saving import load_report_model
from hdxray_fast.reports.studies import Study
from hdxray_fast.reports.task import ReportTask
from hdxray_fast.reports.visual_tokens import VisualTokens
from hdxray_fast.reports.writing import studies_of_files, write_reports
from hdxray_fast.training import loop
from hdxray_fast.training.loop import Training
from hdxray_fast.weights.model_folders import load_model

QUICK = {
    "contour": "rectangle",
    "encoder_lr": 0.0,
    "val_share": 0.0,
    "test_share": 0.0,
    "width": 48,
    "heads": 4,
    "ffn": 48,
    "layers": 1,
    "dropout": 0.0,
    "min_frequency": 1,
    "min_patients": 1,
    "digits": True,
    "visual_tokens": 9,
    "max_length": 40,
    "steps": 60,
    "batch_size": 4,
    "lr": 5e-3,
    "weight_decay": 0.0,
    "validate_split": "train",
    "validate_every": 30,
    "num_beams": 1,
    "tensorboard": False,
    "threads": 1,
    "workers": 0,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(save_small_encoder(tmp_path_factory.mktemp("encoder") / "model"))


@pytest.fixture(scope="module")
def english(tmp_path_factory, encoder) -> Path:
    """A folder with ``studies.csv`` of one and two views, a ``run`` trained by the command, and what this ``said``."""
    folder = tmp_path_factory.mktemp("english")
    data = study_csv(folder, ENGLISH, two_views=True)
    options = {"data": data, "out": folder / "run", "weights": encoder, **QUICK}
    with (folder / "said").open("w") as said, redirect_stdout(said), redirect_stderr(said):
        assert main(["report", "train", *arguments(options)]) == 0
    return folder


def quick(data: Path, out: Path, encoder: str, **options) -> ReportConfig:
    return ReportConfig(**{**QUICK, "data": str(data), "out": str(out), "weights": encoder, **options})


def arguments(options: dict) -> list[str]:
    given = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]


def trained_tensors(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return getattr(load_report_model(folder, "cpu"), part).state_dict()


# --- the whole way ----------------------------------------------------------------------------------------------------
def test_two_views_by_heart_through_the_command_line(english, tmp_path, capsys):
    data, run = english / "studies.csv", english / "run"
    printed = (english / "said").read_text()
    assert "best bleu4 on train: 1.0000" in printed and "4 studies to train on" in printed
    assert "warning: 4 studies are few to choose the best model by" in printed and "matched nothing" not in printed
    options = {"model": run, "data": data, "split": "train", "val_share": 0, "test_share": 0}
    assert main(["report", "generate", *arguments(options), "--out", str(tmp_path / "made"), "--pictures", "2"]) == 0
    printed, noted = capsys.readouterr()
    assert all(text in printed for text in ENGLISH)
    assert "note: the first 2 of 4 studies get a picture (--pictures)" in noted and "matched nothing" not in noted
    made = read_predictions(tmp_path / "made" / "predictions.csv")
    assert [(p.generated, p.reference, p.language) for p in made] == [(text, text, "en") for text in ENGLISH]
    pictures = sorted(path.name for path in (tmp_path / "made").glob("*.png"))
    assert pictures == ["0_0.report.png", "1_0.report.png"]
    picture = cv2.imread(str(tmp_path / "made" / "1_0.report.png"))
    assert min(picture.shape[:2]) > 300 and picture.std() > 20
    page = (tmp_path / "made" / "reports.html").read_text()
    assert printed.endswith(f"; all on one page: {tmp_path / 'made' / 'reports.html'}\n")
    assert page.count("data:image/jpeg") == 2 and all(f"{number}_0.png" in page for number in range(4))
    assert all(page.count(text) == 2 for text in ENGLISH)  # beside the radiologist's
    assert "<p>the first 2 of 4 studies get a picture" in page and "<script" not in page
    assert main(["report", "evaluate", str(tmp_path / "made" / "predictions.csv"), "--out", str(tmp_path / "s")]) == 0
    scores = json.loads((tmp_path / "s" / "metrics.json").read_text())["languages"]["en"]["scores"][0]
    assert scores["bleu4"] == pytest.approx(1.0)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.2 < 1 < log[0]["loss"] and log[-1]["train_bleu4"] == pytest.approx(1.0)
    validated = read_predictions(run / "validation.csv")
    assert [p.generated for p in validated] == ENGLISH


def test_files_without_reports(english, tmp_path, capsys):
    """A second view changes what is read, files are studies of their own or views of one."""
    run, first, second = (str(english / name) for name in ("run", "1_0.png", "1_1.png"))
    assert main(["report", "generate", first, second, "--model", run, "--together"]) == 0
    assert ENGLISH[1] in capsys.readouterr().out
    assert main(["report", "generate", str(english), "--model", run, "--out", str(tmp_path)]) == 0
    made = read_predictions(tmp_path / "predictions.csv")
    assert len(made) == 6 and not any(p.reference for p in made)
    assert len(list(tmp_path.glob("*.png"))) == 6
    found = write_reports(str(english / "0_0.png"), run)
    assert found.rows[0].text == ENGLISH[0] and found.predictions is None
    assert found.rows[0].attention.shape == (3, 1, 6, 6)
    assert (found.precision, write_reports(str(english / "0_0.png"), run, precision="bf16").precision) == (
        "fp32",
        "bf16",
    )
    assert main(["report", "generate", first, "--model", run, "--precision", "bf16"]) == 0
    assert main(["report", "generate", first, "--model", run, "--precision", "fp8"]) == 2
    assert "--precision: got 'fp8', accepted are 'auto', 'fp32', 'bf16'" in capsys.readouterr().err


def test_features_of_another_precision_are_others(english, encoder):
    task = ReportTask(quick(english / "studies.csv", english / "run", encoder), read_studies(english / "studies.csv"))
    model = task.build()
    stores = [FeatureStore(Path("features"), SimpleNamespace(), model, name) for name in ("no", "no", "bf16")]
    assert stores[0].made_by == stores[1].made_by != stores[2].made_by


@pytest.mark.parametrize(
    ("decoder", "pool", "tokenizer"), [("relational", "attention", "character"), ("transformer", "grid", "bpe")]
)
def test_chinese_by_heart(tmp_path, encoder, decoder, pool, tokenizer):
    data = study_csv(tmp_path, CHINESE, language="zh")
    config = quick(
        data, tmp_path / "run", encoder, language="zh", decoder=decoder, pool=pool, tokenizer=tokenizer, steps=80,
        keep="contour", contour="network", validate_every=80,
    )  # fmt: skip
    result = run_report_training(config, progress=False)
    assert result.best == pytest.approx(1.0)
    made = write_reports(read_studies(data, language="zh", val_share=0, test_share=0).studies, config.out, out=tmp_path)
    assert [row.text for row in made.rows] == CHINESE
    assert made.rows[2].sentences == ["右下肺见片状高密度影，考虑肺炎。", "未见气胸。"]
    assert main(["report", "evaluate", str(tmp_path / "predictions.csv"), "--out", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())["languages"]["zh"]["scores"]
    assert scores[0]["unit"] == "character" and scores[0]["bleu4"] == pytest.approx(1.0)


@pytest.mark.parametrize("rank", [0, 8])
def test_language_model_with_and_without_lora(tmp_path, encoder, rank):
    pytest.importorskip("peft")
    path = str(small_language_model(tmp_path / "lm"))
    data = study_csv(tmp_path, ENGLISH, two_views=True)
    config = quick(
        data, tmp_path / "run", encoder, decoder="language-model", language_model=path, lora_rank=rank, steps=12,
        lr=2e-2, lora_alpha=32, validate_every=0, save_every=6,
    )  # fmt: skip
    result = run_report_training(config, progress=False)
    assert result.losses[-1] < result.losses[0]
    from safetensors import safe_open

    with safe_open(tmp_path / "run" / "checkpoints" / "step_00000012" / "model.safetensors", "pt") as tensors:
        kept = [name for name in tensors.keys() if name.startswith("decoder.")]  # noqa: SIM118
    assert bool(kept) == bool(rank) and all("lora_" in name for name in kept)
    assert len(write_reports(str(tmp_path), config.out, pictures=1).rows) == 6
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=r"there is no folder .*lm"):
        load_report_model(config.out)


# --- training ---------------------------------------------------------------------------------------------------------
def test_without_validation_studies_it_is_said(tmp_path, encoder, capsys):
    config = quick(study_csv(tmp_path, ENGLISH), tmp_path / "run", encoder, steps=1, validate_split="val")
    result = run_report_training(config, progress=False)
    assert result.finished and not result.best_step
    assert "warning: nobody validates, so no model is chosen" in capsys.readouterr().err
    assert write_reports(str(tmp_path / "0_0.png"), result.out).warning.startswith("this model was never validated")


def test_a_cell_that_names_two_views_is_pointed_to_data(tmp_path):
    path = study_csv(tmp_path, ENGLISH, two_views=True)
    with pytest.raises(ConfigError, match=r"png;.*png names several radiographs of one study; .* with --data"):
        studies_of_files([path])


def test_files_give_their_names_as_ids(tmp_path):
    for name in ("a/0.png", "b/0.png", "b/chest é.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ids = [study.id for study in studies_of_files([tmp_path])]
    assert ids == [str(tmp_path / "a/0.png"), str(tmp_path / "b/0.png"), "chest é"]  # of two alike, the paths
    assert studies_of_files([tmp_path / "b"], together=True)[0].id == "0"


STEPS = {
    "features by cells": {"pool": "grid"},
    "features of patches": {"pool": "attention"},
    "views of all patches": {"encoder_lr": 1e-3, "augment": True, "keep": "all"},
    "views of the contour": {"encoder_lr": 1e-3, "augment": True, "keep": "contour", "decoder": "relational"},
    "learned queries": {"encoder_lr": 1e-3, "pool": "attention", "keep": "valid", "label_smoothing": 0.1},
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_in_a_step_waits_for_a_gpu(tmp_path, encoder, monkeypatch, name):
    data = study_csv(tmp_path, ENGLISH, two_views=True)
    options = {"steps": 3, "validate_every": 0, "batch_size": 2, "grad_accum": 2, "dropout": 0.1, **STEPS[name]}
    now = run_report_training(quick(data, tmp_path / "now", encoder, **options), progress=False)
    monkeypatch.setattr(layers, "attention", attention_as_on_a_gpu)
    monkeypatch.setattr(loop, "graphs_for", WatchedGraphs)
    watched = run_report_training(quick(data, tmp_path / "watched", encoder, **options), progress=False)
    assert watched.losses == pytest.approx(now.losses, rel=1e-4)


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_augmented_radiographs_are_seen_through_views(tmp_path, monkeypatch, keep):
    """None is moved on the CPU; the losses are those of radiographs that are, but for the rounding of places."""
    data = study_csv(tmp_path, ENGLISH, two_views=True)
    # not per image: a view is standardised over the radiograph, pixels over its patches, padding in them included
    encoder = str(save_small_encoder(tmp_path / "fixed", normalisation=(0.5, 0.25)))
    options = {"steps": 4, "validate_every": 0, "encoder_lr": 1e-3, "augment": True, "keep": keep, "lr": 1e-3}
    options["contour"] = "rectangle"  # which moves no image itself
    moved = []
    warp = cv2.warpAffine
    monkeypatch.setattr(cv2, "warpAffine", lambda *args, **kwargs: moved.append(1) or warp(*args, **kwargs))
    seen = run_report_training(quick(data, tmp_path / "seen", encoder, **options), progress=False)
    assert not moved
    whole = RadiographDataset.__init__
    without = lambda self, *args, **kwargs: whole(self, *args, **{**kwargs, "views": False})  # noqa: E731
    monkeypatch.setattr(RadiographDataset, "__init__", without)
    expected = run_report_training(quick(data, tmp_path / "moved", encoder, **options), progress=False)
    assert moved
    assert seen.losses == pytest.approx(expected.losses, rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, encoder, frozen):
    data = study_csv(tmp_path, ENGLISH, two_views=True)
    options = {"steps": 6, "save_every": 2, "dropout": 0.3, "validate_every": 2, "grad_accum": 2, "batch_size": 2}
    options |= {} if frozen else {"encoder_lr": 1e-3, "augment": True, "pool": "attention", "decoder": "relational"}
    whole = quick(data, tmp_path / "whole", encoder, **options)
    expected = run_report_training(whole, progress=False)

    halved = replace(whole, out=str(tmp_path / "halved"), cache=str(tmp_path / "whole" / "cache"), resume="auto")
    with pytest.raises(Killed):
        run_report_training(halved, progress=False, on_step=killed_at(5))
    left = tmp_path / "halved" / ".model.99999999.0123456789abcdef.tmp"  # what a killed save leaves
    (left / "encoder").mkdir(parents=True)
    rest = run_report_training(halved, progress=False)
    assert rest.losses == expected.losses[4:]
    assert not list((tmp_path / "halved").glob(".*.tmp"))
    assert (rest.best, rest.best_step) == (expected.best, expected.best_step)
    for part in ("encoder", "visual", "decoder"):
        first, second = (trained_tensors(tmp_path / name, part) for name in ("whole", "halved"))
        assert all(torch.equal(first[name], second[name]) for name in first)
    now = trained_tensors(tmp_path / "whole", "encoder")
    before = load_model(encoder).state_dict()
    assert all(torch.equal(now[name], before[name]) for name in now) is frozen


def cut_after(config: ReportConfig, step: int) -> ReportConfig:
    """The same run, killed after a step, to be gone on with."""
    with pytest.raises(Killed):
        run_report_training(config, progress=False, on_step=killed_at(step))
    return replace(config, resume="auto")


@pytest.mark.parametrize("frozen", [True, False])
def test_resume_with_other_weights_in_the_folder(tmp_path, frozen):
    """Features of another encoder are refused; one that is trained is in the checkpoint."""
    data = study_csv(tmp_path, ENGLISH)
    weights = save_small_encoder(tmp_path / "weights", seed=1)
    options = {"steps": 4, "save_every": 2, "validate_every": 2} | ({} if frozen else {"encoder_lr": 1e-3})
    again = cut_after(quick(data, tmp_path / "run", str(weights), **options), 3)
    kept = shutil.copytree(weights, tmp_path / "kept")
    shutil.rmtree(weights)
    save_small_encoder(weights, seed=2)
    if not frozen:
        assert run_report_training(again, progress=False).finished
        return
    named = r"^weights: these are other weights \(1 changed, such as the frozen encoder\) than when the run in"
    with pytest.raises(ConfigError, match=named):
        run_report_training(again, progress=False)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((checkpoint / "state.json").read_text())
    del state["record"]  # as in checkpoints of earlier versions
    (checkpoint / "state.json").write_text(json.dumps(state))
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums["state.json"] = checksum(checkpoint / "state.json")
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ConfigError, match=r"^weights: .*weights is another encoder than when the run was started"):
        run_report_training(again, progress=False)
    shutil.rmtree(weights)
    kept.rename(weights)
    assert run_report_training(again, progress=False).finished


def test_resume_with_another_language_model_in_the_folder(tmp_path, encoder):
    """Two that were tuned from one may have the same word embeddings."""
    from safetensors.torch import load_file, save_file

    path = small_language_model(tmp_path / "lm")
    options = {"decoder": "language-model", "language_model": str(path), "validate_every": 0}
    data = study_csv(tmp_path, ENGLISH)
    again = cut_after(quick(data, tmp_path / "run", encoder, steps=3, save_every=1, **options), 2)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"^language_model: these are other language models \(1 changed, such as .*lm\)"
    ):
        run_report_training(again, progress=False)


FEW = ["The heart is normal in size. The lungs are clear."] * 6 + ENGLISH[1:2]  # 10 % of the words are rare


def test_few_reports_lose_no_word(tmp_path, encoder, capsys):
    """Where no floor is given; it is written down, and a resumed run goes by it."""
    data = study_csv(tmp_path, FEW)
    config = quick(data, tmp_path / "run", encoder, min_frequency=None, steps=3, save_every=1, validate_every=0)
    again = cut_after(config, 2)
    assert "unknown" not in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["min_frequency"] == 1
    with pytest.raises(ConfigError, match="min_frequency: 1 -> 2"):
        run_report_training(replace(again, min_frequency=2), progress=False)
    assert run_report_training(again, progress=False).finished
    assert load_report_model(tmp_path / "run", "cpu").tokenizer.unknown_share(FEW) == 0


def test_many_unknown_words_are_warned_of(tmp_path, encoder, capsys):
    data = study_csv(tmp_path, FEW)
    config = quick(data, tmp_path / "run", encoder, min_frequency=3, steps=1, validate_every=0)
    result = run_report_training(config, progress=False)
    said = "9.9% of the tokens of the training reports are unknown to the tokenizer"
    assert f"warning: {said}" in capsys.readouterr().err
    (note,) = [note for note in result.notes if "unknown" in note]
    assert note.startswith(said) and "give --min-frequency 1 (it is 3), or --tokenizer bpe" in note
    result = run_report_training(replace(config, out=str(tmp_path / "bpe"), tokenizer="bpe"), progress=False)
    assert not [note for note in result.notes if "unknown" in note]


def test_a_run_of_an_earlier_version_keeps_its_floor(tmp_path, encoder, capsys):
    """Which was 3 for any number of reports, and was not written down."""
    data = study_csv(tmp_path, FEW)
    config = quick(data, tmp_path / "run", encoder, min_frequency=3, steps=3, save_every=1, validate_every=0)
    again = replace(cut_after(config, 2), min_frequency=None)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "min_frequency": None}))
    capsys.readouterr()
    assert run_report_training(again, progress=False).finished
    assert "give --min-frequency 1 (it is 3)" in capsys.readouterr().err
    assert load_report_model(tmp_path / "run", "cpu").tokenizer.unknown_share(FEW) > 0.05


def test_resume_refuses_other_radiographs_and_reports(tmp_path, encoder):
    data = study_csv(tmp_path, ENGLISH)
    again = cut_after(quick(data, tmp_path / "run", encoder, steps=3, save_every=1, validate_every=0), 2)
    before = (tmp_path / "2_0.png").read_bytes()
    (tmp_path / "2_0.png").write_bytes((tmp_path / "1_0.png").read_bytes())
    with pytest.raises(
        ConfigError, match=r"^data: these are other readable images \(1 changed, such as .*2_0\.png\) than"
    ):
        run_report_training(again, progress=False)
    (tmp_path / "2_0.png").write_bytes(before)
    data.write_text(data.read_text().replace("Mild cardiomegaly", "cardiomegaly Mild"))
    one = r"\(1 changed, such as .*1_0\.png\)"
    named = rf"other training studies {one} and other validation studies {one}"
    with pytest.raises(ConfigError, match=named):
        run_report_training(again, progress=False)


def test_rates_of_encoder_and_decoder(english, encoder, tmp_path):
    config = quick(english / "studies.csv", tmp_path, encoder, encoder_lr=1e-3, lr=4e-3)
    task = ReportTask(config, read_studies(config.data, val_share=0, test_share=0))
    training = Training(config, task, progress=False)
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    scales = {
        names[id(parameter)]: group.get("lr_scale", 1.0)
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }
    assert {scale for name, scale in scales.items() if name.startswith("encoder.")} == {0.25}
    assert {scale for name, scale in scales.items() if not name.startswith("encoder.")} == {1.0}
    assert set(scales) == {name for name, p in task.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("pool", "keep"), [("grid", "contour"), ("attention", "contour"), ("attention", "all")])
def test_kept_features_are_those_of_the_encoder(english, encoder, tmp_path, monkeypatch, pool, keep):
    monkeypatch.setattr(VisualTokens, "standardise", lambda self, images: None)  # what only a frozen encoder has
    options = {"pool": pool, "keep": keep, "cache": str(tmp_path / "cache")}
    losses, made = [], []
    for name, rate in (("frozen", 0.0), ("moving", 1e-12), ("again", 0.0)):
        config = quick(english / "studies.csv", tmp_path / name, encoder, encoder_lr=rate, steps=1, **options)
        losses.append(run_report_training(config, progress=False).losses[0])
        made.append({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("features/*")})
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[2] == losses[0]
    assert len(made[0]) == 6 and made[2] == made[0]


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the precision of a process's first run."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_averaged_weights_in_bf16(english, encoder, tmp_path):
    config = quick(english / "studies.csv", tmp_path, encoder, precision="bf16", ema=0.9, label_smoothing=0.1, steps=40)
    config = replace(config, decoder="relational", checkpoint_activations=True)
    result = run_report_training(config, progress=False)
    assert result.best > 0.25 and result.losses[-1] < 1.2 < result.losses[0]


# --- what is not as it should be --------------------------------------------------------------------------------------
def test_everything_left_out_or_cut_is_counted(tmp_path, encoder, capsys):
    rows = []
    for number, text in enumerate([*ENGLISH, " "]):
        names = [radiograph(tmp_path / f"{number}_{view}.png", number % 4, view).name for view in range(3)]
        rows.append({"id": f"s{number}", "image": ";".join(names), "report": text, "split": "train"})
    rows[0]["image"] = "0_0.png;not_there.png"
    rows[1]["image"] = "broken.png;1_0.png"
    rows[2]["image"] = "broken.png"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    data = write_csv(tmp_path / "studies.csv", rows)
    options = {"data": data, "out": tmp_path / "run", "weights": encoder, **QUICK, "steps": 1, "max_length": 14}
    assert main(["report", "train", *arguments(options)]) == 0
    printed = capsys.readouterr().err
    for note in (
        "1 study left out: the report, or the section asked for, is empty (row 6)",
        "1 image file not found",
        "1 radiograph unreadable",
        "1 study left out: none of their radiographs can be read (row 4)",
        "1 study read without a radiograph that cannot be read (row 3)",
        "1 study read by the first 2 radiographs alone (max_views) (row 5)",
        "1 of 3 training reports are longer than 14 tokens and are cut there (max_length)",
        "3 studies to train on",
    ):
        assert note in printed
    with open(tmp_path / "run" / "unreadable.csv") as stream:
        assert [Path(row["path"]).name for row in csv.DictReader(stream)] == ["broken.png"]
    studies = [Study("a", (str(tmp_path / "broken.png"),), ""), Study("b", (str(tmp_path / "1_0.png"),), "")]
    found = write_reports(studies, tmp_path / "run", pictures=0)
    assert [row.study.id for row in found.rows] == ["b"] and found.rows[0].attention is None
    bad = tmp_path / "broken.png"
    assert found.notes[0] == f"1 study left out: none of their radiographs can be read ({bad})"
    told = "the model was trained or validated on 1 of these 1 radiographs (100%): 1 equal to the pixel"
    assert told in found.notes[1]
    assert main(["report", "generate", str(tmp_path / "broken.png"), "--model", str(tmp_path / "run")]) == 2
    assert "unreadable" in capsys.readouterr().err


def test_a_full_disk_is_named_with_the_features_that_are_kept(english, encoder, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from hdxray_fast.reports import features

    def full(tensors, path, metadata=None):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(features, "save_tensors", full)
    named = r"features.[0-9a-f]{32}\.safetensors: cannot be written \(No space left on device\); what is done is kept"
    with pytest.raises(TrainingError, match=named):
        run_report_training(quick(english / "studies.csv", tmp_path / "run", encoder), progress=False)
    assert not list((tmp_path / "run").rglob("*.tmp")) and not (tmp_path / "run" / ".run.json").exists()


def test_two_report_trainings_never_share_a_folder(english, encoder, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    held = FileLock(tmp_path / "run" / ".run.lock")
    with held, pytest.raises(ConfigError, match=r"out: another run is at work in .*run; wait for its end"):
        run_report_training(quick(english / "studies.csv", tmp_path / "run", encoder), progress=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".run.lock"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"language": "fr"}, ConfigError, "language"),
        ({"language": "zh"}, ConfigError, "not Chinese"),
        ({"metric": "meteor"}, ConfigError, "metric"),
        ({"cleaning": "french"}, ConfigError, "cleaning"),
        ({"augment": True}, ConfigError, "encoder_lr"),
        ({"decoder": "language-model"}, ConfigError, "language_model"),
        ({"tokenizer": "no/such/tokenizer"}, CheckpointError, "tokenizer"),
        ({"weights": "/no/such/weights"}, CheckpointError, "/no/such/weights"),
        ({"visual_tokens": 50}, ConfigError, "visual_tokens"),
        ({"label_smoothing": 2.0}, ConfigError, "label_smoothing"),
        ({"min_frequency": 99}, ConfigError, "min_frequency"),
    ],
)
def test_settings_that_cannot_be(english, encoder, tmp_path, options, error, match):
    with pytest.raises((error, ValueError), match=match):
        run_report_training(quick(english / "studies.csv", tmp_path, **{"encoder": encoder, **options}), progress=False)


def test_a_tokenizer_for_another_language(english, encoder, tmp_path):
    from hdxray_fast.reports.text_tokenizers import train_tokenizer

    train_tokenizer(CHINESE, "character", min_frequency=1, min_patients=1, digits=True).save(tmp_path / "tokenizer")
    with pytest.raises(TrainingError, match=r"100.0% of the tokens .* give --tokenizer bpe"):
        run_report_training(
            quick(english / "studies.csv", tmp_path / "run", encoder, tokenizer=str(tmp_path / "tokenizer")),
            progress=False,
        )
    assert not (tmp_path / "run").exists()  # nothing was read yet


def test_no_training_study(english, encoder, tmp_path):
    entry = {"id": "1", "report": ENGLISH[0], "image_path": [str(english / "0_0.png")]}
    data = write_annotation(tmp_path, test=[entry])
    with pytest.raises(ConfigError, match="no study in the split 'train'"):
        run_report_training(quick(data, tmp_path / "run", encoder), progress=False)


def test_a_folder_with_another_run(english, encoder):
    again = quick(english / "studies.csv", english / "run", encoder, resume="never")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_report_training(again, progress=False)
    with pytest.raises(ConfigError, match="lr"):
        run_report_training(quick(english / "studies.csv", english / "run", encoder, lr=1e-3), progress=False)


def test_what_generate_does_not_take(english, capsys):
    run = str(english / "run")
    for words, match in (
        ([], "not both"),
        ([str(english / "0_0.png"), "--data", "x.csv"], "not both"),
        ([str(english / "nothing.dcm")], "nothing.dcm does not exist"),
        (["--data", str(english / "studies.csv"), "--split", "val", "--val-share", "0"], "no study in 'val'"),
        ([str(english / "0_0.png"), "--max-length", "41"], "up to 40 tokens"),
    ):
        assert main(["report", "generate", *words, "--model", run]) == 2
        assert match in capsys.readouterr().err


def test_a_long_caption_is_drawn_whole(tmp_path):
    words = "The " + "cardiomediastinal silhouette is within normal limits for size and contour " * 3
    view = np.full((64, 64), 128, np.uint8)
    view[:20] = 30
    picture = cv2.imread(str(draw_attention(tmp_path / "a.png", [view], [words], np.ones((1, 1, 8, 8)), 9)), 0)
    assert picture[:3].min() > 200  # nothing is cut off by the upper edge


def test_attention_is_told_in_even_shares_and_leaves_the_padding_out():
    maps, valid = np.full((2, 1, 6, 6), 0.01), np.zeros((1, 6, 6), bool)
    valid[:, 1:5] = True
    maps[:, :, :1] = 0.1  # hottest on the padding
    maps[0, 0, 2, 1] += 0.2
    maps[1, 0, 3, 4] += 0.2
    heat, lost = relative_maps(maps, valid, 36)
    assert np.array_equal(np.isfinite(heat[0]), valid)
    np.testing.assert_allclose(np.nanmean(heat, (1, 2, 3)), 1, rtol=1e-5)
    assert lost == pytest.approx(0.66 / 1.10)
    apart = heat - heat.mean(0)  # what a picture shows: where each sentence looked and the other did not
    assert np.unravel_index(np.nanargmax(apart[0, 0]), (6, 6)) == (2, 1)
    assert np.unravel_index(np.nanargmax(apart[1, 0]), (6, 6)) == (3, 4)


def test_sentences_that_looked_alike_have_no_colours(tmp_path):
    """The difference of each from their mean is drawn, in one scale."""
    view, maps = np.full((96, 96), 200, np.uint8), np.zeros((2, 1, 6, 6))
    view[:48] = 90
    maps[:, 0, 1, 1] = maps[:, 0, 4, 4] = 0.5

    def coloured(name: str) -> float:
        picture = cv2.imread(str(draw_attention(tmp_path / name, [view], ["One.", "Two."], maps, 36)))
        wide = picture.shape[1]
        tiles = picture[:, int(0.56 * wide) : int(0.9 * wide)].astype(int)  # of the sentences, between the scales
        return float((np.ptp(tiles, -1) > 30).mean())

    alike = coloured("alike.png")
    maps[1, 0, 4, 4], maps[1, 0, 4, 1] = 0, 0.5
    assert alike == 0 < 0.02 < coloured("apart.png")


# --- pictures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sentences", [[], ["One $ sign."], [f"Sentence {i}." for i in range(13)], [CHINESE[1]]])
def test_pictures_of_any_number_of_sentences(tmp_path, sentences):
    views = [np.random.default_rng(view).integers(0, 255, (96, 96)).astype(np.uint8) for view in range(2)]
    maps = np.random.default_rng(0).random((len(sentences), 2, 6, 6)) / 36
    picture = cv2.imread(str(draw_attention(tmp_path / "a.png", views, sentences, maps, 9)))
    assert picture.shape[0] > 200 and picture.shape[1] > 400
