"""What does resolution buy? Pre-training and a linear probe at 224, 640 and 1280 pixels, for equal epochs.

    python benchmarks/experiments/resolution.py --labels labels.csv --out results/resolution          # small, on a CPU
    python benchmarks/experiments/resolution.py --labels labels.csv --out results/resolution --full   # ViT-B, a GPU

Patches stay 16 x 16 pixels, so a larger image is more patches. Every size sees each training image equally often, and
with equal images per step. Interrupted, it goes on; finished, it reads
what it measured. Every size is set against every smaller one, by pairs.
"""

from __future__ import annotations

import argparse
import itertools
import math
from functools import partial
from pathlib import Path

from paired import paired_differences
from runs import pretrained, probe_auroc, split_sizes, training_images, write_results

SMALL = {"model": "vit_tiny_patch16", "epochs": 2, "batch_size": 8}
FULL = {"model": "vit_base_patch16", "epochs": 400, "batch_size": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, help="CSV manifest with a train and a test split")
    parser.add_argument("--images", help="folder that relative paths in the manifest start from")
    parser.add_argument("--out", default="results/resolution")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 640, 1280], help="canvas sides, pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", default="contour", help="patches that the probe looks at: all, valid or contour")
    parser.add_argument("--full", action="store_true", help="full size, for a GPU")
    for name, value in SMALL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=f"{value}, with --full {FULL[name]}")
    parser.add_argument("--workers", type=int, default=-1)
    options = parser.parse_args()

    out = Path(options.out)
    size = {name: getattr(options, name) or default for name, default in (FULL if options.full else SMALL).items()}
    data, images = training_images(options.labels, options.images, out)
    steps = math.ceil(size["epochs"] * images / size["batch_size"])
    aurocs: dict[str, list[dict]] = {}
    runs: dict[str, list[Path]] = {}
    for side in options.sizes:
        for seed in options.seeds:
            name = f"{side}_{seed}"
            encoder = partial(
                pretrained, out / "pretrain" / name, data=str(data), cache=str(out / "cache"),
                model=size["model"], img_size=side, steps=steps, batch_size=size["batch_size"], seed=seed,
                workers=options.workers,
            )  # fmt: skip
            folder = out / "probes" / name
            found = probe_auroc(
                folder, encoder, options.labels, options.images, seed, keep=options.keep,
                batch_size=2, workers=options.workers,
            )  # fmt: skip
            aurocs.setdefault(f"{side} × {side}", []).append(found)
            runs.setdefault(f"{side} × {side}", []).append(folder)
    settings = {
        **size, "steps": steps, "sizes": options.sizes, "seeds": options.seeds, "keep": options.keep,
        "images": split_sizes(options.labels, options.images),
    }  # fmt: skip
    asked = [(larger, smaller) for smaller, larger in itertools.combinations(runs, 2)]
    write_results(out, aurocs, "canvas, pixels", settings, paired_differences(runs, asked))


if __name__ == "__main__":
    main()
