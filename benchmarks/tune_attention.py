"""Times the candidate configurations of the attention kernels on this GPU and writes down the fastest of each.

    python benchmarks/tune_attention.py [--seconds 200] [--workers 6]

Candidates are compiled by several processes at once, on a few tokens; then each is timed on the sizes that the model
has: the whole sequence at 64 and at 32 channels a head, and ragged visible tokens. Every time is kept in
build/tuning/<device>.json as soon as it is known, so that a run that was cut short goes on where it was; choices are
made of what was timed, for each kernel whose default is among it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from harness.attention_cases import Inputs, Shape, dense_shape, ragged_shape
from harness.gpu import CudaClock, why_no_gpu
from harness.race import reason
from harness.record import slug

ROOT = Path(__file__).parent.parent
PROGRESS = ROOT / "build" / "tuning"
ROUNDS = 9
QUIET = 60.0  # seconds in which at least one of the processes that compile must finish a candidate
TOLERANCE = 0.02  # against the default configuration's result
SHAPES: dict[str, Callable[[], Shape]] = {
    "12 x D=64, 6401 tokens": lambda: dense_shape(4, 6401, 12, 64),
    "16 x D=32, 6401 tokens": lambda: dense_shape(4, 6401, 16, 32),
    "12 x D=64, ragged": lambda: ragged_shape(64, 12, 64),
}


@dataclass(frozen=True)
class Job:
    """One candidate of one kernel on one shape."""

    kernel: str
    shape: str
    config: Any  # hdxray_fast.ops.triton.configs.Config

    @property
    def key(self) -> str:
        return json.dumps(asdict(self.config), sort_keys=True)


def jobs(candidates: Callable[..., list], kernels: tuple[str, ...], arch: str) -> Iterator[Job]:
    """All candidates: shape by shape, the forward kernel first, of each kernel the default first."""
    for name, make in SHAPES.items():
        for kernel in kernels:
            for config in candidates(kernel, make().head_dim, "bf16", arch):
                yield Job(kernel, name, config)


class Bench:
    """Runs a kernel with a configuration on one shape's packed rows."""

    def __init__(self, shape: Shape, device: str = "cuda") -> None:
        from hdxray_fast.ops.triton import attention

        self.kernels = attention
        self.inputs = Inputs.make(shape, 2, training=False, device=device)
        self.seqlens = (self.inputs.cu_q, self.inputs.cu_k, shape.max_q, shape.max_k, shape.head_dim**-0.5)
        self.forwards = [attention.forward(*s[:3], *self.seqlens) for s in self.inputs.sets]

    def call(self, kernel: str, config: Any) -> Callable[[int], tuple[torch.Tensor, ...]]:
        """``call(i)``: the forward kernel, or both backward kernels, of which the named one has `config`."""

        def forward(i: int) -> tuple[torch.Tensor, ...]:
            q, k, v, _ = self.inputs.sets[i % 2]
            return self.kernels.forward(q, k, v, *self.seqlens, config=config)

        def backward(i: int) -> tuple[torch.Tensor, ...]:
            q, k, v, grad = self.inputs.sets[i % 2]
            chosen = {f"{kernel}_config": config}
            return self.kernels.backward(grad, q, k, v, *self.forwards[i % 2], *self.seqlens, **chosen)

        return forward if kernel == "forward" else backward


def error(results: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> float:
    """Largest relative error."""
    pairs = zip(results, expected, strict=True)
    return max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs)


def seconds_of(call: Callable[[int], Any], expected: tuple[torch.Tensor, ...], clock: Any) -> float:
    """Median seconds of a call.

    Raises:
        ArithmeticError: its result is not the expected one.
    """
    found = error(call(0), expected)
    if not found <= TOLERANCE:
        raise ArithmeticError(f"wrong result: relative error {found:.3g}")
    call(1)
    clock.settle()
    begin = time.perf_counter()
    call(0)
    host = time.perf_counter() - begin
    return statistics.median(clock.sample(call, i, 1, host) for i in range(ROUNDS))


def compile_ahead(device: int, shape: str, kernel: str, config: Any) -> None:
    """Runs one candidate on a few tokens, which leaves it in Triton's cache."""
    torch.cuda.set_device(device)
    full = SHAPES[shape]()
    few = Shape((200, 65), (200, 65), full.heads, full.head_dim)
    Bench(few).call(kernel, config)(0)
    torch.cuda.synchronize()


