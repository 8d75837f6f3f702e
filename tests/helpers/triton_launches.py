"""What launches ask of Triton's compiler on an H100, without one: a driver that says it is one, and no launch.

Run by test_compile_kernels.py in a process of its own; prints JSON.
"""

from __future__ import annotations

import json

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hdxray_fast.ops.triton import attention as kernels
from hdxray_fast.ops.triton import configs


class Hopper:
    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def main() -> None:
    driver.set_active(Hopper())
    compiled, run = {}, JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        found = run(self, *arguments, grid=grid, warmup=True, **options)
        kind = "pointers" if options.get("TMA") in (None, False) else "tma"
        signature = dict(found.src.signature)
        divisible = sorted(signature_name(found.src, key) for key, attributes in found.src.attrs.items() if attributes)
        compiled.setdefault(f"{self.fn.__name__} {kind}", {})[found.hash] = [signature, divisible]
        return found

    JITFunction.run = compile_only
    kernels._arch = lambda device: ("sm90", "no device")
    every = {kernel: configs.candidates(kernel, 64, "bf16", "sm90") for kernel in configs.KERNELS}
    tma = {kernel: next(c for c in found if c.tma) for kernel, found in every.items()}
    for lengths in ([1, 64, 65], [7, 0, 1, 100], [16, 16], [1], [129, 0, 128, 33, 5, 2]):
        qkv = torch.randn(sum(lengths), 3, 4, 64).bfloat16()
        cu = torch.tensor([0, *lengths]).cumsum(0).int()
        step(qkv.unbind(1), (cu, cu, max(lengths), max(lengths)))
    step(torch.randn(2, 3 * 65, 4, 64).bfloat16()[:, :195].flatten(0, 1).split(130), (None, None, 65, 65))
    qkv = torch.randn(130, 3, 4, 64).bfloat16()
    step(qkv.unbind(1), (cu, cu, 129, 129), tma)
    print(json.dumps(compiled))


def signature_name(source, key: tuple[int, ...]) -> str:
    return source.fn.arg_names[key[0]]


def step(qkv, sides, chosen=None) -> None:
    chosen = chosen or dict.fromkeys(configs.KERNELS)
    q, k, v = qkv
    out, lse = kernels.forward(q, k, v, *sides, 0.125, config=chosen["forward"])
    grad = torch.randn_like(out)
    kernels.backward(grad, q, k, v, out, lse, *sides, 0.125, dq_config=chosen["dq"], dkdv_config=chosen["dkdv"])


if __name__ == "__main__":
    main()
