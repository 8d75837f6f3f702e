"""The benchmark of pre-training runs, small and without a GPU: what its figures mean, and that its rows are kept."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import pytest
import torch
from pedantic import Pedantic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "harness" / "steady.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
for package in ("accelerate", "psutil", "tqdm", "pyarrow"):
    pytest.importorskip(package)

import bench_gpu_pretrain as bench  # noqa: E402
from harness import gpu_bench, pretrain_runs, record  # noqa: E402
from harness.cases import CASES, RUNS  # noqa: E402
from harness.gpu import HostClock  # noqa: E402
from harness.mae_steps import Setting  # noqa: E402
from harness.prepared_case import chest_set  # noqa: E402
from harness.steady import Enough, Watch, cpu_seconds  # noqa: E402
from harness.table import rate_cell  # noqa: E402

from hdxray_fast.data.prepared.reading import PreparedSet  # noqa: E402
from hdxray_fast.data.radiograph_dataset import RadiographDataset  # noqa: E402

SMALL = {"img_size": 128, "decoder_embed_dim": 32, "decoder_depth": 1, "contour": "rectangle", "threads": 1}
SMALL |= {"ratio_inside": 0.8, "ratio_outside": 0.6, "compile": "off", "tensorboard": False, "workers": 0}


@pytest.fixture(scope="module")
def chests(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("chests")
    chest_set(root, 6, 128, contour="rectangle", workers=0)
    return root


def config(chests: Path, out: Path, **changes):
    return pretrain_runs.run_config(chests / "set", out, "vit_tiny_patch16", 2, **{**SMALL, **changes})


def watch_until_enough(watch: Watch, *lines: dict, step: float = 0.0) -> None:
    def tell() -> None:
        for line in lines:
            time.sleep(step)
            watch(line)

    with pytest.raises(Enough):
        tell()


# --- what is watched --------------------------------------------------------------------------------------------------
def test_steps_are_skipped_then_counted_from_line_to_line():
    watch = Watch(8, skip=3, steps=5)
    watch_until_enough(watch, *[{"data_wait_s": 9.0}] * 3, *[{"data_wait_s": 0.005}] * 9, step=0.02)
    steady = watch.steady()
    assert watch.seen == 3 + 5
    assert steady.skipped == 3
    assert len(steady.seconds) == 5
    assert 0.1 <= sum(steady.seconds) < 1
    assert steady.waiting == pytest.approx(0.025 / sum(steady.seconds))  # of the counted steps alone
    facts = steady.facts()
    assert facts["images_per_s_overall"] == pytest.approx(40 / sum(steady.seconds))
    assert facts["steps_counted"] == 5


def test_a_slow_machine_tells_what_it_has():
    watch = Watch(8, skip=1000, steps=1000, limit=0.4)
    watch_until_enough(watch, *[{}] * 100, step=0.02)
    assert 5 < watch.skipped < 15  # half of the time
    assert 5 <= len(watch.seconds) < 15
    slower = Watch(8, skip=1000, steps=1000, limit=0.0)
    watch_until_enough(slower, *[{}] * 100)
    assert (slower.skipped, len(slower.seconds)) == (1, 5)


def test_a_loop_that_does_not_tell_its_waits_has_none():
    watch = Watch(8, skip=1, steps=5)
    watch_until_enough(watch, *[{}] * 6)
    assert watch.steady().waiting is None
    short = Watch(8, skip=1, steps=5)
    for _ in range(2):
        short({})
    with pytest.raises(RuntimeError, match="ended after 2 steps, of which 1 were counted"):
        short.steady()


def spin(seconds: float, done) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass
    done.wait(30)


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_cpu_time_is_that_of_the_children_too(ended):
    spawn = multiprocessing.get_context("fork")
    done = spawn.Event()
    main, workers = cpu_seconds()
    child = spawn.Process(target=spin, args=(0.4, done))
    child.start()
    if ended:
        done.set()
        child.join(30)
    else:
        deadline = time.monotonic() + 30
        while cpu_seconds()[1] - workers < 0.38 and time.monotonic() < deadline:
            time.sleep(0.05)
    after_main, after_workers = cpu_seconds()
    done.set()
    child.join(30)
    assert 0.35 <= after_workers - workers < 1
    assert after_main - main < 0.35


# --- runs -------------------------------------------------------------------------------------------------------------
def test_a_run_that_waits_for_its_images_says_so(chests, tmp_path, monkeypatch):
    lines: list[dict] = []

    class Noting(Watch):
        def __call__(self, line):
            lines.append(line)
            super().__call__(line)

    sample = RadiographDataset.sample

    def slow_sample(*arguments):
        time.sleep(0.05)
        return sample(*arguments)

    monkeypatch.setattr(RadiographDataset, "sample", slow_sample)
    slow = pretrain_runs.our_run(config(chests, tmp_path / "slow"), Noting(2, 2, 8))
    assert min(slow.seconds) >= 0.1  # two samples: what the loop waits for is part of its step
    assert min(line["data_wait_s"] for line in lines) >= 0.1
    assert slow.waiting >= 0.99 * 0.1 * len(slow.seconds) / sum(slow.seconds)


def test_workers_are_counted_apart(chests, tmp_path, monkeypatch):
    sample = RadiographDataset.sample

    def busy_sample(*arguments):
        begin = time.process_time()
        while time.process_time() - begin < 0.05:
            pass
        return sample(*arguments)

    monkeypatch.setattr(RadiographDataset, "sample", busy_sample)
    steady = pretrain_runs.our_run(config(chests, tmp_path / "run", workers=1), Watch(2, 2, 10))
    assert steady.worker_cpu_seconds >= 0.5 * 10 * 2 * 0.05  # it may be a batch or two ahead at the begin
    assert steady.cpu_seconds_per_image >= steady.worker_cpu_seconds / 20 > 0
    assert steady.main_cpu_seconds > 0


def test_the_step_alone_is_the_step_of_the_run(chests, tmp_path):
    made = config(chests, tmp_path / "run", steps=1)
    seen = pretrain_runs.run_pretraining(made, progress=False).losses
    alone = pretrain_runs.StepAlone(made)
    losses = [float(alone()) for _ in range(12)]
    assert losses[0] == pytest.approx(seen[0], rel=1e-5)
    assert losses[-1] < losses[0]


def test_png_files_are_decoded_moved_and_normalised(chests):
    files = pretrain_runs.PngFiles(chests / "xrays", 96)
    one, again = files[0], files[0]
    assert (one.shape, one.dtype) == ((1, 96, 96), torch.float32)
    assert float(one.mean()) == pytest.approx(0, abs=1e-4)
    assert float(one.std()) == pytest.approx(1, abs=1e-2)
    assert not torch.equal(one, again)  # augmented anew
    assert len(files) == len(PreparedSet(chests / "set")) == 6


def test_the_plain_mae_learns_from_its_files(chests):
    losses: list[float] = []

    class Noting(Watch):
        def __call__(self, line):
            losses.append(line["loss"])
            super().__call__(line)

    setting = Setting("vit_tiny_patch16", 2, 128, "cpu", 32, 1)
    steady = pretrain_runs.plain_run(setting, chests / "xrays", Noting(2, 3, 12), blocks="torch", workers=0)
    assert len(steady.seconds) == 12
    assert 0 < steady.waiting < 1
    assert sum(losses[-3:]) < sum(losses[:3])


# --- the whole benchmark ----------------------------------------------------------------------------------------------
@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A `GpuBench` on the host's clock, and a function that gives the rows it kept by the keys of their cases."""
    monkeypatch.setattr(gpu_bench, "limits", lambda: {"copy_gb_s": 3000.0, "matmul_bf16_tflops": 800.0})
    monkeypatch.setattr(gpu_bench, "CudaClock", lambda hold: HostClock())
    monkeypatch.setattr(record, "device_info", lambda kind: {"kind": kind, "name": "NVIDIA Test 1"})
    save = record.Comparison.save
    monkeypatch.setattr(record.Comparison, "save", lambda self: save(self, tmp_path / "results"))

    def kept() -> dict[str, dict]:
        text = (tmp_path / "results" / "nvidia-test-1" / "gpu_pretrain.json").read_text()
        found = {row["case"]: row for row in json.loads(text)["rows"]}
        return {key: found[case.title] for key, case in CASES.items() if case.title in found}

    return gpu_bench.GpuBench(Pedantic()), kept


