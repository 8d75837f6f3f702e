"""Clocks for the benchmarks: device time by CUDA events, with the limits of the same card measured in the same run.

A `CudaClock` times several calls in a row between two events. With ``hold`` a spinning kernel keeps the device busy
while the host launches them, so that no launch gap counts: that is the time of kernels. Without it gaps count: that is
the time of a training step. A `HostClock` does the same on a machine without a GPU, for tests of what uses a clock.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch

L2_TIMES = 3  # input sets together are at least this many times the L2 cache
MAX_SETS = 8
COPY_BYTES = 2**31  # of one buffer of the copy that measures bandwidth
MATMUL_EDGE = 8192
LONGEST_HOLD = 0.05  # seconds


def why_no_gpu() -> str | None:
    """Why GPU cases cannot run here; None if they can."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


class Clock(Protocol):
    """Times calls, and tells what memory they take."""

    device: str

    def sample(self, call: Callable[[int], Any], first: int, inner: int, host_seconds: float = 0.0) -> float: ...

    def settle(self) -> None: ...

    def reset_peak(self) -> int: ...

    def peak(self) -> int: ...


class CudaClock:
    """Device time of the current stream.

    Args:
        hold: keep the device busy while the host launches, so that only device work counts.
    """

    device = "cuda"

    def __init__(self, hold: bool = True) -> None:
        self.hold = hold
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cycles_per_second = spin_rate() if hold else 0.0

    def sample(self, call: Callable[[int], Any], first: int, inner: int, host_seconds: float = 0.0) -> float:
        """Seconds of one call, over ``call(first) .. call(first + inner - 1)`` in a row.

        Args:
            host_seconds: how long the host takes to launch one of them, so that the hold outlasts it.
        """
        torch.cuda.synchronize()
        if self.hold:
            seconds = min(1.5 * host_seconds * inner + 2e-4, LONGEST_HOLD)
            torch.cuda._sleep(int(seconds * self._cycles_per_second))
        self._start.record()
        for i in range(first, first + inner):
            call(i)
        self._stop.record()
        self._stop.synchronize()
        return self._start.elapsed_time(self._stop) * 1e-3 / inner

    def settle(self) -> None:
        """Wait for the device; raises what went wrong there."""
        torch.cuda.synchronize()

    def reset_peak(self) -> int:
        """Begin a new peak; returns the bytes in use now."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Most bytes in use at once since the last `reset_peak`."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


class HostClock:
    """Wall time of calls that end when they return; memory is not known."""

    device = "cpu"
    hold = False

    def sample(self, call: Callable[[int], Any], first: int, inner: int, host_seconds: float = 0.0) -> float:
        start = time.perf_counter()
        for i in range(first, first + inner):
            call(i)
        return (time.perf_counter() - start) / inner

    def settle(self) -> None:
        pass

    def reset_peak(self) -> int:
        return 0

    def peak(self) -> int:
        return 0


@lru_cache(maxsize=1)
def spin_rate() -> float:
    """Cycles a second of the spinning kernel, at the clock the device has under load."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = 20_000_000
    for _ in range(2):  # the first brings the clock up
        start.record()
        torch.cuda._sleep(cycles)
        stop.record()
        stop.synchronize()
    return cycles / (start.elapsed_time(stop) * 1e-3)


@lru_cache(maxsize=1)
def limits() -> dict[str, float]:
    """What the card at hand does at best, on random data: GB/s of a big copy (read plus written), bf16 TFLOP/s."""
    clock = CudaClock()
    found = {"copy_gb_s": _copy_bandwidth(clock) / 1e9, "matmul_bf16_tflops": _matmul_rate(clock) / 1e12}
    torch.cuda.empty_cache()
    return found


def _copy_bandwidth(clock: Clock) -> float:
    source = torch.randint(-(2**31), 2**31 - 1, (COPY_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_time(clock, lambda _: target.copy_(source))


def _matmul_rate(clock: Clock) -> float:
    a, b = (torch.randn(MATMUL_EDGE, MATMUL_EDGE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    return 2 * MATMUL_EDGE**3 / median_time(clock, lambda _: torch.mm(a, b, out=c))


def median_time(clock: Clock, call: Callable[[int], Any], warmup: int = 3, rounds: int = 10) -> float:
    for i in range(warmup):
        call(i)
    return statistics.median(clock.sample(call, i, 1) for i in range(rounds))


def l2_bytes() -> int:
    """Size of the second-level cache of the current device."""
    return getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0) or 50 * 2**20


def input_sets(bytes_per_call: int, l2: int) -> int:
    """How many sets of inputs to rotate through, so that none is still in the cache when its turn comes again."""
    return max(2, min(MAX_SETS, math.ceil(L2_TIMES * l2 / max(bytes_per_call, 1))))


def rate(seconds: float, limits: dict[str, float], flops: float = 0.0, nbytes: float = 0.0) -> dict[str, float]:
    """TFLOP/s and GB/s of a call, with their shares of the measured limits; only of what is given."""
    found = {}
    if flops:
        found["tflops"] = flops / seconds / 1e12
        found["of_matmul"] = found["tflops"] / limits["matmul_bf16_tflops"]
    if nbytes:
        found["gb_s"] = nbytes / seconds / 1e9
        found["of_copy"] = found["gb_s"] / limits["copy_gb_s"]
    return found
