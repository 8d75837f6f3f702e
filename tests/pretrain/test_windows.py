"""Masks that stay within a window of the canvas."""

from __future__ import annotations

import pytest
import torch
from tiny_training import TINY_PRETRAINING

import hdxray_fast as hx
from hdxray_fast.pretrain.batches import PlannedBatch
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining
from hdxray_fast.pretrain.windows import windows

SIZE = 20  # patches of the grid


def grids() -> torch.Tensor:
    """A whole canvas, one with bars, one without radiograph."""
    valid = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    valid[0] = True
    valid[1, :, 5:12] = True
    return valid


def sides(within: torch.Tensor) -> tuple[int, int]:
    rows, columns = within.nonzero(as_tuple=True)
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def test_a_window_is_square_and_in_the_grid_and_as_its_draw_says():
    valid, places = grids(), set()
    for draw in range(60):
        draws = torch.tensor([draw, draw, draw])
        within = windows(valid, 8, 7, draws)
        assert int(within[0].sum()) == 64 and sides(within[0]) == (8, 8)
        assert sides(within[1])[0] == 8 and sides(within[1])[1] <= 7 and not (within[1] & ~valid[1]).any()
        assert not within[2].any()
        torch.testing.assert_close(windows(valid[:1], 8, 7, draws[:1])[0], within[0])  # whatever the batch
        places.add(tuple(within[0].nonzero()[0].tolist()))
    assert len(places) > 40
    assert not torch.equal(windows(valid, 8, 8, torch.arange(3)), windows(valid, 8, 7, torch.arange(3)))
    assert torch.equal(windows(valid, 99, 0, torch.arange(3)), valid)


def test_a_plan_keeps_and_predicts_within_the_window_alone():
    config = PretrainConfig(data="x", out="y", img_size=16 * SIZE, window=130, ratio_inside=0.5, ratio_outside=0.5)
    sample = {"pixels": torch.zeros(1, 16 * SIZE, 16 * SIZE), "inside": grids()[1], "valid": grids()[0]}
    batch = PlannedBatch(config, predict=1.0)([{**sample, "draw": torch.tensor(draw)} for draw in (3, 4)])
    plan, seen = batch["plan"], torch.zeros(2, SIZE * SIZE, dtype=torch.bool)
    for image in range(2):
        for which in ("keep", "predict"):
            start, end = getattr(plan, f"{which}_cu_seqlens")[image : image + 2].tolist()
            seen[image, getattr(plan, f"{which}_ids")[start:end].long()] = True
    assert torch.equal(seen.view(2, SIZE, SIZE), windows(grids()[:1].expand(2, -1, -1), 8, 0, torch.tensor([3, 4])))


def test_sides_that_are_no_window_are_refused():
    for side in (31, 321):
        with pytest.raises(hx.ConfigError, match=rf"^window: {side} is not accepted; give a side in pixels, from 32"):
            PretrainConfig(data="x", out="y", img_size=320, window=side)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_scale": 0.4}, r"^min_scale: 0\.4 is not accepted; give a scale from 0\.5 to 1$"),
        (
            {"min_scale": 0.5, "augment": False},
            "^min_scale: it is a part of the augmentation; leave it out, or augment",
        ),
    ],
)
def test_scales_that_cannot_be_seen_are_refused(settings, message):
    with pytest.raises(hx.ConfigError, match=message):
        PretrainConfig(data="x", out="y", **settings)


def test_a_run_in_windows_goes_on_as_if_never_interrupted(radiographs, tmp_path):
    for package in ("accelerate", "safetensors", "pyarrow"):
        pytest.importorskip(package)
    common = {**TINY_PRETRAINING, "data": str(radiographs), "cache": str(tmp_path / "cache"), "img_size": 64}
    common |= {
        "window": 32,
        "min_scale": 0.5,
        "ratio_inside": 0.5,
        "ratio_outside": 0.5,
        "schedule": "wsd",
        "warmup_steps": 1,
    }
    whole = run_pretraining(PretrainConfig(out=str(tmp_path / "whole"), steps=3, **common), progress=False)
    run_pretraining(PretrainConfig(out=str(tmp_path / "parts"), steps=2, **common), progress=False)
    rest = PretrainConfig(out=str(tmp_path / "parts"), steps=3, resume="auto", **common)
    assert run_pretraining(rest, progress=False).losses[-1] == whole.losses[-1]
