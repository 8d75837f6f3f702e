"""A training step of the masked auto-encoder on the GPU against the plain MAE: images a second and peak memory.

1280 x 1280 bytes, 16-px patches, bf16 autocast, both decoders of ours in one race with the plain MAE; launch gaps
count. Unless the run is quick, both are held against the plain MAE compiled as well, in rows of their own. Peak memory
is of model, optimizer and step together.
"""

from __future__ import annotations

from functools import partial

import pytest
from harness.cases import PLAIN, PLAIN_COMPILED
from harness.gpu_bench import GpuBench, quick
from harness.mae_steps import Setting, largest_batch, not_finite, our_step, plain_step
from harness.plain_mae import import_timm
from harness.race import Contender

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("size", "batches"), [("base", (32, 16, 8)), ("large", (16, 8, 4))], ids=["ViT-B", "ViT-L"]
)  # fmt: skip
def test_step(gpu: GpuBench, size: str, batches: tuple[int, ...]):
    if import_timm() is None:
        pytest.skip("the plain MAE is written with timm blocks, and timm is not installed")
    name = f"vit_{size}_patch16"
    setting = Setting(name, largest_batch(name, batches))
    field = [
        Contender("cross", partial(our_step, setting, "cross")),
        Contender("self", partial(our_step, setting, "self")),
        Contender(PLAIN, partial(plain_step, setting)),
    ]
    if not quick():
        field.append(Contender(PLAIN_COMPILED, partial(plain_step, setting, compiled=True)))
    outcomes = gpu.race(field, hold=False, check=not_finite, warmup=2)
    plain = outcomes[PLAIN]
    for decoder in ("cross", "self"):
        mine = outcomes[decoder]
        keep, predict = setting.counts(0.25 if decoder == "cross" else 1.0)
        extra = {"batch": setting.batch, "tokens": setting.grid**2, "kept": keep, "predicted": predict}
        work = {"flops": setting.flops(decoder), "items": setting.batch, "extra": extra}
        gpu.row(f"step {size} {decoder}", outcomes, decoder, [PLAIN], **work)
        if PLAIN_COMPILED in outcomes:
            gpu.row(f"step {size} {decoder}, compiled rival", outcomes, decoder, [PLAIN_COMPILED], **work)
        gpu.values(
            f"memory {size} {decoder}",
            mine.peak_bytes / 2**20 if mine.samples else None,
            plain.peak_bytes / 2**20 if plain.samples else None,
            PLAIN,
            "MiB",
            extra=extra,
            failed=mine.failed,
            rival_failed=plain.failed,
        )
