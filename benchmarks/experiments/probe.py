"""Does masking by the contour help? One pre-training per masking strategy and seed, then a linear probe on each.

    python benchmarks/experiments/probe.py --labels labels.csv --out results/probe           # small, on a CPU
    python benchmarks/experiments/probe.py --labels labels.csv --out results/probe --full    # ViT-B at 1280, on a GPU

Every strategy masks the same number of patches of each image, for the same steps, on the training images alone;
``none`` is the untrained encoder. The test split is looked at once per probe. Every strategy is set against random
masking and against none, by pairs. Interrupted, it goes on; finished, it reads what it measured.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from paired import paired_differences
from runs import (
    NO_PRETRAINING,
    pretrained,
    probe_auroc,
    refuse_held_out,
    split_sizes,
    training_images,
    untrained,
    write_results,
)

STRATEGIES = ("contour", "random", "rectangle", "block")
REFERENCES = ("random", NO_PRETRAINING)
SMALL = {"model": "vit_tiny_patch16", "img_size": 320, "steps": 300, "batch_size": 16}
FULL = {"model": "vit_base_patch16", "img_size": 1280, "steps": 20000, "batch_size": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, help="CSV manifest with a train and a test split")
    parser.add_argument("--images", help="folder that relative paths in the manifest start from")
    parser.add_argument("--pretrain-data", help="other radiographs to pre-train on: a folder or a manifest")
    parser.add_argument("--out", default="results/probe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="full size, for a GPU")
    for name, value in SMALL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=f"{value}, with --full {FULL[name]}")
    parser.add_argument("--workers", type=int, default=-1)
    options = parser.parse_args()

    out = Path(options.out)
    size = {name: getattr(options, name) or default for name, default in (FULL if options.full else SMALL).items()}
    if options.pretrain_data:
        refuse_held_out(options.pretrain_data, options.labels, options.images)
    data = options.pretrain_data or str(training_images(options.labels, options.images, out)[0])
    aurocs: dict[str, list[dict]] = {}
    runs: dict[str, list[Path]] = {}
    for strategy in (*STRATEGIES, NO_PRETRAINING):
        for seed in options.seeds:
            name = f"{strategy}_{seed}"
            if strategy == NO_PRETRAINING:
                encoder = partial(untrained, size["model"], size["img_size"], seed)
            else:
                encoder = partial(
                    pretrained, out / "pretrain" / name, data=data, cache=str(out / "cache"), strategy=strategy,
                    seed=seed, workers=options.workers, **size,
                )  # fmt: skip
            folder = out / "probes" / name
            found = probe_auroc(folder, encoder, options.labels, options.images, seed, workers=options.workers)
            aurocs.setdefault(strategy, []).append(found)
            runs.setdefault(strategy, []).append(folder)
    settings = {**size, "seeds": options.seeds, "images": split_sizes(options.labels, options.images)}
    if options.pretrain_data:
        settings["pretrain_data"] = options.pretrain_data
    asked = [
        (strategy, reference) for reference in REFERENCES for strategy in STRATEGIES if strategy != reference
    ]  # fmt: skip
    write_results(out, aurocs, "masked in pre-training by", settings, paired_differences(runs, asked))


if __name__ == "__main__":
    main()
