"""A task of twenty lines, and runs of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from torch import nn

from hdxray_fast.training.config import TrainingConfig
from hdxray_fast.training.loop import Training
from hdxray_fast.training.task import Task

TINY_PRETRAINING = {
    "model": "vit_tiny_patch16",
    "img_size": 128,
    "decoder_embed_dim": 64,
    "decoder_depth": 1,
    "contour": "rectangle",
    "batch_size": 2,
    "tensorboard": False,
    "picture_every": 0,
    "threads": 1,
    "workers": 0,
}


class Rows(torch.utils.data.Dataset):
    """Sample ``index`` has ``index + 1`` rows of four numbers: batches whose means weigh differently."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key):
        index = key[1]
        return torch.randn(index + 1, 4, generator=torch.Generator().manual_seed(index))


class Regression(Task):
    """A tiny network with dropout learns the mean of each row."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.dropout, self.best, self.seen = dropout, float("inf"), []

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(self.dropout), nn.Linear(8, 1))

    def groups(self, model, config):
        return [{"params": model[0].parameters(), "lr_scale": 0.5}, {"params": model[2].parameters()}]

    def loader(self, training, start):
        return training.loader(Rows(), start, collate_fn=lambda rows: {"x": torch.cat(rows), "images": len(rows)})

    def loss(self, model, batch):
        x = batch["x"]
        return (model(x)[:, 0] - x.mean(1)).square().mean(), {"rows": len(x), "largest": x.max()}

    def after_step(self, training, step, done):
        with training.averaged() as model:
            assert not model.training
            value = float(model(torch.ones(1, 4)))
        self.best = min(self.best, abs(value - 1))
        return {"error": abs(value - 1)}

    def state(self):
        return {"best": self.best}

    def load_state(self, state):
        self.best = state["best"]


def train(out, task=None, on_step=None, **changes):
    options = {"steps": 6, "batch_size": 2, "lr": 1e-2, "tensorboard": False, "save_every": 2, **changes}
    task = task or Regression()
    training = Training(TrainingConfig(out=str(out), **options), task, progress=False, on_step=on_step)
    training.claim_folder()
    return training, training.run()


def log_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what a thread or a process is about to do."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
