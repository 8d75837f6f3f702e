"""What ``hdxray-fast plan`` predicts against steps that are run: CPU time of one thread.

The rate is that of the table the package brings, so run ``plan_table.py`` after bench_mae.py, and this after both.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.pretrain.plan_config import PlanConfig
from hdxray_fast.pretrain.planning import plan

CASES = [
    ("vit_tiny_patch16", "cross", 1280, 1),
    ("vit_base_patch16", "cross", 640, 2),
    ("vit_small_patch16", "cross", 640, 4),
    ("vit_tiny_patch16", "self", 640, 1),
]


@pytest.mark.parametrize(("model", "decoder", "img_size", "batch"), CASES)
def test_step(compare, model, decoder, img_size, batch):
    grid = img_size // 16
    inside = torch.zeros(batch, grid, grid, dtype=torch.bool)
    inside[:, grid // 5 : -grid // 5, grid // 8 : -grid // 8] = True
    mae = hx.create_mae(model, decoder=decoder, img_size=img_size)
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=1e-4, fused=True)
    images = torch.randint(0, 256, (batch, 1, img_size, img_size), dtype=torch.uint8)
    seconds = []
    for step in range(6):
        began = time.process_time()
        masks = hx.plan_masks(inside, torch.ones_like(inside), 0.95, 0.85, predict=mae.default_predict, epoch=step)
        mae(images, masks, 1 / 64, -2.0).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
    found = plan(
        PlanConfig(
            images=1, model=model, decoder=decoder, img_size=img_size, gpu="cpu", gpus=1, precision="fp32",
            decoder_embed_dim=512, decoder_depth=8, batch_size=batch, inside=float(inside.float().mean()), valid=1.0,
        )
    )  # fmt: skip
    assert (found.kept, found.predicted) == (masks.max_keep, masks.max_predict)
    compare.values(
        f"planned step, {model}, {decoder} decoder, {img_size}², batch {batch}, fp32, CPU time",
        statistics.median(seconds[1:]),
        batch / found.rate.images_per_second,
        rival_name="as planned",
        unit="s",
        extra={"samples": seconds, "gflop": found.flops * batch / 1e9, "from": found.rate.source},
    )
