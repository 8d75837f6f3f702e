"""``kill -9`` at random moments of ``pretrain``: the run must end as one that was never interrupted.

    python benchmarks/reliability/kill_pretrain.py --data XRAYS --kills 50 --out results/kill_pretrain

Each start is a process of its own that goes on with ``resume=auto`` and is killed after a random time, wherever it is:
preparing canvases, reading a checkpoint, in a step, writing a checkpoint, in the log. Compares the log line by line
(but for the speed), every tensor of the model, and the last checkpoint with those of a run left alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from hdxray_fast.config import PretrainConfig
from hdxray_fast.files import written_whole
from hdxray_fast.pretrain import run_pretraining

MODEL = {"model": "vit_tiny_patch16", "img_size": 160, "decoder_embed_dim": 64, "decoder_depth": 1}
QUIET = {"tensorboard": False, "picture_every": 10, "threads": 1, "workers": 0, "contour": "classical"}


# what a run imports on its way: loaded before the fork, so that a process trains for most of its short life
AHEAD = ("accelerate.tracking", "loky", "safetensors.torch", "torch._dynamo", "torch.optim", "torch.utils.checkpoint")


def start(config: PretrainConfig) -> int:
    """Process id of a fresh process that runs it; forked, so that it begins at once."""
    child = os.fork()
    if child:
        return child
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    try:
        run_pretraining(config, progress=False)
    except BaseException as error:
        (Path(config.out) / "error.txt").write_text(repr(error))
        os._exit(1)
    os._exit(0)


def where(out: Path, since: float) -> str:
    """What the process that began at ``since`` was at when it was killed, from what it left."""
    if any(path.stat().st_mtime > since for path in (out / "checkpoints").glob(".step_*.tmp")):
        return "writing a checkpoint"
    if not (out / "log.jsonl").exists():
        return "before the first step"
    return "training, or starting again"


def log_of(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or manifest of radiographs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds that a process may live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/kill_pretrain"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    shared = {
        "data": options.data,
        "steps": options.steps,
        "batch_size": 2,
        "save_every": 5,
        "ema": 0.9,
        **MODEL,
        **QUIET,
    }
    alone, killed = options.out / "alone", options.out / "killed"
    for name in AHEAD:
        importlib.import_module(name)
    began = time.monotonic()
    assert os.waitpid(start(PretrainConfig(out=str(alone), **shared)), 0)[1] == 0, (alone / "error.txt").read_text()
    reference_seconds = time.monotonic() - began

    rng = random.Random(options.seed)
    config = PretrainConfig(out=str(killed), resume="auto", **shared)
    places: dict[str, int] = {}
    done_early = 0
    for _ in tqdm(range(options.kills), unit="kill", dynamic_ncols=True):
        since = time.time()
        child = start(config)
        time.sleep(rng.uniform(0, options.longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):  # it had ended before; nothing was killed
            done_early += 1
            continue
        place = where(killed, since)
        places[place] = places.get(place, 0) + 1
    resumed_at = len(log_of_whole_lines(killed))
    finished = os.waitpid(start(config), 0)[1] == 0

    checks = {
        "finished": finished,
        "log": log_of(alone) == log_of(killed),
        "model": same_file(alone, killed, "model/model.safetensors"),
        "checkpoint": all(
            same_file(alone, killed, f"checkpoints/step_{options.steps:08d}/{name}.safetensors")
            for name in ("model", "optimizer", "ema")
        ),
        "nothing left over": not any((killed / "checkpoints").glob(".*")) and not any(killed.glob(".*")),
    }
    report = {
        "kills": sum(places.values()),
        "ended_before_the_kill": done_early,
        "killed_while": places,
        "steps": options.steps,
        "steps_behind_at_the_last_kill": resumed_at,
        "seconds_alone": round(reference_seconds, 1),
        "same_as_uninterrupted": checks,
    }
    with written_whole(options.out / "kill_pretrain.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if all(checks.values()) else 1


def log_of_whole_lines(out: Path) -> list[str]:
    log = out / "log.jsonl"
    return [line for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


def same_file(one: Path, other: Path, name: str) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
