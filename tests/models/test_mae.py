"""The masked auto-encoder against a plain MAE: same weights, mask and image give the same tokens, pixels and loss."""

from __future__ import annotations

import pytest
import torch
from plan_helpers import make_plan, ragged_plan, single_plan
from view_helpers import images_of, maps, table_of

import hdxray_fast as hx
from hdxray_fast.ops.view import View, view_images_ref
from hdxray_fast.weights.model_folders import load_mae_state_dict, to_mae_state_dict

SIZES = {"embed_dim": 96, "depth": 3, "num_heads": 3, "decoder_embed_dim": 64, "decoder_depth": 2}
SCALE, SHIFT = 1 / 255, -0.5


def small_mae(decoder: str = "self", img_size: tuple[int, int] = (64, 96), **kwargs) -> torch.nn.Module:
    return hx.create_mae("vit_tiny_patch16", decoder=decoder, img_size=img_size, **{**SIZES, **kwargs})


def shake(model: torch.nn.Module) -> None:
    """Move every parameter off its initial value, so that no zero bias or unit norm hides a swap."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def relative_error(ours: torch.Tensor, plain: torch.Tensor) -> float:
    return ((ours - plain).norm() / plain.norm()).item()


def masks_from_noise(noise: torch.Tensor, num_keep: int, grid_size: tuple[int, int]) -> hx.MaskPlan:
    """The plan that keeps what argsort masking of the plain MAE keeps, and predicts the rest."""
    order = noise.argsort(dim=1)
    return make_plan(order[:, :num_keep].sort().values.tolist(), order[:, num_keep:].sort().values.tolist(), grid_size)


@pytest.mark.parametrize("blocks", ["timm", "torch"])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_parity_with_plain_mae(plain_mae, blocks, norm_pix_loss, in_chans):
    if blocks == "timm" and plain_mae.import_timm() is None:
        pytest.skip("timm is not installed")
    plain = plain_mae.PlainMAE(
        (64, 96), 16, in_chans, **SIZES, decoder_num_heads=2, norm_pix_loss=norm_pix_loss, blocks=blocks
    )
    shake(plain)
    ours = small_mae(in_chans=in_chans, norm_pix_loss=norm_pix_loss)
    load_mae_state_dict(ours, plain.state_dict())

    images = torch.randint(0, 255, (2, in_chans, 64, 96), dtype=torch.uint8)
    noise = torch.rand(2, 24)
    plan = masks_from_noise(noise, 5, (4, 6))
    plain_loss, plain_pred, mask, plain_latent = plain(images.float() * SCALE + SHIFT, 5, noise)
    tokens = ours.encoder(images, plan, SCALE, SHIFT).values.unflatten(0, (2, 6))
    out = ours(images, plan, SCALE, SHIFT)

    # the plain MAE keeps patches in the order of the noise, ours in grid order
    order = noise.argsort(dim=1)[:, :5].argsort(dim=1)
    plain_tokens = plain_latent[:, 1:].gather(1, order[..., None].expand(-1, -1, 96))
    assert relative_error(tokens[:, 1:], plain_tokens) < 1e-5
    assert relative_error(tokens[:, 0], plain_latent[:, 0]) < 1e-5
    assert relative_error(out.pred, plain_pred[mask.bool()]) < 1e-5
    assert relative_error(out.loss, plain_loss) < 1e-5

    out.loss.backward()
    plain_loss.backward()
    ours_grads = {name.partition(".")[2]: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    for name, parameter in plain.named_parameters():
        if not name.endswith("pos_embed"):
            assert relative_error(ours_grads[name], parameter.grad) < 1e-4, name


@pytest.mark.slow
def test_parity_at_full_size(plain_mae):
    """1280 x 1280 in 6400 patches, 90 % masked; a short encoder and a narrow decoder for time and memory."""
    sizes = {"embed_dim": 192, "depth": 2, "num_heads": 3, "decoder_embed_dim": 64, "decoder_depth": 1}
    plain = plain_mae.PlainMAE(**sizes, decoder_num_heads=2, blocks="torch")
    ours = small_mae(img_size=(1280, 1280), **sizes)
    load_mae_state_dict(ours, plain.state_dict())
    images = torch.randint(0, 255, (1, 1, 1280, 1280), dtype=torch.uint8)
    noise = torch.rand(1, 6400)
    with torch.no_grad():
        out = ours(images, masks_from_noise(noise, 640, (80, 80)), SCALE, SHIFT)
        plain_loss, plain_pred, mask, _ = plain(images.float() * SCALE + SHIFT, 640, noise)
    assert relative_error(out.pred, plain_pred[mask.bool()]) < 1e-5
    assert relative_error(out.loss, plain_loss) < 1e-5


def test_state_dict_goes_both_ways(plain_mae):
    plain = plain_mae.PlainMAE((64, 96), 16, 1, **SIZES, decoder_num_heads=2, blocks="torch")
    ours = small_mae()
    shake(ours)
    exported = to_mae_state_dict(ours)
    assert list(exported) == list(dict.fromkeys(exported))
    plain.load_state_dict(exported, strict=True)
    again = small_mae()
    load_mae_state_dict(again, plain.state_dict())
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_ragged_batch_equals_one_by_one(decoder):
    model = small_mae(decoder)
    shake(model)
    images = torch.randint(0, 255, (4, 1, 64, 96), dtype=torch.uint8)
    scale = torch.tensor([1 / 255, 2 / 255, 1 / 255, 1 / 128])
    plan = ragged_plan((4, 6), [5, 1, 0, 9], [8, 23, 0, 3])
    out = model(images, plan, scale, SHIFT)
    assert out.pred.shape == (34, 256)
    alone = [
        model(images[b : b + 1], single_plan(plan, b), scale[b : b + 1], SHIFT) for b in range(4) if b != 2
    ]  # the third image keeps and predicts nothing
    torch.testing.assert_close(out.pred, torch.cat([o.pred for o in alone]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.patch_loss, torch.cat([o.patch_loss for o in alone]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, out.patch_loss.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_images_seen_through_a_view_are_those_of_its_picture(decoder):
    model, plan = small_mae(decoder), ragged_plan((4, 6), [3, 7, 1], [20, 5, 9])
    shake(model)
    images, view = images_of(torch.uint8, (4, 6), 16, 1), View(maps(64, 96, 5.0), table_of(torch.uint8))
    results = []
    for pixels, through in ((images, view), (view_images_ref(images, view), None)):
        model.zero_grad()
        out = model(pixels, plan, 1 / 64, -2.0, view=through)
        out.loss.backward()
        results.append([out.loss, out.patch_loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for through, plain in zip(*results, strict=True):
        assert torch.equal(through, plain)


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_every_trainable_parameter_gets_a_gradient(decoder):
    model = small_mae(decoder)
    shake(model)
    plan = ragged_plan((4, 6), [5, 9], [8, 3])
    model(torch.rand(2, 1, 64, 96), plan).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert name.endswith("pos_embed")


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize(("kept", "predicted"), [([0], [0]), ([0, 0], [0, 0]), ([0], [5]), ([5], [0])])
def test_images_without_patches_do_no_harm(decoder, kept, predicted):
    model = small_mae(decoder)
    out = model(torch.rand(len(kept), 1, 64, 96), ragged_plan((4, 6), kept, predicted))
    assert out.loss.isfinite()
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if not sum(predicted):
        assert out.loss == 0


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_bfloat16_autocast_trains(decoder):
    model = small_mae(decoder)
    plan = ragged_plan((4, 6), [5, 9], [8, 3])
    images = torch.randint(0, 255, (2, 1, 64, 96), dtype=torch.uint8)
    exact = model(images, plan, SCALE, SHIFT)
    exact.loss.backward()
    exact_grad = model.encoder.blocks[0].mlp.fc1.weight.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, plan, SCALE, SHIFT)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, exact.loss, rtol=0.02, atol=0.02)
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert relative_error(model.encoder.blocks[0].mlp.fc1.weight.grad, exact_grad) < 0.1


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_learns(decoder):
    model = small_mae(decoder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    images = torch.randint(0, 255, (2, 1, 64, 96), dtype=torch.uint8)
    plan = ragged_plan((4, 6), [8, 8], [16, 16])
    losses = []
    for _ in range(30):
        loss = model(images, plan, SCALE, SHIFT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_stem64_end_to_end():
    model = hx.create_mae(
        "vit_base_stem64",
        img_size=(128, 192),
        embed_dim=32,
        depth=1,
        num_heads=2,
        decoder_embed_dim=64,
        decoder_depth=1,
    )
    out = model(torch.rand(1, 1, 128, 192), ragged_plan((2, 3), [2], [4], patch_size=64))
    assert out.pred.shape == (4, 64 * 64)
    out.loss.backward()
    assert model.encoder.patch_embed.conv1.weight.grad.abs().max() > 0


def test_config_rebuilds_the_model():
    model = small_mae("cross", norm_pix_loss=False, decoder_num_heads=4, in_chans=3)
    again = hx.create_mae(**model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict(), strict=True)
    assert (model.default_predict, small_mae("self").default_predict) == (0.25, 1.0)


def test_default_heads_are_mae_s_for_self_and_wider_for_cross():
    for decoder, heads in (("self", 16), ("cross", 8)):
        model = hx.create_mae("vit_tiny_patch16", decoder, img_size=32, depth=1, decoder_depth=1)
        assert model.config["decoder_num_heads"] == heads


@pytest.mark.parametrize(
    ("culprit", "kwargs"),
    [
        ("decoder", {"decoder": "linear"}),
        ("decoder_depth", {"decoder_depth": 0}),
        ("decoder_depth", {"decoder_depth": 2.0}),
        ("decoder_embed_dim", {"decoder_embed_dim": 0}),
        ("decoder_num_heads", {"decoder_num_heads": 7}),
        ("decoder_embed_dim", {"decoder_embed_dim": 34}),
        ("name", {"name": "resnet50"}),
        ("img_size", {"img_size": 1281}),
    ],
)
def test_bad_options_name_the_argument(culprit, kwargs):
    with pytest.raises((hx.ArgumentError, hx.ArgumentTypeError), match=rf"^{culprit}:"):
        hx.create_mae(**{"name": "vit_tiny_patch16", "img_size": 32, "depth": 1, **kwargs})


@pytest.mark.parametrize("option", [{"pool": "mean"}, {"keep": "contour"}, {"reg_tokens": 4}, {"class_token": False}])
def test_options_of_an_encoder_alone_are_refused(option):
    with pytest.raises(hx.ArgumentError, match=f"^{next(iter(option))}: "):
        small_mae(**option)


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_an_auto_encoder_has_one_size(decoder):
    """Its encoder may take others, its decoder's positions are of one grid."""
    model = small_mae(decoder)
    model.encoder.dynamic_img_size = True
    images = torch.zeros(1, 1, 32, 96, dtype=torch.uint8)
    with pytest.raises(hx.ArgumentError, match=r"^plan: is for a 2 x 6 grid, .* 4 x 6; create .* img_size"):
        model(images, make_plan([[0, 1]], [[2, 3]], (2, 6)))


def test_the_self_decoder_refuses_to_predict_what_is_kept():
    """Its sequences have one row a patch; a cross decoder asks for any patch."""
    images = torch.randint(0, 255, (2, 1, 64, 96), dtype=torch.uint8)
    plan = make_plan([[0, 3], [1]], [[2, 3, 4], [5]], (4, 6))
    with pytest.raises(hx.ArgumentError, match=r"^plan: predicts patches that it keeps"):
        small_mae("self")(images, plan)
    assert small_mae("cross")(images, plan).pred.shape == (4, 256)


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_an_empty_batch_has_no_loss(decoder):
    plan = hx.plan_masks(torch.ones(0, 4, 6, dtype=torch.bool), torch.ones(0, 4, 6, dtype=torch.bool))
    model = small_mae(decoder)
    out = model(torch.zeros(0, 1, 64, 96, dtype=torch.uint8), plan)
    out.loss.backward()
    assert out.loss == 0 and out.pred.shape == (0, 256)
