"""The launches of the mixtures' kernels, compiled for GPUs that are not there; prints what they use as JSON.

Run by test_mixture.py in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from compile_kernels import CAPABILITY, _resources

from hdxray_fast.ops.triton import mixture as kernels


class Absent:
    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def main() -> None:
    rows, run = [], JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        found = run(self, *arguments, grid=grid, warmup=True, **options)
        rows.append({"kernel": self.fn.__name__, "arch": arch, "hash": found.hash, **_resources(found.asm["cubin"])})
        return found

    JITFunction.run = compile_only
    for arch in ("sm80", "sm90", "sm100"):
        driver.set_active(Absent(CAPABILITY[arch]))
        for dtype, count in ((torch.float32, 13), (torch.bfloat16, 13), (torch.float32, 25)):
            for tokens in (64, 100, 777):
                maps, weights = [torch.randn(tokens, 768).to(dtype) for _ in range(count)], torch.randn(8, count)
                out = kernels.forward(maps, weights, torch.bfloat16)
                kernels.backward(out, maps, weights)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
