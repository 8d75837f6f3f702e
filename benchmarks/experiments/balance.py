"""How unequal the work of the processes is when radiographs differ in kept patches, dealt out as they come and evenly.

    python benchmarks/experiments/balance.py --data XRAYS... --out results/balance

Counts the patches that a step's batches really keep, augmentation and mask included, for the steps of a simulated run.
A process that keeps fewer than the largest waits for it: "waiting" is the mean share of a step that processes wait, if
time goes with kept patches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from hdxray_fast.data.augment import Augmentation
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.prepared.cache import fill_cache
from hdxray_fast.data.prepared.sources import Source
from hdxray_fast.data.radiograph_dataset import RadiographDataset
from hdxray_fast.data.reader_pool import worker_count
from hdxray_fast.data.sampler import StepSampler
from hdxray_fast.ops.mask_plan import plan_masks
from hdxray_fast.pretrain.config import PretrainConfig


def kept(dataset: RadiographDataset, epochs: int, config: PretrainConfig) -> np.ndarray:
    """Patches kept of each image in each epoch, ``[epochs, N]``."""
    table = np.zeros((epochs, len(dataset)), np.int64)
    for epoch in range(epochs):
        for index in tqdm(range(len(dataset)), desc=f"epoch {epoch + 1} of {epochs}", dynamic_ncols=True):
            sample = dataset[epoch, index]
            plan = plan_masks(
                sample["inside"][None], sample["valid"][None], ratio_inside=config.ratio_inside,
                ratio_outside=config.ratio_outside, predict=0.25, seed=0, index=sample["draw"][None],
            )  # fmt: skip
            table[epoch, index] = plan.keep_ids.numel()
    return table


def loads(table: np.ndarray, batch: int, ranks: int, costs: np.ndarray | None, steps: int) -> np.ndarray:
    """Patches kept by each rank in each step, ``[steps, ranks]``."""
    walks = [
        StepSampler(table.shape[1], batch, last=steps, rank=rank, world_size=ranks, costs=costs)
        for rank in range(ranks)
    ]
    rows = [[sum(table[key] for key in keys) for keys in walk] for walk in walks]
    return np.array(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="folders or manifests of radiographs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1280)
    parser.add_argument("--contour", default="network")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 64])
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources = [Source(str(path)) for data in options.data for path in list_images(data, exclude=(options.out,))]
    images, _ = fill_cache(
        options.out / "cache", sources, size=options.size, contour=options.contour, workers=worker_count(-1)
    )
    config = PretrainConfig(data="-", out="-")
    dataset = RadiographDataset(images, augmentation=Augmentation())
    table = kept(dataset, options.epochs, config)
    costs = dataset.kept_patches(config.ratio_inside, config.ratio_outside)
    report = {
        "images": len(images),
        "kept_per_image": {"min": int(table.min()), "mean": round(table.mean(), 1), "max": int(table.max())},
        "correlation_of_estimate": round(float(np.corrcoef(np.tile(costs, options.epochs), table.ravel())[0, 1]), 4),
        "rows": [],
    }
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}))
    print("| processes | images each | largest / mean, as they come | evenly | waiting, as they come | evenly |")
    print("|---|---|---|---|---|---|")
    for ranks in options.ranks:
        for batch in options.batches:
            steps = table.size // (batch * ranks)
            if not steps:
                continue
            row = {"processes": ranks, "images": batch, "steps": steps}
            for name, chosen in (("as_they_come", None), ("evenly", costs)):
                each = loads(table, batch, ranks, chosen, steps)
                row[name] = float((each.max(1) / each.mean(1)).mean())
                row[f"waiting_{name}"] = float((1 - each.mean(1) / each.max(1)).mean())
            report["rows"].append(row)
            print(
                f"| {ranks} | {batch} | {row['as_they_come']:.3f} | {row['evenly']:.3f} "
                f"| {row['waiting_as_they_come']:.1%} | {row['waiting_evenly']:.1%} |"
            )
    (options.out / "balance.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