SHORT = {"ours": (2, 8, 20.0), "plain": (1, 5, 20.0), "device": "cpu", "blocks": "torch"}


def test_the_whole_benchmark_in_small(chests, tmp_path, rows, monkeypatch):
    monkeypatch.setenv("HDXRAY_BENCH", "quick")  # the race of the steps
    monkeypatch.setattr(bench, "quick", lambda: False)
    monkeypatch.setattr(pretrain_runs, "_peak", lambda: 2**30)  # which no CPU tells
    gpu, kept = rows
    compiled = pretrain_runs.plain_step

    def plain_step(setting, wanted, blocks, batch_of):  # what is compiled for a GPU takes minutes elsewhere
        return compiled(setting, False, blocks, batch_of)

    monkeypatch.setattr(pretrain_runs, "plain_step", plain_step)
    run = bench.Run("run base 32", "vit_tiny_patch16", 2, 500, SMALL, **SHORT)
    bench.measure(gpu, run, chests, tmp_path)
    gpu.finish()
    found = kept()
    assert set(found) == {key for key in CASES if key.startswith("run base 32")}
    for row in found.values():
        assert row["ratio"] > 0
    of_step, promise = found["run base 32, of its step"], found["run base 32"]
    assert of_step["ours"] == promise["ours"]
    assert promise["rival"]["median"] == 2 / 500
    assert promise["extra"]["steps_counted"] == promise["ours"]["rounds"] == 8
    assert promise["extra"]["images"] == promise["extra"]["batch"] == 2
    assert of_step["rival"]["name"] == bench.LAUNCHED
    cpu = found["run base 32, cpu"]
    assert cpu["ours"]["median"] == promise["extra"]["cpu_seconds_per_image"]
    assert cpu["rival"]["median"] == pytest.approx(0.008)
    assert found["run base 32, memory"]["ours"]["median"] == 1024
    assert "images/s" in rate_cell(promise)
    assert "cores busy" in rate_cell(promise)


def test_a_run_that_fails_loses_nobody_elses_figures(chests, tmp_path, rows, monkeypatch):
    monkeypatch.setenv("HDXRAY_BENCH", "quick")
    gpu, kept = rows

    def broken(*arguments, **options):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(bench, "our_run", broken)
    run = bench.Run("run small 32", "vit_tiny_patch16", 2, 900, SMALL, **SHORT)
    bench.measure(gpu, run, chests, tmp_path)
    found = kept()
    assert set(found) == {"run small 32", "run small 32, of its step", "run small 32, plain"}
    for row in found.values():
        assert row["ours"]["failed"] == "failed: RuntimeError: no kernel for this device"
        assert row["rival"]["median"] > 0
    with pytest.raises(pytest.fail.Exception, match="no kernel for this device"):
        gpu.finish()


def test_every_run_has_its_rows():
    for size, batches in RUNS.items():
        for batch, promised in batches.items():
            assert (f"run {size} {batch}" in CASES) == bool(promised)
            assert CASES[f"run {size} {batch}, of its step"].bar == 0.95
    assert RUNS["base"] == {32: 500, 16: 450}
    assert RUNS["small"] == {32: 900}
