"""Where a pre-training starts, and how far it goes: from weights, and with more steps than were planned."""

from __future__ import annotations

import json
import shutil
import warnings

import cv2
import pytest
import torch
from tiny_training import TINY_PRETRAINING
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.errors import CheckpointError, ConfigError
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.start import started_model
from hdxray_fast.pretrain.task import run_pretraining

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

SMALL = {**TINY_PRETRAINING, "img_size": 64, "ratio_inside": 0.5, "ratio_outside": 0.5}
GROWS = {**SMALL, "schedule": "wsd", "warmup_steps": 2, "decay": 0.25, "lr": 1e-3}


def config(data, out, **changes) -> PretrainConfig:
    return PretrainConfig(data=str(data), out=str(out), **{**SMALL, **changes})


def log_of(out) -> list[dict]:
    kept = ("step", "loss", "lr", "grad_norm")
    return [{name: json.loads(line)[name] for name in kept} for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(3):
        assert cv2.imwrite(str(folder / f"{seed}.png"), draw_radiograph(seed))
    return folder


@pytest.fixture(scope="module")
def grown(images, tmp_path_factory):
    """A run of 4 steps, extended to 8 and 12, and one planned so."""
    root = tmp_path_factory.mktemp("grown")
    for steps in (4, 8, 12):
        more = {**GROWS, "steps": steps, "keep_checkpoints": 1, "resume": "auto" if steps > 4 else "never"}
        run_pretraining(config(images, root / "grown", **more), progress=False)
    run_pretraining(config(images, root / "planned", **{**GROWS, "steps": 12}), progress=False)
    return root


def test_a_run_that_was_extended_twice_is_the_one_planned_so(grown):
    """To the bit, the fall at its end included: it goes on from before each fall."""
    log = log_of(grown / "grown")
    assert [line["step"] for line in log] == list(range(1, 13))
    assert log == log_of(grown / "planned")
    assert [line["lr"] for line in log[1:9]] == [1e-3] * 8 and log[-1]["lr"] == pytest.approx(1e-5)
    a, b = (hx.load_model(grown / name / "model").state_dict() for name in ("grown", "planned"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    checkpoints = sorted(path.name for path in (grown / "grown" / "checkpoints").iterdir())
    assert checkpoints == ["ended_step_00000004", "ended_step_00000008", "step_00000009", "step_00000012"]


def test_without_a_checkpoint_from_before_the_fall_it_cannot_grow(grown, images, tmp_path):
    shutil.copytree(grown / "planned", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000009")
    with pytest.raises(CheckpointError, match="from before the rate fell"):
        run_pretraining(config(images, tmp_path / "run", **{**GROWS, "steps": 16, "resume": "auto"}))
    again = config(images, tmp_path / "run", **{**GROWS, "steps": 12, "resume": "auto"})  # as the error says
    assert run_pretraining(again, progress=False).finished


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        ({}, {}, "only runs begun with schedule=wsd grow"),
        ({}, {"schedule": "wsd", "warmup_steps": 1}, "only runs begun with schedule=wsd grow"),
        ({"schedule": "wsd", "warmup_steps": 1}, {"schedule": "wsd", "warmup_steps": 1, "steps": 50}, "not lowered"),
    ],
)
def test_more_steps_are_refused_with_the_reason(before, now, why):
    saved = config("a", "b", steps=100, **before).as_dict()
    (found,) = (line for line in config("a", "b", **{"steps": 200, **now}).differences(saved) if "steps:" in line[:6])
    assert why in found


def test_more_steps_of_a_constant_rate_are_no_difference():
    saved = config("a", "b", steps=1000, schedule="wsd").as_dict()
    assert config("a", "b", steps=2000, schedule="wsd").differences(saved) == []
    assert config("a", "b", steps=2000, schedule="wsd", decay=0.2).differences(saved) == ["decay: 0.1 -> 0.2"]


def test_rise_and_fall_fit_into_the_steps():
    with pytest.raises(ConfigError, match="warmup_steps: wsd rises in 500 and falls in 10 of 100 steps"):
        config("a", "b", steps=100, schedule="wsd")
    rates = [config("a", "b", steps=100, warmup_steps=20).rate(step) for step in range(100)]
    assert rates[18] < rates[19] == 1.0 > rates[30]


def test_a_run_starts_from_a_run(grown, images, tmp_path, capsys):
    before = hx.load_model(grown / "grown" / "model")
    weights = str(grown / "grown" / "model")
    model, told = started_model(config("a", "b", weights=weights))
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert "decoder     loaded" in told and "missing     none" in told and "left out" not in told
    run_pretraining(config(images, tmp_path / "run", weights=weights, steps=1), progress=False)
    assert "decoder     loaded" in capsys.readouterr().err
    larger, told = started_model(config("a", "b", weights=weights, img_size=128))
    assert larger.encoder.grid_size == (8, 8) and "resized" in told
    decoder = dict(larger.decoder.named_parameters())
    assert all(torch.equal(decoder[name], value) for name, value in before.decoder.named_parameters())


def test_the_model_of_a_run_that_goes_on_is_told_to_be_that_of_its_former_end(grown, images, tmp_path):
    shutil.copytree(grown / "planned", tmp_path / "run")
    planned = config(images, tmp_path / "run", **{**GROWS, "steps": 16, "save_every": 1, "resume": "auto"})
    (tmp_path / "run" / "checkpoints" / "step_00000099_best").mkdir()
    with warnings.catch_warnings():  # of a run that has ended nothing is told
        warnings.simplefilter("error")
        hx.create_encoder(weights=tmp_path / "run")

    def stops(line: dict) -> None:
        if line["step"] == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pretraining(planned, progress=False, on_step=stops)
    with pytest.warns(UserWarning, match=r"run: has come to step 11 of 16 since its model was written, which is taken"):
        hx.create_encoder(weights=tmp_path / "run")


def test_a_run_goes_on_when_the_weights_it_began_with_are_gone(grown, images, tmp_path, capsys):
    shutil.copytree(grown / "grown" / "model", tmp_path / "weights")
    weights = str(tmp_path / "weights")
    planned = config(images, tmp_path / "run", weights=weights, steps=3, save_every=1, resume="auto")

    def stops(line: dict) -> None:
        if line["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pretraining(planned, progress=False, on_step=stops)
    shutil.rmtree(tmp_path / "weights")
    assert run_pretraining(planned, progress=False).finished
    assert f"weights: {tmp_path / 'weights'} cannot be read; the checkpoint has all" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="weights: is missing"):
        run_pretraining(planned, progress=False)


def test_another_decoder_begins_anew_and_another_encoder_is_refused(grown, tmp_path):
    weights = str(grown / "grown" / "model")
    model, told = started_model(config("a", "b", weights=weights, decoder="self"))
    before = hx.load_model(weights)
    assert "decoder     begins anew: the weights have decoder cross, not self" in told
    assert torch.equal(model.encoder.blocks[3].attn.qkv.weight, before.encoder.blocks[3].attn.qkv.weight)
    hx.save_model(before.encoder, tmp_path / "encoder")
    assert "an encoder alone" in started_model(config("a", "b", weights=str(tmp_path / "encoder")))[1]
    with pytest.raises(ConfigError, match=r"is no vit_small_patch16 .embed_dim 192, not 384"):
        started_model(config("a", "b", weights=weights, model="vit_small_patch16"))
    unlike = hx.create_encoder("vit_tiny_patch16", img_size=64, reg_tokens=2)
    hx.save_model(unlike, tmp_path / "registers")
    with pytest.raises(ConfigError, match="has reg_tokens=2"):
        started_model(config("a", "b", weights=str(tmp_path / "registers")))
