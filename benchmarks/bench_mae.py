"""A training step (forward, backward, AdamW) of the masked auto-encoder against the plain MAE, at 1280 x 1280.

Both keep 640 of 6400 patches of 16 pixels, take one image a step, and use PyTorch's fused AdamW. The plain MAE predicts
all masked patches through its self-attention decoder; ``cross`` predicts a quarter of them, ``self`` all of them. Peak
memory is taken in a process of its own for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness.pixel_cases import canvases
from harness.plain_mae import PlainMAE, import_timm

import hdxray_fast as hx
from hdxray_fast.models.presets import ENCODERS

SCALE, SHIFT = 1 / 127.5, -1.0
NUM_KEEP = 640
RIVAL = "plain MAE, timm blocks"
STEPS = 2  # of which the first brings the optimizer's state and is not measured


def chest_plan(predict: float) -> hx.MaskPlan:
    """Inside 0.95, outside 0.85, half of the grid inside: 640 patches are kept."""
    inside = torch.zeros(1, 80, 80, dtype=torch.bool)
    inside[:, 15:65, 8:72] = True
    plan = hx.plan_masks(inside, torch.ones_like(inside), 0.95, 0.85, predict=predict)
    assert plan.max_keep == NUM_KEEP
    return plan


def training_step(kind: str, name: str) -> Callable[[], None]:
    """A step of the plain MAE (``kind="plain"``) or of ours with decoder ``kind``."""
    images = canvases(1)
    if kind == "plain":
        preset = {key: ENCODERS[name][key] for key in ("embed_dim", "depth", "num_heads")}
        model = PlainMAE(**preset)

        def loss() -> torch.Tensor:
            return model(images.float() * SCALE + SHIFT, NUM_KEEP)[0]
    else:
        model = hx.create_mae(name, decoder=kind)

        def loss() -> torch.Tensor:
            return model(images, chest_plan(model.default_predict), SCALE, SHIFT).loss

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@pytest.fixture(autouse=True)
def _needs_timm() -> None:
    if import_timm() is None:
        pytest.skip("the plain MAE is written with timm blocks, and timm is not installed")


@pytest.mark.parametrize(
    ("decoder", "name", "bar"),
    [("cross", "vit_small_patch16", 8), ("cross", "vit_base_patch16", 4.5), ("self", "vit_small_patch16", 1)],
)
def test_step(compare, decoder, name, bar):
    compare(
        f"MAE step, {title(name)}, {decoder} decoder, batch 1, fp32",
        training_step(decoder, name),
        training_step("plain", name),
        rival_name=RIVAL,
        bar=bar,
        rounds=3,  # a step of the plain MAE takes a minute; medians leave out the first, with optimizer set-up
        warmup=0,
        extra={
            "tokens": 6400,
            "kept": NUM_KEEP,
            "predicted": chest_plan(0.25 if decoder == "cross" else 1).max_predict,
        },
    )


@pytest.mark.parametrize("name", ["vit_small_patch16", "vit_base_patch16"])
def test_peak_memory(compare, name):
    ours, rival = measure_memory("cross", name), measure_memory("plain", name)
    compare.values(
        f"peak memory increase of an MAE step, {title(name)}, cross decoder",
        ours["step_mib"],
        rival["step_mib"],
        rival_name=RIVAL,
        unit="MiB",
        bar=2,
        extra={"ours": ours, "rival": rival},
    )
    compare.values(
        f"peak memory of the whole training process, {title(name)}, cross decoder",
        ours["process_mib"],
        rival["process_mib"],
        rival_name=RIVAL,
        unit="MiB",
        extra={"ours": ours, "rival": rival},
    )


def title(name: str) -> str:
    return f"ViT-{name.split('_')[1][0].upper()}/16"


def measure_memory(kind: str, name: str) -> dict[str, int]:
    """Run this file as a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    # blocks of a mebibyte and more go back to the system when freed: what is resident is in use, not hoarded by malloc
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, __file__, kind, name], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_mib(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def report_memory(kind: str, name: str) -> None:
    """Peak of the later steps above what model and optimizer hold between steps, and peak of the process."""
    torch.set_num_threads(1)
    imported = memory_mib("VmRSS")
    step = training_step(kind, name)
    built = memory_mib("VmRSS")
    step()
    process, between = memory_mib("VmHWM"), memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    for _ in range(STEPS - 1):
        step()
    peak = memory_mib("VmHWM")
    figures = {"imported_mib": imported, "built_mib": built, "between_steps_mib": between}
    print(json.dumps({**figures, "step_mib": peak - between, "process_mib": max(process, peak)}))


if __name__ == "__main__":
    report_memory(*sys.argv[1:])
