"""Pre-training runs as the GPU benchmark watches them: the command's loop, its step alone, and the usual way.

The usual way is the plain MAE fed by PyTorch's DataLoader: 8-bit PNG files decoded, moved, re-exposed and normalised to
floats in its workers. The augmentation is that of ours, so that both do the same work to an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from harness.mae_steps import Setting, plain_step
from harness.steady import Enough, Steady, Watch
from hdxray_fast.data.augment import Augmentation
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import PretrainTask, run_pretraining
from hdxray_fast.training.loop import Training
from hdxray_fast.training.processes import loader_workers

MANY = 1000  # steps of a run that is ended before; the command's default


def run_config(data: Path, out: Path, model: str, batch: int, **changes: Any) -> PretrainConfig:
    """The command's defaults, without checkpoints and pictures in the steps that are watched.

    Args:
        data: a prepared set.
        changes: further settings, of tests.
    """
    with_events = importlib.util.find_spec("tensorboard") is not None
    settings = {"tensorboard": with_events, "steps": MANY, "save_every": MANY, "picture_every": 0, **changes}
    return PretrainConfig(data=str(data), out=str(out), model=model, batch_size=batch, **settings)


def told_settings(config: PretrainConfig) -> dict[str, Any]:
    """Settings of a run that decide how its step is launched, as far as there are such."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: getattr(config, name) for name in ("compile", "graph", "workers") if name in names}


def free() -> None:
    """Forget what was compiled and give memory back, so that each contender begins as in a process of its own."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def our_run(config: PretrainConfig, watch: Watch) -> Steady:
    """What ``hdxray-fast pretrain`` calls, watched until it has told enough."""
    free()
    with contextlib.suppress(Enough):
        run_pretraining(config, progress=False, on_step=watch)
    return watch.steady(_peak())


def plain_run(
    setting: Setting, folder: Path, watch: Watch, *, compiled: bool = False, blocks: str = "timm", workers: int = -1
) -> Steady:
    """The plain MAE on the PNG files of ``folder``, watched until it has told enough.

    Args:
        workers: of the DataLoader; -1 takes as many as ours.
    """
    free()
    on_gpu, files = setting.device == "cuda", PngFiles(folder, setting.img_size)
    loader = DataLoader(
        files,
        setting.batch,
        sampler=RandomSampler(files, replacement=True, num_samples=MANY * setting.batch),
        num_workers=loader_workers(workers, on_gpu),
        pin_memory=on_gpu,
    )
    batches, waited = iter(loader), 0.0

    def batch_of(_: int) -> Tensor:
        nonlocal waited
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        return batch.to(setting.device, non_blocking=True)

    step = plain_step(setting, compiled, blocks, batch_of)
    with contextlib.suppress(Enough):
        for turn in itertools.count():
            loss = float(step(turn))  # looked at in every step, as the published loop does
            watch({"loss": loss, "data_wait_s": waited})
    return watch.steady(_peak())


def _peak() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class PngFiles(Dataset):
    """8-bit grey PNG files to normalised floats ``[1, S, S]``, each time moved and re-exposed anew."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size, self.augmentation = sorted(folder.glob("*.png")), size, Augmentation()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = cv2.imread(str(self.paths[index]), cv2.IMREAD_GRAYSCALE)
        if pixels.shape != (self.size, self.size):
            pixels = cv2.resize(pixels, (self.size, self.size), interpolation=cv2.INTER_AREA)
        affine, tone = self.augmentation.draw(np.random.default_rng(), self.size)
        floats = tone(cv2.warpAffine(pixels, affine, (self.size, self.size))).astype(np.float32)
        return torch.from_numpy((floats - floats.mean()) / max(float(floats.std()), 1e-6))[None]


class StepAlone:
    """The step of a run on one batch that lies on the device, with nothing around it.

    Forward and backward pass, clipping, AdamW. On a GPU under bf16 and compiled as the run compiles it; call it for a
    step whose kernels the host launches one by one, or :meth:`recorded` for the whole step in a CUDA graph.

    Args:
        config: of the run; the batch is the first that its loader gives.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.task, self.clip_grad = PretrainTask(config), config.clip_grad
        training = Training(config, self.task, progress=False)
        self.task.use(PreparedSet(config.data))
        self.task.baseline = 0.0  # a run works it out in its first step
        device = training.accelerator.device
        self.on_gpu = device.type == "cuda"
        self.model = training.model.to(device).train()
        self._run = torch.compile(self.model) if self.on_gpu else self.model
        self.batch = self.task.to_device(next(iter(self.task.loader(training, 0))), device)
        self.optimizer = torch.optim.AdamW(
            self.task.groups(self.model, config),
            lr=1e-4,
            betas=(0.9, config.beta2),
            fused=True,
            capturable=self.on_gpu,
        )
        self._stream = torch.cuda.Stream() if self.on_gpu else None

    def __call__(self, turn: int = 0) -> Tensor:
        """One step; its loss."""
        if self._stream is None:
            return self._step()
        # the stream that records, always: gradients are accumulated where they first were
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            loss = self._step()
        outer.wait_stream(self._stream)
        return loss

    def recorded(self) -> Callable[[int], Tensor]:
        """``step(i)`` that replays a CUDA graph of the step; its loss, overwritten by the next."""
        for _ in range(3):  # compiled, kernels chosen, optimizer state made
            self()
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                loss = self._step()
        finally:
            torch.cuda.set_stream(outer)  # a recording that fails leaves its own behind

        def replay(turn: int) -> Tensor:
            graph.replay()
            return loss

        return replay

    def _step(self) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.on_gpu):
            loss, _ = self.task.loss(self._run, self.batch)
        loss.backward()
        if self.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
