"""The GPU benchmarks as far as they go without a GPU: formulas, rivals and training steps."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "harness" / "race.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from harness import attention_rivals, gpu, work  # noqa: E402
from harness.attention_cases import Inputs, Shape, cross_shape, dense_shape, ragged_shape  # noqa: E402
from harness.race import race  # noqa: E402


# --- formulas ---------------------------------------------------------------------------------------------------------
def test_flops_are_those_that_torch_counts():
    """The plain MAE's, written with plain matrix products; ours embeds the kept patches only, and predicts no class."""
    from harness.mae_steps import Setting
    from harness.plain_mae import PlainMAE
    from torch.utils.flop_counter import FlopCounterMode

    setting = Setting("vit_tiny_patch16", 1, 256, "cpu", 32, 2, (("embed_dim", 48), ("depth", 3), ("num_heads", 3)))
    plain = PlainMAE((256, 256), decoder_embed_dim=32, decoder_depth=2, blocks="torch", **setting.preset)
    keep, predict = setting.counts(1.0)
    with FlopCounterMode(display=False) as counter:
        plain(torch.rand(1, 1, 256, 256), keep)
    embedding_of_hidden, prediction_of_class = 2 * predict * 256 * 48, 2 * 32 * 256
    assert setting.flops("self") / 3 == counter.get_total_flops() - embedding_of_hidden - prediction_of_class


def test_flops_of_the_cross_decoder_are_those_of_its_layers():
    from torch.utils.flop_counter import FlopCounterMode

    import hdxray_fast as hx

    model = hx.create_mae("vit_tiny_patch16", decoder="cross", img_size=256, decoder_embed_dim=32, decoder_depth=2)
    ones = torch.ones(1, 16, 16, dtype=torch.bool)
    plan = hx.plan_masks(ones, ones, 0.9, predict=0.25)
    maps = [torch.rand(plan.max_keep + 1, 192) for _ in range(13)]
    cu = torch.tensor([0, plan.max_keep + 1], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        model.decoder(maps, cu, plan)
    sizes = (plan.max_keep + 1, plan.max_predict)
    attention = 2 * work.attention_flops([sizes[1]], [sizes[0]], 1, 32, False)  # of both blocks; torch may not count it
    expected = work.cross_decoder_flops(*sizes, 192, 32, 2, 256, 13)
    assert counter.get_total_flops() in (expected, expected - attention)


def test_flops_of_the_models_at_full_size():
    """Forward GFLOP of one image at 1280 x 1280: encoder 124, cross decoder 84, self decoder 993 (ViT-B)."""
    from harness.mae_steps import Setting

    base = Setting("vit_base_patch16", 1, device="cpu")
    assert base.counts(0.25) == (640, 1440)
    assert work.encoder_flops(641, 768, 12, 256) / 1e9 == pytest.approx(124, rel=0.01)
    assert base.flops("cross") / 3e9 == pytest.approx(208, rel=0.01)
    assert base.flops("self") / 3e9 == pytest.approx(1120, rel=0.01)
    assert work.encoder_flops(6401, 768, 12, 256) / 1e9 == pytest.approx(2598, rel=0.01)
    assert work.attention_flops([6401] * 8, [6401] * 8, 16, 32, False) / 1e9 == pytest.approx(671, rel=0.01)


@pytest.mark.parametrize(
    ("patch", "pixel_bytes", "grid"),
    [(16, 1, (6, 8)), (16, 2, (3, 4)), (8, 1, (5, 8)), (24, 1, (4, 4)), (16, 4, (2, 3))],
)
def test_sectors_are_counted_as_a_byte_map_would(patch, pixel_bytes, grid):
    gh, gw = grid
    generator = torch.Generator().manual_seed(1)
    kept = [torch.randperm(gh * gw, generator=generator)[:n].sort().values for n in (0, 5, gh * gw, 1)]
    touched = torch.zeros(len(kept), gh * patch, gw * patch * pixel_bytes, dtype=torch.bool)
    width = patch * pixel_bytes
    for image, ids in enumerate(kept):
        for i in ids.tolist():
            row, column = divmod(i, gw)
            touched[image, row * patch : (row + 1) * patch, column * width : (column + 1) * width] = True
    sectors = int(touched.reshape(-1, 32).any(1).sum())
    ids = torch.cat(kept)
    cu = torch.tensor([0, *[len(k) for k in kept]]).cumsum(0)
    assert work.patch_sectors(ids, cu, grid, patch, pixel_bytes) == sectors
    assert work.gather_bytes(ids, cu, grid, patch, pixel_bytes, 2) == (
        32 * sectors + 4 * len(ids) + 2 * len(ids) * patch**2
    )


def test_sectors_of_no_patch_and_of_rows_that_begin_within_a_sector():
    none = torch.empty(0, dtype=torch.int32)
    assert work.patch_sectors(none, torch.tensor([0, 0]), (4, 4), 16, 1) == 0
    with pytest.raises(ValueError, match="40 bytes"):
        work.patch_sectors(none, torch.tensor([0, 0]), (5, 5), 8, 1)


# --- attention --------------------------------------------------------------------------------------------------------
def test_ragged_lengths_are_those_of_contour_plans():
    shape = ragged_shape(64, 12, 64)
    assert shape == ragged_shape(64, 12, 64)
    assert len(shape.lengths_q) == 64
    assert 500 <= min(shape.lengths_q) < 600
    assert 750 < max(shape.lengths_q) <= 900
    assert len(set(shape.lengths_q)) > 40


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "shape",
    [dense_shape(2, 65, 3, 32), cross_shape(2, 33, 65, 2, 32), Shape((5, 63, 17), (5, 63, 17), 2, 32)],
    ids=["dense", "cross", "ragged"],
)
def test_rivals_compute_the_same_function(shape, training):
    """PyTorch's CPU flash backend stands for all of SDPA; those who need a GPU say so and lose nobody."""
    inputs = Inputs.make(shape, 2, training, "cpu")
    inputs.answer()
    field = attention_rivals.contenders(inputs, flex=False)
    outcomes = race(
        field, gpu.HostClock(), check=lambda r, _: inputs.error(attention_rivals.unpacked(r)), seconds=0.01, sets=2
    )
    flash = outcomes[attention_rivals.sdpa_name("flash", padded=not shape.dense)]
    assert flash.failed is None
    assert 0 < flash.error < 0.02
    assert len(flash.samples) >= 5
    assert outcomes[attention_rivals.VARLEN].failed or torch.cuda.is_available()
    if not shape.dense:
        assert outcomes[attention_rivals.UNMASKED].samples  # timed, and never held to the same result
        assert outcomes[attention_rivals.UNMASKED].error is None


