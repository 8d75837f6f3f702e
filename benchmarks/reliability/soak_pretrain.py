"""A long run with flat memory: ``pretrain`` for thousands of steps, its resident memory noted at each.

    python benchmarks/reliability/soak_pretrain.py --data XRAYS --steps 2000 --out results/soak_pretrain

Checkpoints, pictures, TensorBoard and averaged weights are on. The slope is Theil and Sen's over medians of 50 steps,
after the first quarter of the run, with its 95 % interval: memory is flat if the interval holds zero or the growth over
the rest of the run is below the spread of those medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

from hdxray_fast.files import begin_anew, written_whole
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining

BLOCK = 50


def resident_mib() -> float:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or manifest of radiographs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=0, help="processes that read files")
    parser.add_argument("--out", type=Path, default=Path("results/soak_pretrain"))
    options = parser.parse_args()
    begin_anew(options.out / "run", "soak-pretrain")
    memory: list[float] = []
    files: list[int] = []

    def note(line: dict) -> None:
        memory.append(resident_mib())
        files.append(len(os.listdir("/proc/self/fd")))

    config = PretrainConfig(
        data=options.data, out=str(options.out / "run"), cache=str(options.out / "cache"), model="vit_tiny_patch16",
        img_size=96, decoder_embed_dim=64, decoder_depth=1, contour="classical", batch_size=1, steps=options.steps,
        save_every=200, picture_every=250, ema=0.999, threads=1, workers=options.workers,
    )  # fmt: skip
    result = run_pretraining(config, on_step=note)
    blocks = np.median(np.reshape(memory[: len(memory) // BLOCK * BLOCK], (-1, BLOCK)), 1)[
        options.steps // BLOCK // 4 :
    ]
    slope, _, low, high = theilslopes(blocks)  # MiB per block
    spread = float(np.std(np.diff(blocks)))
    growth = float(slope * (len(blocks) - 1))
    flat = bool(low <= 0 <= high or abs(growth) < spread)
    report = {
        "steps": len(memory),
        "finished": result.finished,
        "mib_at_step_100": round(memory[99], 1),
        "mib_at_the_end": round(memory[-1], 1),
        "largest_mib": round(max(memory), 1),
        "slope_mib_per_1000_steps": [round(1000 / BLOCK * float(value), 3) for value in (slope, low, high)],
        "spread_of_blocks_mib": round(spread, 3),
        "open_files": {"first": files[0], "last": files[-1], "largest": max(files)},
        "loss_first_last": [round(result.losses[0], 4), round(result.losses[-1], 4)],
        "flat": flat,
    }
    with written_whole(options.out / "soak_pretrain.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
