"""Views on a GPU: bit for bit the CPU path for every dtype, whatever the maps hold, without waiting."""

from __future__ import annotations

import math

import pytest
import torch
from view_helpers import DTYPES, SIZES, bits, hostile_maps, images_of, maps, plan_of, table_of

import hdxray_fast as hx
from hdxray_fast.ops.view import View, view_patches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DEVICE = "cuda"


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])
@pytest.mark.parametrize(("grid", "p", "channels"), SIZES)
def test_pixels_equal_the_cpu_path_bit_for_bit(dtype, grid, p, channels):
    images, plan = images_of(dtype, grid, p, channels), plan_of(grid, p)
    there, plan_there = images.to(DEVICE), plan.to(DEVICE)
    looks = {f"turn {turn}": maps(*images.shape[2:], turn) for turn in (0.0, 5.0, 90.0)}
    for name, affine in {**looks, **hostile_maps()}.items():
        for table in {None, table_of(dtype)}:
            view = View(affine, table)
            seen = view_patches(there, plan_there, view.to(DEVICE))
            assert bits(seen) == bits(view_patches(images, plan, view)), name


@pytest.mark.sanitize
def test_maps_that_are_none_read_nothing():
    images, plan = images_of(torch.uint8, (4, 4), 16, 1).to(DEVICE), plan_of((4, 4), 16).to(DEVICE)
    for value in (math.nan, math.inf, -math.inf):
        assert not view_patches(images, plan, View(torch.full((3, 2, 3), value, device=DEVICE))).any()


def test_gather_and_loss_read_through_a_view():
    images, plan = images_of(torch.uint8, (6, 5), 16, 1), plan_of((6, 5), 16)
    view = View(maps(96, 80, 5.0), table_of(torch.uint8))
    pred = torch.randn(plan.predict_ids.numel(), 256)
    rows = hx.gather_patches(images.to(DEVICE), plan.to(DEVICE), 0.5, -1.0, view=view.to(DEVICE))
    assert bits(rows) == bits(hx.gather_patches(images, plan, 0.5, -1.0, view=view))
    gradients = []
    for device in ("cpu", DEVICE):
        given = pred.to(device).requires_grad_()
        loss, _ = hx.reconstruction_loss(images.to(device), given, plan.to(device), view=view.to(device))
        loss.backward()
        gradients.append(given.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-8)