def compile_all(todo: list[Job], workers: int, end: float) -> list[Job]:
    """Compile what there is to time, and run it once; failures show again when it is timed.

    Returns:
        What did not finish, because time was up or because it hangs: not to be run in this process.
    """
    different: dict[tuple, Job] = {(j.kernel, SHAPES[j.shape]().head_dim, j.config): j for j in todo}
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    device = torch.cuda.current_device()
    futures = {pool.submit(compile_ahead, device, j.shape, j.kernel, j.config): k for k, j in different.items()}
    waiting = set(futures)
    try:
        while waiting:
            patience = max(0.1, min(QUIET, end - time.monotonic()))
            done, waiting = concurrent.futures.wait(waiting, patience, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                if future.exception():
                    print("compiling ahead:", reason(future.exception()), flush=True)
            if not done:
                break
    finally:
        for process in list((pool._processes or {}).values()):  # their work is in the cache, or late
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
    late = {futures[future] for future in waiting}
    return [j for j in todo if (j.kernel, SHAPES[j.shape]().head_dim, j.config) in late]


def fastest(times: dict[str, float | str], default: str) -> str | None:
    """The key of the fastest configuration; None before the default is timed, or if it failed."""
    known = {key: value for key, value in times.items() if isinstance(value, float)}
    return min(known, key=known.get) if default in known else None


def tune(seconds: float, workers: int) -> int:
    """Returns the number of candidates still to be timed."""
    from hdxray_fast.ops.triton import configs

    end = time.monotonic() + seconds
    device, arch = torch.cuda.get_device_name(), configs.arch_of(torch.cuda.get_device_capability())
    if arch is None:
        raise SystemExit(f"the Triton kernels do not run on {device}")
    progress = PROGRESS / f"{slug(device)}.json"
    done: dict[str, dict[str, float | str]] = json.loads(progress.read_text()) if progress.exists() else {}
    every = list(jobs(configs.candidates, configs.KERNELS, arch))
    todo = [j for j in every if j.key not in done.get(f"{j.kernel}, {j.shape}", {})]
    late = compile_all(todo, workers, time.monotonic() + 0.6 * seconds)
    for job in late:
        print(f"{job.kernel}, {job.shape}: {job.key}: did not finish ahead of time, left out", flush=True)
    todo = [j for j in todo if j not in late]

    clock, benches, expected = CudaClock(), {}, {}
    while todo and time.monotonic() < end:
        job = todo.pop(0)
        name = f"{job.kernel}, {job.shape}"
        times = done.setdefault(name, {})
        try:
            if job.shape not in benches:
                benches.clear()
                benches[job.shape] = Bench(SHAPES[job.shape]())
            bench = benches[job.shape]
            if name not in expected:
                default = configs.candidates(job.kernel, bench.inputs.shape.head_dim, "bf16", arch)[0]
                expected[name] = bench.call(job.kernel, default)(0)
            times[job.key] = "did not return"  # what stays if it hangs: the next run leaves it out
            save(progress, done)
            times[job.key] = seconds_of(bench.call(job.kernel, job.config), expected[name], clock)
        except Exception as failure:
            times[job.key] = reason(failure)
            try:
                torch.cuda.synchronize()
            except Exception:  # the device is lost to this process: the next run goes on behind this candidate
                save(progress, done)
                raise failure from None
        print(f"{name}: {job.key}: {times[job.key]}", flush=True)
        save(progress, done)
        if not todo or todo[0].shape != job.shape or todo[0].kernel != job.kernel:  # what is known is put to use
            write_choices(configs, device, arch, done)
    write_choices(configs, device, arch, done)
    return len(todo) + len(late)


def save(progress: Path, done: dict) -> None:
    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.write_text(json.dumps(done, indent=1) + "\n")


def write_choices(configs: Any, device: str, arch: str, done: dict[str, dict[str, float | str]]) -> None:
    """The fastest of each kernel and size, into the package in use and into the sources."""
    choices = {}
    for name, times in done.items():
        kernel, shape_name = name.split(", ", 1)
        shape = SHAPES[shape_name]()
        default = Job(kernel, shape_name, configs.candidates(kernel, shape.head_dim, "bf16", arch)[0])
        key = fastest(times, default.key)
        if key:
            longest = max(shape.max_q, shape.max_k)
            choices[configs.measured_key(kernel, shape.head_dim, "bf16", longest)] = configs.Config(**json.loads(key))
    sources = ROOT / "hdxray_fast" / "ops" / "triton" / configs.MEASURED.name
    for path in {configs.MEASURED.resolve(), sources.resolve()}:
        table = json.loads(path.read_text()) if path.exists() else {}
        kept = {key: configs.Config(**fields) for key, fields in table.get(device, {}).items()}
        if choices:
            configs.write_measured(device, {**kept, **choices}, path)
            print(f"{path}: {len(choices)} choices for {device}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the attention kernels' configurations on this GPU.")
    parser.add_argument("--seconds", type=float, default=600.0, help="about how long it may take")
    parser.add_argument("--workers", type=int, default=6, help="processes that compile")
    options = parser.parse_args()
    missing = why_no_gpu()
    if missing:
        raise SystemExit(f"tuning needs a GPU: {missing}")
    left = tune(options.seconds, options.workers)
    print(f"{left} candidates are left for the next run" if left else "all candidates are timed")


if __name__ == "__main__":
    main()
