"""A whole pre-training on a GPU: recorded as CUDA graphs, looked at late, and the same as one that is not."""

from __future__ import annotations

import json

import pytest
import torch

from hdxray_fast.errors import TrainingError
from hdxray_fast.pretrain import task as pretrain
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.training import graphs

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")]


def config(data, out, **changes) -> PretrainConfig:
    options = {
        "model": "vit_tiny_patch16",
        "img_size": 128,
        "decoder_embed_dim": 64,
        "decoder_depth": 2,
        "contour": "rectangle",
        "batch_size": 4,
        "steps": 24,
        "tensorboard": False,
        "picture_every": 0,
        "workers": 2,
        "precision": "fp32",
        "compile": "off",
        "ratio_inside": 0.8,
        "ratio_outside": 0.6,
        **changes,
    }
    return PretrainConfig(data=str(data), out=str(out), **options)


@pytest.fixture
def replays(monkeypatch):
    """Numbers of recordings and replays."""
    counts, record = {"recorded": 0, "replayed": 0}, graphs.CudaGraphs.record

    def counting(self, work):
        counts["recorded"] += 1
        replay = record(self, work)

        def counted():
            counts["replayed"] += 1
            replay()

        return counted

    monkeypatch.setattr(graphs.CudaGraphs, "record", counting)
    return counts


def run(data, out, **changes):
    return pretrain.run_pretraining(config(data, out, **changes), progress=False)


def test_a_recorded_run_is_the_run(radiographs, tmp_path, replays):
    whole = {"ema": 0.9, "grad_accum": 2}
    recorded = run(radiographs, tmp_path / "recorded", **whole)
    assert 1 <= replays["recorded"] <= replays["replayed"]
    found = dict(replays)
    eager = run(radiographs, tmp_path / "eager", graph="off", **whole)
    assert replays == found
    assert recorded.losses == pytest.approx(eager.losses, rel=1e-3)
    assert recorded.baseline == pytest.approx(eager.baseline, rel=1e-5)
    names = ("step", "lr", "tokens_kept")
    told = []
    for folder in ("recorded", "eager"):
        lines = (tmp_path / folder / "log.jsonl").read_text().splitlines()
        told.append([[json.loads(line)[name] for name in names] for line in lines])
    assert told[0] == told[1]


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_a_step_that_is_not_finite_changes_nothing(radiographs, tmp_path, monkeypatch, graph):
    from safetensors.torch import load_file

    bad = 9
    move = pretrain.PretrainTask.to_device

    def to_device(self, batch, device):
        moved = move(self, batch, device)
        self.moved = getattr(self, "moved", 0) + 1
        if self.moved == bad:
            moved["scale"] = moved["scale"] * torch.nan
        return moved

    monkeypatch.setattr(pretrain.PretrainTask, "to_device", to_device)
    with pytest.raises(TrainingError, match=f"step {bad}: .*not finite"):
        run(radiographs, tmp_path / "bad", graph=graph, save_every=bad - 1, keep_checkpoints=9, ema=0.9)
    for name in ("model", "ema", "optimizer"):
        kept = load_file(tmp_path / "bad" / "failed" / f"step_{bad:08d}" / f"{name}.safetensors")
        before = load_file(tmp_path / "bad" / "checkpoints" / f"step_{bad - 1:08d}" / f"{name}.safetensors")
        assert all(torch.equal(kept[key], before[key]) for key in before)


def test_resuming_goes_on(radiographs, tmp_path):
    whole = run(radiographs, tmp_path / "whole", steps=12)

    class Cut(Exception):
        pass

    def cut(line):
        if line["step"] == 7:
            raise Cut

    with pytest.raises(Cut):
        pretrain.run_pretraining(
            config(radiographs, tmp_path / "cut", steps=12, save_every=5), progress=False, on_step=cut
        )
    rest = run(radiographs, tmp_path / "cut", steps=12, save_every=5, resume="auto")
    assert len(rest.losses) == 7
    assert rest.losses == pytest.approx(whole.losses[5:], rel=1e-3)
