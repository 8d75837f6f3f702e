"""The fixtures `compare` (CPU: ours and one rival in turns) and `gpu` (any number of contenders); both keep rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from harness.gpu import why_no_gpu
from harness.gpu_bench import GpuBench, out_of_time
from harness.record import Comparison, once


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture(autouse=True)
def _gpu_cases_need_a_gpu(request) -> None:
    if request.node.get_closest_marker("gpu"):
        reason = why_no_gpu() or out_of_time()
        if reason:
            pytest.skip(reason)


@pytest.fixture
def gpu(benchmark) -> Iterator[GpuBench]:
    """Races on the GPU; see `GpuBench`."""
    bench = GpuBench(benchmark)
    yield bench
    bench.finish()


@pytest.fixture
def compare(benchmark, request) -> Callable[..., Comparison]:
    """Time `ours` and `rival` in turns and save the row; see `record.Comparison` for what is kept.

    ``compare(case, ours, rival, *, rival_name, bar=None, rounds=15, warmup=2, inner=1, extra=None)`` times two
    callables, once per test (a rule of pytest-benchmark). ``compare.values(case, ours, rival, *, rival_name, unit,
    bar=None, extra=None)`` keeps figures measured otherwise, peak memory for example; less is better.
    """
    bench = Path(request.node.path).stem.removeprefix("bench_")

    def keep(comparison: Comparison) -> Comparison:
        path = comparison.save()
        benchmark.extra_info.update(ratio=comparison.ratio, bar=comparison.bar, rival=comparison.rival_name)
        print(f"\n{comparison.told()} -> {path}")
        return comparison

    def timed(
        case: str,
        ours: Callable[[], Any],
        rival: Callable[[], Any],
        *,
        rival_name: str,
        bar: float | None = None,
        rounds: int = 15,
        warmup: int = 2,
        inner: int = 1,
        extra: dict[str, Any] | None = None,
    ) -> Comparison:
        for _ in range(warmup):
            ours()
            rival()
        mine: list[float] = []
        theirs: list[float] = []
        benchmark.pedantic(
            lambda: mine.append(once(ours, inner)), setup=lambda: theirs.append(once(rival, inner)), rounds=rounds
        )
        return keep(Comparison(bench, case, mine, theirs, rival_name, bar=bar, extra=extra or {}))

    def values(
        case: str,
        ours: float,
        rival: float,
        *,
        rival_name: str,
        unit: str,
        bar: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Comparison:
        if benchmark.stats is None:  # pytest-benchmark wants every user of its fixture to have timed something
            benchmark.pedantic(lambda: None, rounds=1)
        return keep(Comparison(bench, case, [ours], [rival], rival_name, unit=unit, bar=bar, extra=extra or {}))

    timed.values = values
    return timed
