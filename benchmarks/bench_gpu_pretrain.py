"""Pre-training runs on the GPU, once they are under way: the loop that ``hdxray-fast pretrain`` calls, as it is.

64 drawn chests of 1280 x 1280 in a prepared set, the command's own settings (without checkpoints and pictures in the
steps that are counted). A run is held against what is promised, against its own step on one batch that lies on the
device (compiled; in a CUDA graph, and not: the faster counts), and against the plain MAE fed from PNG files by
PyTorch's DataLoader, at the same batch where that fits in memory. A step lasts from one log line to the next.

Unless the bench is quick, the plain MAE compiled is watched as well. Each run has a limit of time; rows tell how many
steps were counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.cases import CASES, PLAIN, PLAIN_COMPILED, PNG_LOADER, RUN_CPU, RUNS
from harness.gpu_bench import GpuBench, quick
from harness.mae_steps import Setting, largest_batch, not_finite
from harness.plain_mae import import_timm
from harness.prepared_case import chest_set
from harness.pretrain_runs import StepAlone, free, our_run, plain_run, run_config, told_settings
from harness.race import Contender, Outcome, reason
from harness.steady import Steady, Watch

pytestmark = pytest.mark.gpu

IMAGES = 64
THREADS = torch.get_num_threads()  # the choice of PyTorch, which the command leaves as it is
OURS, LAUNCHED, RECORDED = "pretrain", "the step alone, compiled", "the step alone, compiled, in a CUDA graph"
PNG = {PLAIN: f"{PLAIN}; {PNG_LOADER}", PLAIN_COMPILED: f"{PLAIN_COMPILED}; {PNG_LOADER}"}


@dataclass(frozen=True)
class Run:
    """What is watched; smaller ones than the defaults are for tests.

    Attributes:
        key: of its cases, ``"run base 32"``.
        promised: images a second.
        changes: settings of the run in place of the command's.
        ours, plain: steps not counted, steps counted, and seconds for both, of our run and of the plain MAE's.
        blocks: the plain MAE's.
    """

    key: str
    model: str
    batch: int
    promised: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    ours: tuple[int, int, float] = (60, 240, 60.0)
    plain: tuple[int, int, float] = (4, 30, 40.0)
    device: str = "cuda"
    blocks: str = "timm"


@pytest.fixture(scope="module")
def chests(tmp_path_factory) -> Callable[[], Path]:
    """Makes, when first asked, a folder with the prepared ``set`` and the PNG files ``xrays`` that it was made of."""

    @lru_cache(maxsize=1)
    def make() -> Path:
        root = tmp_path_factory.mktemp("chests")
        chest_set(root, IMAGES)
        return root

    return make


@pytest.mark.parametrize(
    ("size", "batch", "promised"), [(s, b, p) for s, batches in RUNS.items() for b, p in batches.items()]
)  # fmt: skip
def test_run(gpu: GpuBench, chests: Callable[[], Path], tmp_path: Path, size: str, batch: int, promised: float | None):
    pytest.importorskip("accelerate", reason="training needs the extra train: pip install 'hdxray-fast[train]'")
    shorter = {"ours": (60, 100, 15.0), "plain": (3, 10, 12.0)} if quick() else {}
    measure(gpu, Run(f"run {size} {batch}", f"vit_{size}_patch16", batch, promised, **shorter), chests(), tmp_path)


def measure(gpu: GpuBench, run: Run, chests: Path, out: Path) -> None:
    """All rows of a run; each is kept as soon as it is known."""
    torch.set_num_threads(THREADS)
    config = run_config(chests / "set", out / "run", run.model, run.batch, **run.changes)
    mine, steady = watched(OURS, run.batch, lambda: our_run(config, Watch(run.batch, *run.ours)))
    facts = {**told_settings(config), **(steady.facts() if steady else {})}
    if run.promised:
        promise = f"the promised {run.promised:.0f} images/s"
        found = {OURS: mine, promise: Outcome(promise, [run.batch / run.promised])}
        gpu.row(run.key, found, OURS, [promise], items=run.batch, extra=facts)
    keep_cpu(gpu, run, mine, steady, facts)

    alone = race_of_steps(gpu, config, run.device)
    gpu.row(f"{run.key}, of its step", {OURS: mine, **alone}, OURS, list(alone), items=run.batch, extra=facts)

    for name in (PLAIN,) if quick() else (PLAIN, PLAIN_COMPILED):
        rival, theirs = watch_plain(run, config, chests / "xrays", name)
        told = {**facts, "rival": theirs.facts() if theirs else None}
        key = f"{run.key}, plain" if name == PLAIN else f"{run.key}, plain compiled"
        gpu.row(key, {OURS: mine, rival.name: rival}, OURS, [rival.name], items=run.batch, extra=told)
        if name == PLAIN:
            batches = {"batch": run.batch, "batch_of_rival": theirs.images if theirs else None}
            keep_memory(gpu, run, mine, rival, batches)


def watched(name: str, batch: int, run: Callable[[], Steady]) -> tuple[Outcome, Steady | None]:
    """A run as a contender: seconds of a step of ``batch`` images; why there are none, if it failed."""
    try:
        steady = run()
    except Exception as error:  # whatever one does wrong is its own failure
        return Outcome(name, failed=reason(error)), None
    finally:
        free()
    samples = [seconds * batch / steady.images for seconds in steady.seconds]
    return Outcome(name, samples, peak_bytes=steady.peak_bytes), steady


def race_of_steps(gpu: GpuBench, config, device: str) -> dict[str, Outcome]:
    """The step alone, launched by the host and, on a GPU, in a CUDA graph; of one model, which is compiled once."""
    made: list[StepAlone] = []

    def step() -> StepAlone:
        made.extend([] if made else [StepAlone(config)])
        return made[0]

    field = [Contender(LAUNCHED, step)]
    if device == "cuda":
        field.append(Contender(RECORDED, lambda: step().recorded()))
    outcomes = gpu.race(field, hold=False, check=not_finite, warmup=2)
    made.clear()
    free()
    return outcomes


def watch_plain(run: Run, config, files: Path, name: str) -> tuple[Outcome, Steady | None]:
    """The plain MAE on PNG files, with our batch, or the largest below it that fits in memory."""
    full = PNG[name]
    if run.blocks == "timm" and import_timm() is None:
        return Outcome(full, failed="the plain MAE is written with timm blocks, and timm is not installed"), None

    def plain() -> Steady:
        batches = tuple(size for size in (64, 32, 16, 8, 4, 2, 1) if size <= run.batch)
        batch = largest_batch(run.model, batches) if run.device == "cuda" else run.batch
        setting = Setting(run.model, batch, config.img_size, run.device, *config.decoder_size)
        watch, compiled = Watch(batch, *run.plain), name == PLAIN_COMPILED
        return plain_run(setting, files, watch, compiled=compiled, blocks=run.blocks, workers=config.workers)

    return watched(full, run.batch, plain)


def keep_cpu(gpu: GpuBench, run: Run, mine: Outcome, steady: Steady | None, facts: dict[str, Any]) -> None:
    case = CASES.get(f"{run.key}, cpu")
    if case is not None:
        ours = steady.cpu_seconds_per_image if steady else None
        gpu.values(f"{run.key}, cpu", ours, RUN_CPU, case.rival, "s", extra=facts, failed=mine.failed)


def keep_memory(gpu: GpuBench, run: Run, mine: Outcome, rival: Outcome, batches: dict[str, Any]) -> None:
    known = mine.failed is not None or mine.peak_bytes is not None
    if known and f"{run.key}, memory" in CASES:
        ours, theirs = (None if o.peak_bytes is None else o.peak_bytes / 2**20 for o in (mine, rival))
        why = {"failed": mine.failed, "rival_failed": rival.failed}
        gpu.values(f"{run.key}, memory", ours, theirs, rival.name, "MiB", extra=batches, **why)
