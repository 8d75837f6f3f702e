"""Prepared data sets to batches: one core's rate, the strongest rival, and what a training step waits for its batch.

The set is raw, 1280 x 1280, 8 bits, and in the page cache; every byte is copied into the batch's tensor. Time is the
CPU time of this process, threads included, so that others on the machine do not count.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from harness.prepared_case import noise_set
from torch.utils.data import DataLoader

import hdxray_fast as hx
from hdxray_fast.data.prepared.loader import PreparedLoader, empty_batch, fill
from hdxray_fast.data.prepared.reading import PreparedSet

SIZE, IMAGES, BATCH = 1280, 40, 16
PROMISED = 2000  # images a second and core


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A raw set of 40 images, and each as a .npy and a .png file beside it."""
    root = tmp_path_factory.mktemp("reading")
    data = PreparedSet(noise_set(root, IMAGES, SIZE))
    for row in range(len(data)):
        np.save(root / f"{row}.npy", data.pixels(row))
        cv2.imwrite(str(root / f"{row}.png"), data.pixels(row))
    return root


def batches(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, IMAGES, BATCH).tolist() for _ in range(count)]


def cpu_seconds(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before


def per_image(call: Callable[[list[list[int]]], object], rounds: int = 9, each: int = 8) -> list[float]:
    """CPU seconds an image, a sample a round; the first round, which touches all memory, is not kept."""
    return [cpu_seconds(lambda k=k: call(batches(each, k))) / (each * BATCH) for k in range(rounds + 1)][1:]


def test_rate_of_one_core(compare, folder):
    data, batch = PreparedSet(folder / "set"), empty_batch(BATCH, SIZE)

    def read(lists: list[list[int]]) -> None:
        for rows in lists:
            for place, row in enumerate(rows):
                fill(batch, place, data[row], row)

    samples = per_image(read)
    compare.values(
        "reading a prepared raw image, 1280² u8, into a batch, CPU time",
        statistics.median(samples),
        1 / PROMISED,
        rival_name=f"the promised {PROMISED:,} images a second",
        unit="s",
        bar=1.0,
        extra={"images_per_second": round(1 / statistics.median(samples)), "samples": samples},
    )


class Files(torch.utils.data.Dataset):
    """The rival: a file of pixels for each image."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def __getitem__(self, row: int) -> torch.Tensor:
        path = self.folder / f"{row}{self.suffix}"
        pixels = np.load(path) if self.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        return torch.from_numpy(pixels)[None]


@pytest.mark.parametrize(("suffix", "bar"), [(".npy", 1.0), (".png", 10.0)])
def test_loader_against_files(compare, folder, suffix, bar):
    data, files = PreparedSet(folder / "set"), Files(folder, suffix)

    def ours(lists: list[list[int]]) -> None:
        for _ in PreparedLoader(data, lists):
            pass

    def rival(lists: list[list[int]]) -> None:
        for _ in DataLoader(files, batch_sampler=lists):
            pass

    mine, theirs = [], []
    for k in range(10):  # in turns
        lists = batches(4, k)
        mine.append(cpu_seconds(lambda lists=lists: ours(lists)) / (4 * BATCH))
        theirs.append(cpu_seconds(lambda lists=lists: rival(lists)) / (4 * BATCH))
    compare.values(
        f"loading prepared raw images, 1280² u8, batches of 16, CPU time an image, against {suffix} files",
        statistics.median(mine[1:]),
        statistics.median(theirs[1:]),
        rival_name=f"PyTorch's DataLoader over {suffix} files, pixels only",
        unit="s",
        bar=bar,
        extra={"ours_samples": mine[1:], "rival_samples": theirs[1:]},
    )


def test_wait_for_a_batch(compare, folder):
    """Of a training step of the smallest model, which waits the most."""
    data = PreparedSet(folder / "set")
    model = hx.create_mae("vit_tiny_patch16", decoder_embed_dim=192, decoder_depth=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    lists = [rows[:2] for rows in batches(8)]
    waits, steps = [], []
    for batch, waited in timed(PreparedLoader(data, lists)):
        began = time.perf_counter()
        plan = hx.plan_masks(batch["inside"], batch["valid"], 0.95, 0.85, predict=model.default_predict)
        model(batch["pixels"], plan, batch["scale"], batch["shift"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        waits.append(waited)
        steps.append(time.perf_counter() - began)
    compare.values(
        "wait of a training step for its prepared batch, ViT-T/16, 2 images",
        statistics.median(waits[1:]),
        statistics.median(steps[1:]),
        rival_name="the step itself",
        unit="s",
        bar=50,
        extra={"waits": waits, "steps": steps, "load": os.getloadavg()[0]},
    )


def timed(loader) -> Iterator[tuple[dict, float]]:
    turn = iter(loader)
    while True:
        began = time.perf_counter()
        batch = next(turn, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