def test_an_answer_of_another_function_is_wrong():
    inputs = Inputs.make(Shape((5, 63), (5, 63), 2, 32), 1, False, "cpu")
    sets = attention_rivals.pad_all(inputs)
    results = attention_rivals.unpacked(attention_rivals.unmasked(inputs, sets)(0))
    assert inputs.error(results) > 0.1  # padding was attended to
    assert math.isnan(inputs.error((torch.full_like(results[0], math.nan),)))


def test_padding_and_packing_are_inverse():
    inputs = Inputs.make(Shape((5, 1, 17), (3, 20, 4), 2, 32), 1, False, "cpu")
    q, k, _, _ = inputs.sets[0]
    assert inputs.padded(q, True).shape == (3, 17, 2, 32)
    assert torch.equal(inputs.packed(inputs.padded(q, True, 32), True), q)
    assert torch.equal(inputs.packed(inputs.padded(k, False), False), k)


# --- pixels -----------------------------------------------------------------------------------------------------------
def test_pixel_rivals_compute_the_same_function(monkeypatch):
    import bench_gpu_pixels as pixels

    import hdxray_fast as hx

    monkeypatch.setattr(pixels, "SIZE", 128)
    inside, valid = pixels.contour_grids(3, grid=8)
    plan = hx.plan_masks(inside, valid, 0.5, 0.5)
    (images,) = pixels.image_sets(1, batch=3, device="cpu")
    assert images.shape == (3, 1, 128, 128)
    rows = pixels.batch_rows(plan.keep_ids, plan.keep_cu_seqlens, 64)
    ours = hx.gather_patches(images, plan, pixels.SCALE, pixels.SHIFT, out_dtype=torch.bfloat16)
    for pick in (pixels.patch_rows, pixels.patch_rows_index_first):
        assert torch.equal(pixels.gathered(images, rows, pick), ours)

    rows = pixels.batch_rows(plan.predict_ids, plan.predict_cu_seqlens, 64)
    pred = torch.randn(len(rows), 256).bfloat16()
    ours, _ = hx.reconstruction_loss(images, pred, plan, pixels.SCALE, pixels.SHIFT)
    for pick in (pixels.patch_rows, pixels.patch_rows_index_first):
        torch.testing.assert_close(pixels.mse_loss(images, pred, rows, pick), ours)


# --- steps ------------------------------------------------------------------------------------------------------------
def test_steps_train_and_encoders_run():
    import bench_gpu_encoder as encoder
    from harness.mae_steps import Setting, not_finite, our_step, plain_step

    import hdxray_fast as hx

    setting = Setting("vit_tiny_patch16", 2, 128, "cpu", 32, 1, (("embed_dim", 48), ("depth", 2), ("num_heads", 3)))
    for step in (our_step(setting, "cross"), our_step(setting, "self"), plain_step(setting, blocks="torch")):
        losses = [step(0) for _ in range(8)]
        assert all(not_finite(loss, "") == 0 for loss in losses)
        assert losses[-1] < losses[0]  # the same masks and image over and over: it learns
    assert math.isnan(not_finite(torch.tensor(math.inf), ""))

    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    tokens = encoder.our_encoder(setting, hx.plan_all(valid))(0)
    assert tokens.shape == (2 * 65, 48)
    if encoder.import_timm() is not None:
        assert encoder.timm_encoder(setting)(0).shape == (2, 65, 48)


def test_finetuning_steps_train_on_the_patches_of_the_contour():
    import bench_gpu_encoder as encoder
    from harness.mae_steps import Setting

    setting = Setting("vit_tiny_patch16", 2, 128, "cpu", overrides=(("embed_dim", 48), ("depth", 2), ("num_heads", 3)))
    inside, valid = encoder.contour_grids(2, grid=8)
    steps = [encoder.our_finetuning(setting, inside, valid)]
    if encoder.import_timm() is not None:
        steps.append(encoder.timm_finetuning(setting))
    for step in steps:
        losses = [float(step(0)) for _ in range(12)]
        assert losses[0] == pytest.approx(math.log(2), rel=0.2)  # of a head that knows nothing
        assert losses[-1] < losses[0]


def test_the_contour_leaves_patches_out_of_a_finetuning_step(monkeypatch):
    import bench_gpu_encoder as encoder
    from harness.mae_steps import Setting

    kept, setting = [], Setting("vit_tiny_patch16", 2, 128, "cpu", overrides=(("depth", 1),))
    choose = encoder.patches_to_keep
    monkeypatch.setattr(encoder, "patches_to_keep", lambda *given: kept.append(choose(*given)) or kept[-1])
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[:, 3:5, 3:5] = True
    encoder.our_finetuning(setting, inside, torch.ones_like(inside))(0)
    assert kept[0].keep_counts.tolist() == [16, 16]  # 2 x 2 and a margin of one patch
