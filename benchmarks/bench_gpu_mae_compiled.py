"""The step of bench_gpu_mae.py with our model under torch.compile; a file of its own, because compiling takes long."""

from __future__ import annotations

from functools import partial

import pytest
from harness.cases import PLAIN, PLAIN_COMPILED
from harness.gpu_bench import GpuBench
from harness.mae_steps import Setting, largest_batch, not_finite, our_step, plain_step
from harness.plain_mae import import_timm
from harness.race import Contender

pytestmark = pytest.mark.gpu


def test_compiled_step(gpu: GpuBench):
    if import_timm() is None:
        pytest.skip("the plain MAE is written with timm blocks, and timm is not installed")
    name = "vit_base_patch16"
    setting = Setting(name, largest_batch(name, (32, 16, 8)))
    field = [
        Contender("compiled", partial(our_step, setting, "cross", compiled=True)),
        Contender("eager", partial(our_step, setting, "cross")),
        Contender(PLAIN, partial(plain_step, setting)),
        Contender(PLAIN_COMPILED, partial(plain_step, setting, compiled=True)),
    ]
    outcomes = gpu.race(field, hold=False, check=not_finite, warmup=2)
    work = {"flops": setting.flops("cross"), "items": setting.batch, "extra": {"batch": setting.batch}}
    gpu.row("step base cross compiled", outcomes, "compiled", [PLAIN], **work)
    gpu.row("step base cross compiled, compiled rival", outcomes, "compiled", [PLAIN_COMPILED], **work)
