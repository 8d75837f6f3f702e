"""Races between contenders: turns, failures, memory, clocks, and what a GPU benchmark keeps of them."""

from __future__ import annotations

import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from pedantic import Pedantic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "harness" / "race.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from harness import gpu, gpu_bench, record  # noqa: E402
from harness.cases import CASES  # noqa: E402
from harness.race import Contender, best, race, reason  # noqa: E402


class FakeClock:
    """A clock that counts calls instead of seconds: call number n takes as long as it says itself."""

    device, hold = "cpu", True

    def __init__(self, lost_after: str | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self.lost_after, self.lost = lost_after, False
        self.in_use, self.most = 100, 100

    def sample(self, call, first, inner, host_seconds=0.0):
        seconds = [call(i) for i in range(first, first + inner)]
        self.log.append((getattr(call, "name", ""), first))
        return sum(seconds) / inner

    def settle(self):
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")

    def reset_peak(self):
        self.most = self.in_use
        return self.in_use

    def peak(self):
        return self.most


def takes(seconds: float):
    """``build()`` of a contender whose every call takes that long."""
    return lambda: lambda _: seconds


def fails(message: str, after: int = 0):
    calls = []

    def call(i):
        calls.append(i)
        if len(calls) > after:
            raise RuntimeError(message)
        return 1e-3

    return lambda: call


# --- races ------------------------------------------------------------------------------------------------------------
def test_contenders_take_turns_and_short_calls_are_sampled_in_a_row():
    clock, order = FakeClock(), []

    def build(name, seconds):
        def call(i):
            order.append((name, i))
            return seconds

        return call

    outcomes = race(
        [Contender("slow", partial(build, "slow", 4e-3)), Contender("fast", partial(build, "fast", 1e-4))],
        clock, rounds=6, seconds=100.0, sets=2,
    )  # fmt: skip
    assert [len(o.samples) for o in outcomes.values()] == [6, 6]
    assert outcomes["slow"].median == 4e-3
    assert outcomes["fast"].median == pytest.approx(1e-4)
    turns = order[-6 * 11 :]  # a round is one call of the slow one and ten of the fast one
    assert [name for name, _ in turns] == (["slow"] + ["fast"] * 10) * 6
    assert [i for name, i in turns if name == "fast"] == list(range(60))  # input sets go on rotating


def test_a_failing_contender_keeps_its_reason_and_loses_nobody():
    field = [
        Contender("cannot be built", lambda: 1 / 0),
        Contender("fine", takes(2e-3)),
        Contender("fails later", fails("out of luck", after=9)),
        Contender("wrong", takes(1e-3)),
        Contender("nan", takes(1e-3)),
        Contender("unchecked", takes(3e-3), checked=False),
    ]
    errors = {"fine": 0.01, "fails later": 0.0, "wrong": 0.5, "nan": math.nan}
    outcomes = race(field, FakeClock(), check=lambda _, name: errors[name], rounds=8, seconds=100.0)
    assert outcomes["cannot be built"].failed == "ZeroDivisionError: division by zero"
    assert len(outcomes["fine"].samples) == len(outcomes["unchecked"].samples) == 8
    assert "out of luck" in outcomes["fails later"].failed
    assert not outcomes["fails later"].samples
    assert "wrong result: relative error 0.5" in outcomes["wrong"].failed
    assert "nan" in outcomes["nan"].failed
    assert best(outcomes, ["wrong", "unchecked", "fine", "nobody"]).name == "fine"
    assert best(outcomes, ["wrong"]) is None


def test_a_lost_device_is_said_and_ends_the_race_with_what_is_known():
    clock = FakeClock()

    def loses_device():
        clock.lost = True
        raise RuntimeError("CUDA error")

    field = [Contender("first", takes(2e-3)), Contender("breaks it", loses_device), Contender("last", takes(1e-3))]
    outcomes = race(field, clock, rounds=5)
    assert outcomes["last"].failed.startswith("not run: the device was lost by breaks it (RuntimeError: an illegal")
    assert "CUDA error" in outcomes["breaks it"].failed
    assert len(outcomes["first"].samples) == 5  # a clock that still answers goes on


def test_memory_is_what_building_and_calling_add():
    clock = FakeClock()

    def prepare():
        clock.in_use += 1000  # inputs in another layout: not the contender's
        return "prepared"

    def build(prepared):
        assert prepared == "prepared"
        clock.in_use += 30

        def call(_):
            clock.most = max(clock.most, clock.in_use + 7)
            return 1e-3

        return call

    assert race([Contender("a", build, prepare=prepare)], clock)["a"].peak_bytes == 37


def test_rounds_fit_the_time_given_but_are_never_too_few():
    assert len(race([Contender("a", takes(1.0))], FakeClock(), rounds=50, seconds=0.1)["a"].samples) == 5
    assert len(race([Contender("a", takes(0.01))], FakeClock(), rounds=50, seconds=0.2)["a"].samples) == 19


def test_reasons_are_one_short_line():
    assert reason(ValueError("a\n  b")) == "ValueError: a b"
    assert len(reason(ValueError("x" * 9999))) <= 400


# --- clocks and rates -------------------------------------------------------------------------------------------------
def test_host_clock_counts_what_a_call_takes():
    seconds = gpu.HostClock().sample(lambda _: time.sleep(0.01), 0, 3)
    assert 0.01 <= seconds < 0.1


def test_input_sets_outlast_the_cache():
    l2 = 50 * 2**20
    for nbytes in (1, 10 * 2**20, 42 * 2**20, 10**9):
        sets = gpu.input_sets(nbytes, l2)
        assert 2 <= sets <= gpu.MAX_SETS
        assert sets == gpu.MAX_SETS or sets * nbytes >= 3 * l2


def test_rates_are_shares_of_the_limits():
    limits = {"copy_gb_s": 3000.0, "matmul_bf16_tflops": 800.0}
    assert gpu.rate(1e-3, limits, flops=4e11, nbytes=1.5e9) == pytest.approx(
        {"tflops": 400, "of_matmul": 0.5, "gb_s": 1500, "of_copy": 0.5}
    )
    assert gpu.rate(1.0, limits) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_reason_for_no_gpu_is_named():
    assert "CUDA" in gpu.why_no_gpu()


# --- what a GPU benchmark keeps ---------------------------------------------------------------------------------------
@pytest.fixture
def bench(tmp_path, monkeypatch) -> gpu_bench.GpuBench:
    """A `GpuBench` with the host's clock, made-up limits and a results folder of its own."""
    limits = {"copy_gb_s": 3000.0, "matmul_bf16_tflops": 800.0}
    monkeypatch.setattr(gpu_bench, "limits", lambda: limits)
    monkeypatch.setattr(gpu_bench, "l2_bytes", lambda: 50 * 2**20)
    monkeypatch.setattr(gpu_bench, "CudaClock", lambda hold: FakeClock())
    monkeypatch.setattr(record, "device_info", lambda kind: {"kind": kind, "name": "NVIDIA Test 1"})
    save = record.Comparison.save
    monkeypatch.setattr(record.Comparison, "save", lambda self: save(self, tmp_path))
    return gpu_bench.GpuBench(Pedantic())


def kept(folder: Path, name: str) -> dict[str, dict]:
    rows = json.loads((folder / "nvidia-test-1" / f"{name}.json").read_text())["rows"]
    return {row["case"]: row for row in rows}


def test_a_benchmark_keeps_rows_with_rates_and_images(bench, tmp_path, capsys):
    field = [Contender("ours", takes(1e-2)), Contender("rival", takes(6e-2)), Contender("lame", fails("no kernel"))]
    outcomes = bench.race(field, check=lambda result, name: 0.0, hold=False)
    bench.row("step base cross", outcomes, "ours", ["rival", "lame"], flops=4e12, nbytes=1.5e10, items=32)
    bench.values("memory base cross", 300.0, 1000.0, "rival", "MiB")
    bench.finish()
    rows = kept(tmp_path, "gpu_mae")
    step, memory = rows[CASES["step base cross"].title], rows[CASES["memory base cross"].title]
    assert (step["ratio"], step["bar"], step["bar_met"]) == (pytest.approx(6), 5, True)
    assert step["extra"]["images"] == 32
    rate = {"tflops": 400, "of_matmul": 0.5, "gb_s": 1500, "of_copy": 0.5}
    assert step["extra"]["rate"] == pytest.approx(rate)
    assert step["extra"]["limits"]["copy_gb_s"] == 3000
    assert (memory["unit"], memory["bar_met"]) == ("MiB", True)
    said = capsys.readouterr().out
    assert "6.00x rival (bar 5: met)" in said
    assert "lame: failed: RuntimeError: no kernel" in said
    assert bench.sets(2**20) == gpu.MAX_SETS


def test_a_benchmark_whose_own_contender_failed_fails_after_its_row_is_kept(bench, tmp_path):
    outcomes = bench.race([Contender("ours", fails("bad launch")), Contender("rival", takes(1e-2))])
    bench.row("dense 64 forward", outcomes, "ours", ["rival"])
    with pytest.raises(pytest.fail.Exception, match="bad launch"):
        bench.finish()
    (row,) = kept(tmp_path, "gpu_attention").values()
    assert row["ours"]["failed"] == "failed: RuntimeError: bad launch"
    assert (row["ratio"], row["bar_met"]) == (None, False)


def test_cases_stop_to_begin_when_the_time_is_out(monkeypatch):
    monkeypatch.delenv("HDXRAY_BENCH_SECONDS", raising=False)
    assert gpu_bench.out_of_time() is None
    monkeypatch.setenv("HDXRAY_BENCH_SECONDS", "0")
    assert gpu_bench.out_of_time() == "out of time: HDXRAY_BENCH_SECONDS=0"
    monkeypatch.setenv("HDXRAY_BENCH_SECONDS", "1e9")
    assert gpu_bench.out_of_time() is None
