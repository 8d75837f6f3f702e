"""``kill -9`` at random moments of a training: the run must end as one that was never interrupted.

    python benchmarks/reliability/kill_training.py pretrain --data XRAYS --kills 50 --out results/kill_pretrain
    python benchmarks/reliability/kill_training.py finetune --data labels.csv --out results/kill_finetune
    python benchmarks/reliability/kill_training.py report --data studies.csv --out results/kill_report

Each start is a process of its own that goes on with ``resume=auto`` and is killed after a random time, wherever it is:
preparing canvases or features, reading a checkpoint, in a step, validating, writing a checkpoint, in the log. Compares
the log line by line (but for the speed), the model, what was chosen and predicted, and the last checkpoint, byte by
byte, with those of a run left alone.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from hdxray_fast.files import OWNER_FILE, written_whole

QUIET = {"tensorboard": False, "threads": 1, "workers": 0, "contour": "classical", "img_size": 160, "batch_size": 2}
# what a run imports on its way: loaded before the fork, so that a process trains for most of its short life
AHEAD = (
    "accelerate.tracking", "loky", "safetensors.torch", "torch._dynamo", "torch.optim", "torch.utils.checkpoint",
    "matplotlib.backends.backend_agg", "pandas", "sklearn.metrics",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One of the trainings.

    Attributes:
        config: makes its settings.
        run: trains by them.
        settings: small ones.
        results: files that must come out the same, beside the last checkpoint; ``*`` stands for one or more.
    """

    config: Callable
    run: Callable
    settings: dict
    results: tuple[str, ...]


def training(task: str) -> Training:
    """``pretrain``, ``finetune`` or ``report``, imported only when asked for."""
    if task == "pretrain":
        from hdxray_fast.pretrain.config import PretrainConfig
        from hdxray_fast.pretrain.task import run_pretraining

        small = {"model": "vit_tiny_patch16", "decoder_embed_dim": 64, "decoder_depth": 1, "picture_every": 10}
        return Training(PretrainConfig, run_pretraining, {**small, "ema": 0.9}, ("model/*.safetensors",))
    if task == "finetune":
        from hdxray_fast.classify.config import FinetuneConfig
        from hdxray_fast.classify.finetune import run_finetuning

        small = {"model": "vit_tiny_patch16", "head": "attention", "ema": 0.9, "bootstraps": 20, "text": "none"}
        results = ("model/*.safetensors", "predictions.csv", "best.safetensors")
        return Training(FinetuneConfig, run_finetuning, small, results)
    from hdxray_fast.reports.config import ReportConfig
    from hdxray_fast.reports.run import run_report_training

    small = {
        "encoder": "vit_tiny_patch16", "encoder_lr": 1e-4, "augment": True, "decoder": "relational", "width": 64,
        "layers": 1, "heads": 4, "ffn": 64, "visual_tokens": 16, "max_length": 30, "num_beams": 1,
        "validate_every": 10, "validate_studies": 4, "validate_split": "train", "val_share": 0, "test_share": 0,
    }  # fmt: skip
    return Training(ReportConfig, run_report_training, small, ("model/**/*.safetensors", "validation.csv"))


def start(run: Callable, config) -> int:
    """Process id of a fresh process that runs it; forked, so that it begins at once."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        run(config, progress=False)
        code = 0
    except BaseException as error:
        error_file(config.out).write_text(repr(error))
    finally:
        os._exit(code)


def error_file(out: str | Path) -> Path:
    """Why a start of the run ``out`` failed."""
    return Path(f"{out}_error.txt")


def where(out: Path, since: float) -> str:
    """What the process that began at ``since`` was at when it was killed, from what it left."""
    if any(path.stat().st_mtime > since for path in (out / "checkpoints").glob(".step_*.tmp")):
        return "writing a checkpoint"
    if not (out / "log.jsonl").exists():
        return "before the first step"
    return "training, or starting again"


def log_of(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "data_wait_s")} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("pretrain", "finetune", "report"))
    parser.add_argument("--data", required=True, help="what the task reads: radiographs, labels or studies")
    parser.add_argument("--report-column", help="of a CSV of studies")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds that a process may live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/kill_training"))
    options = parser.parse_args()
    if any(options.out.glob("*")) and not (options.out / "kill_training.json").exists():
        raise SystemExit(f"--out: {options.out} holds other things; choose another folder")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    (options.out / "kill_training.json").write_text("{}")
    task = training(options.task)
    shared = {"data": options.data, "steps": options.steps, "save_every": 5, **QUIET, **task.settings}
    if options.report_column:
        shared["report_column"] = options.report_column
    alone, killed = options.out / "alone", options.out / "killed"
    for name in AHEAD:
        importlib.import_module(name)
    began = time.monotonic()
    calm = os.waitpid(start(task.run, task.config(out=str(alone), **shared)), 0)[1]
    if calm:
        raise SystemExit(f"the run left alone failed: {error_file(alone).read_text()}")
    reference_seconds = time.monotonic() - began

    rng = random.Random(options.seed)
    config = task.config(out=str(killed), resume="auto", **shared)
    places: dict[str, int] = {}
    done_early = 0
    for _ in tqdm(range(options.kills), unit="kill", dynamic_ncols=True):
        since = time.time()
        child = start(task.run, config)
        time.sleep(rng.uniform(0, options.longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:  # it had ended before; nothing was killed
            done_early += 1
            continue
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"a start after a kill failed: {error_file(killed).read_text()}")
        place = where(killed, since)
        places[place] = places.get(place, 0) + 1
    reached = len(log_of_whole_lines(killed))
    finished = os.waitpid(start(task.run, config), 0)[1] == 0

    last = f"checkpoints/step_{options.steps:08d}/*.safetensors"
    checks = {
        "finished": finished,
        "log": log_of(alone) == log_of(killed),
        **{name: same_files(alone, killed, name) for name in (*task.results, last)},
        "nothing left over": not left_over(killed),
    }
    report = {
        "task": options.task,
        "kills": sum(places.values()),
        "ended_before_the_kill": done_early,
        "killed_while": places,
        "steps": options.steps,
        "steps_in_the_log_at_the_last_kill": reached,
        "seconds_alone": round(reference_seconds, 1),
        "same_as_uninterrupted": checks,
    }
    with written_whole(options.out / "kill_training.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if all(checks.values()) else 1


def left_over(out: Path) -> list[str]:
    """Files that a killed save left; the files of locks and the mark of the folder's maker stay."""
    return sorted(path.name for path in out.rglob(".*") if not path.name.endswith((".lock", OWNER_FILE)))


def log_of_whole_lines(out: Path) -> list[str]:
    log = out / "log.jsonl"
    return [line for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


def same_files(one: Path, other: Path, pattern: str) -> bool:
    """Whether both folders have the same files by that pattern, at least one, with the same bytes."""
    names = [{str(path.relative_to(folder)) for path in folder.glob(pattern)} for folder in (one, other)]
    return (
        bool(names[0])
        and names[0] == names[1]
        and all((one / name).read_bytes() == (other / name).read_bytes() for name in names[0])
    )


if __name__ == "__main__":
    sys.exit(main())
