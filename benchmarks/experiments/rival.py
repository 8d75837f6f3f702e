"""The strong simple rival: a timm model trained from scratch at 224 x 224, on the same split, by the same metrics.

    python benchmarks/experiments/rival.py --labels labels.csv --model resnet18 --out results/rival

Same canvases, same mild augmentation, AdamW and a cosine; the epoch is chosen on validation, the test split is looked
at once per seed. The models are set against the first, by pairs; finetuning.py sets them against fine-tuned encoders.
Interrupted, it goes on; finished, it reads what it measured. With --seconds it stops between two runs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import slices
import torch
import torch.nn.functional as F
from paired import paired_differences
from runs import SPLIT, is_finished, labels_as_kept, split_sizes, test_auroc, write_results
from slices import Slice, Unit
from tqdm.auto import tqdm

from hdxray_fast.classify.data import table_of_readable
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.classify.labels import read_labels, require_files
from hdxray_fast.classify.metrics import best_threshold, evaluate_predictions
from hdxray_fast.classify.predictions import report_predictions
from hdxray_fast.data.augment import Augmentation
from hdxray_fast.data.prepared.cache import fill_cache
from hdxray_fast.data.prepared.sources import Source
from hdxray_fast.data.radiograph_dataset import RadiographDataset
from hdxray_fast.data.reader_pool import worker_count
from hdxray_fast.data.sampler import StepSampler
from hdxray_fast.locks import RunLock
from hdxray_fast.training.schedule import rise_of, warmup_cosine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness.plain_mae import import_timm


def train(table: LabelTable, datasets: dict, model: str, seed: int, options: argparse.Namespace) -> tuple:
    """Probabilities on val and test of the epoch that is best on val."""
    import_timm()  # also beside a torchvision of another build
    import timm

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = timm.create_model(model, in_chans=1, num_classes=len(table.classes)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=0.05)
    labels = {split: torch.from_numpy(table.split(split).labels) for split in datasets}
    per_epoch = math.ceil(len(datasets["train"]) / options.batch_size)
    steps = options.epochs * per_epoch
    sampler = StepSampler(len(datasets["train"]), options.batch_size, last=steps, seed=seed)
    loader = torch.utils.data.DataLoader(datasets["train"], batch_sampler=sampler)
    best, kept = -1.0, None
    for step, batch in enumerate(tqdm(loader, desc=f"{model} seed {seed}", unit="step")):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = options.lr * warmup_cosine(step, steps, rise_of(steps, 0.05))
        target = labels["train"][batch["index"]].to(device)
        logits = network(standardised(batch).to(device))
        losses = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
        (losses * ~target.isnan()).sum().div((~target.isnan()).sum().clamp(min=1)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % per_epoch == 0:
            val = predict(network, datasets["val"], device)
            found = evaluate_predictions(
                labels["val"].numpy(), val, table.classes, table.split("val").patients, [0.5] * len(table.classes), 0
            )
            auroc = found["mean"]["auroc"]
            if auroc is not None and auroc["value"] > best:
                best, kept = auroc["value"], {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(kept)
    return predict(network, datasets["val"], device), predict(network, datasets["test"], device)


def standardised(batch: dict) -> torch.Tensor:
    scale, shift = (batch[name].view(-1, 1, 1, 1) for name in ("scale", "shift"))
    return batch["pixels"] * scale + shift


@torch.no_grad()
def predict(network: torch.nn.Module, dataset: RadiographDataset, device: str) -> np.ndarray:
    network.eval()
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=[[(0, i)] for i in range(len(dataset))])
    return torch.cat([network(standardised(batch).to(device)).sigmoid().cpu() for batch in loader]).numpy()


class Data:
    """Labels and images, read once and when they are needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @cached_property
    def read(self) -> tuple[LabelTable, dict[str, RadiographDataset]]:
        options = self.options
        table = read_labels(options.labels, images=options.images, **SPLIT)
        require_files(table, options.labels)
        images, bad = fill_cache(
            options.out / "cache",
            [Source(path) for path in table.paths],
            size=options.img_size,
            workers=worker_count(options.workers),
        )
        table, images = table_of_readable(table, images)
        print(f"{len(table)} images, {len(bad)} could not be read")
        datasets = {
            split: RadiographDataset(
                images.subset([row for row, own in enumerate(table.splits) if own == split]),
                augmentation=Augmentation() if split == "train" else None,
            )
            for split in ("train", "val", "test")
        }
        return table, datasets


def train_run(folder: Path, model: str, seed: int, data: Data) -> None:
    """Train a model; test metrics and predictions go to the folder."""
    table, datasets = data.read
    val, test = train(table, datasets, model, seed, data.options)
    truth = table.split("val").labels
    thresholds = [best_threshold(truth[:, c], val[:, c]) for c in range(len(table.classes))]
    report_predictions(folder, table.split("test"), test, thresholds)


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
    """``arguments`` in place of those of the command line; ``clock`` is that of ``--seconds``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    slices.add_options(parser, "results/rival")
    parser.add_argument("--model", nargs="+", default=["resnet18", "vit_tiny_patch16_224"], help="names in timm")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-4)
    options = parser.parse_args(arguments)
    data, piece = Data(options), Slice(options.seconds, clock)
    runs = {model: [options.out / f"{model}_{seed}" for seed in options.seeds] for model in options.model}
    settings = {name: getattr(options, name) for name in ("img_size", "epochs", "batch_size", "lr")}
    with RunLock(options.out):
        kept = {**settings, "labels": labels_as_kept(options.labels, options.images)}
        slices.begin(options.out, kept, "*_*/metrics.json")
        piece.work(
            [
                Unit(folder.name, partial(is_finished, folder), partial(train_run, folder, model, seed, data))
                for model, folders in runs.items()
                for seed, folder in zip(options.seeds, folders, strict=True)
            ]
        )
        aurocs = {model: [test_auroc(folder) for folder in folders] for model, folders in runs.items()}
        told = {
            **settings, "model": options.model, "seeds": options.seeds,
            "images": split_sizes(options.labels, options.images),
        }  # fmt: skip
        asked = [(model, options.model[0]) for model in options.model[1:]]
        write_results(options.out, aurocs, "trained from scratch", told, paired_differences(runs, asked))


if __name__ == "__main__":
    main()
