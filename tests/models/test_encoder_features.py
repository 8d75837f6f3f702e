"""The encoder as other projects use it: timm's verbs and values, keep, pooling, other sizes, normalisation."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.images.standardise import standardisation
from hdxray_fast.models.encoder import Encoder
from hdxray_fast.models.encoder_config import EncoderConfig
from hdxray_fast.models.pool import mean_pool
from hdxray_fast.models.positions import resample_positions, sincos_positions

SIZE, GRID = (64, 96), (4, 6)


def small(**kwargs) -> Encoder:
    options = {"img_size": SIZE, "depth": 3, "embed_dim": 48, "num_heads": 3, **kwargs}
    encoder = hx.create_encoder("vit_tiny_patch16", **options).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


@pytest.fixture
def timm_twin(plain_mae):
    """Makes timm's ViT and ours with the same random weights."""
    timm = plain_mae.import_timm()
    if timm is None:
        pytest.skip("timm is not installed")

    def make(size: tuple[int, int] = SIZE, in_chans: int = 3, **kwargs) -> tuple[torch.nn.Module, Encoder]:
        shape = {"patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3}
        theirs = timm.VisionTransformer(img_size=size, in_chans=in_chans, num_classes=0, **shape, **kwargs).eval()
        for parameter in theirs.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        tensors = theirs.state_dict()
        ours = Encoder(
            EncoderConfig(
                img_size=size,
                in_chans=in_chans,
                **shape,
                class_token="cls_token" in tensors,
                reg_tokens=tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
                qkv_bias="blocks.0.attn.qkv.bias" in tensors,
                layer_scale=1.0 if "blocks.0.ls1.gamma" in tensors else None,
                learned_positions=True,
            )
        ).eval()
        if "cls_token" in tensors and kwargs.get("no_embed_class"):
            zero = torch.zeros(1, 1, tensors["pos_embed"].shape[2])
            tensors["pos_embed"] = torch.cat([zero, tensors["pos_embed"]], dim=1)
        ours.load_state_dict(tensors)
        return theirs, ours

    return make


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"qkv_bias": False},
        {"init_values": 0.1},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ],
    ids=["plain", "no qkv bias", "layer scale", "registers", "no class token"],
)
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_values_are_those_of_timm(timm_twin, kwargs, output_fmt):
    theirs, ours = timm_twin(**kwargs)
    images = torch.randn(2, 3, *SIZE)
    options = {"indices": [0, -1], "norm": True, "output_fmt": output_fmt, "return_prefix_tokens": True}
    with torch.no_grad():
        expected, expected_maps = theirs.forward_intermediates(images, **options)
        features, maps = ours.forward_intermediates(images, **options)
        torch.testing.assert_close(ours.forward_features(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    for (grid, prefix), pair in zip(maps, expected_maps, strict=True):
        expected_grid, expected_prefix = pair if isinstance(pair, (tuple, list)) else (pair, prefix)
        torch.testing.assert_close(grid, expected_grid, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(prefix, expected_prefix, rtol=1e-4, atol=1e-5)


def test_intermediates_alone_and_early():
    encoder = small()
    images = torch.rand(1, 1, *SIZE)
    features, maps = encoder.forward_intermediates(images)
    assert len(maps) == 3
    torch.testing.assert_close(features, encoder.forward_features(images))
    (last,) = encoder.forward_intermediates(images, indices=1, intermediates_only=True)
    torch.testing.assert_close(last, maps[-1])
    stopped, (first,) = encoder.forward_intermediates(images, indices=[0], stop_early=True)
    torch.testing.assert_close(first, maps[0])
    assert not torch.allclose(stopped, features)
    for bad in ([3], [-4], [], 4, 0):
        with pytest.raises(hx.ArgumentError, match=r"^indices:"):
            encoder.forward_intermediates(images, indices=bad)
    with pytest.raises(hx.ArgumentError, match=r"^output_fmt:"):
        encoder.forward_intermediates(images, output_fmt="NHWC")


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
@pytest.mark.parametrize("reg_tokens", [0, 2])
def test_keep_contour_sees_the_chest_alone(pool, reg_tokens):
    """The kept tokens equal those of the same plan, and what lies elsewhere does not matter."""
    encoder = small(keep="contour", margin=1, pool=pool, reg_tokens=reg_tokens)
    inside = torch.zeros(2, *GRID, dtype=torch.bool)
    inside[0, 1, 1] = inside[1, 2, 4] = True
    around = torch.zeros_like(inside)
    around[0, 0:3, 0:3] = around[1, 1:4, 3:6] = True
    images = torch.rand(2, 1, *SIZE)
    elsewhere = ~around.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    changed = torch.where(elsewhere, torch.rand_like(images), images)
    pooled = encoder(images, inside=inside)
    assert pooled.shape == (2, 48)
    torch.testing.assert_close(pooled, encoder(changed, inside=inside))
    assert not torch.allclose(pooled, encoder(changed, inside=~inside))
    (grid,) = encoder.forward_intermediates(images, 1, intermediates_only=True, inside=inside)
    assert torch.equal(grid.abs().sum(1) > 0, around)
    valid = torch.ones_like(inside)
    valid[:, 0] = False
    (grid,) = encoder.forward_intermediates(images, 1, intermediates_only=True, inside=inside, valid=valid)
    assert torch.equal(grid.abs().sum(1) > 0, around & valid)


def test_keep_valid_and_contours_found_by_themselves():
    encoder = small(keep="valid", pool="mean")
    images = torch.randint(0, 256, (2, 1, *SIZE), dtype=torch.uint8)
    valid = np.zeros((2, *GRID), bool)
    valid[:, 1:3, 2:] = True
    features = encoder.forward_features(images, valid=torch.from_numpy(valid))
    assert torch.equal(features[:, 1:].abs().sum(-1) > 0, torch.from_numpy(valid).flatten(1))
    chest = small(img_size=64, keep="contour", pool="mean")
    square = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    assert chest(square).shape == (2, 48)
    with pytest.raises(hx.ArgumentError, match=r"^inside: is needed"):
        chest(square.float())
    with pytest.raises(hx.ArgumentError, match=r"^inside: got"):
        chest(square, inside=torch.zeros(2, 3, 3, dtype=torch.bool))
    with pytest.raises(hx.ArgumentTypeError, match=r"^valid: got"):
        encoder(images, valid="all")


def test_mean_pool_against_a_loop():
    values = torch.randn(12, 5)
    cu_seqlens = torch.tensor([0, 4, 5, 10], dtype=torch.int32)  # the second has a prefix alone; two rows of slack
    pooled = mean_pool(values, cu_seqlens, 1)
    torch.testing.assert_close(pooled[0], values[1:4].mean(0))
    assert pooled[1].eq(0).all()
    torch.testing.assert_close(pooled[2], values[6:10].mean(0))


def test_another_size(timm_twin):
    theirs, ours = timm_twin()
    ours.set_input_size((96, 64))
    theirs.set_input_size((96, 64))
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed, rtol=1e-4, atol=1e-5)
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)
    fixed = small()
    fixed.pos_embed.data = sincos_positions(48, GRID)
    fixed.set_input_size(128)
    torch.testing.assert_close(fixed.pos_embed, sincos_positions(48, (8, 8)))
    assert fixed.grid_size == (8, 8)
    assert fixed.config.img_size == (128, 128)
    assert not fixed.pos_embed.requires_grad
    with pytest.raises(hx.ArgumentError, match=r"^img_size:"):
        fixed.set_input_size(100)
    table = torch.randn(1, 25, 8)
    assert resample_positions(table, GRID, GRID) is table


def test_config_builds_the_same_encoder():
    encoder = small(reg_tokens=2, layer_scale=0.1, keep="contour", pool="attention", normalisation=(0.5, 0.25))
    again = Encoder(EncoderConfig(**asdict(encoder.config)))
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in encoder.state_dict().items()}
    assert again.config == encoder.config == replace(encoder.config, normalisation=[0.5, 0.25])


def test_integer_images_are_normalised():
    eight = torch.randint(0, 256, (3, 1, *SIZE), dtype=torch.uint8)
    eight[2] = 7  # flat
    sixteen = (eight.int() * 257).to(torch.uint16)
    encoder = small()
    pixels = eight.float()
    std, mean = torch.std_mean(pixels.flatten(1), 1, correction=0)
    std = std.clamp(min=1).view(-1, 1, 1, 1)
    expected = encoder((pixels - mean.view(-1, 1, 1, 1)) / std).values
    torch.testing.assert_close(encoder(eight).values, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(sixteen).values, expected, rtol=1e-4, atol=1e-4)
    fixed = small(normalisation=(0.5, 0.25))
    expected = fixed((pixels / 255 - 0.5) / 0.25).values
    torch.testing.assert_close(fixed(eight).values, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fixed(sixteen).values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 16])
@pytest.mark.parametrize("padded", [False, True])
def test_grey_levels_of_any_depth_are_standardised_as_in_pre_training(bits, padded):
    """10 and 12 bits as they come, in 16: the deviation is 1, for the encoder and for what it was trained on."""
    levels = np.random.default_rng(0).normal(0.4, 0.04, (2, 64, 64)).clip(0, 1) * (2**bits - 1)
    levels[1] = 0  # flat, but for one pixel: less than one grey level
    levels[1, 3, 3] = 1
    pixels = np.rint(levels).astype(np.uint8 if bits <= 8 else np.uint16)
    valid = np.ones((4, 4), bool)
    valid[:, 2:] = not padded
    encoder = small(img_size=64)
    grids = torch.from_numpy(valid).expand(2, -1, -1) if padded else None
    found = encoder.pixel_scale(torch.from_numpy(pixels)[:, None], grids)
    trained = np.array([standardisation(image, valid) for image in pixels]).T
    np.testing.assert_allclose(torch.stack(found).numpy(), trained, rtol=1e-4, atol=1e-6)
    if bits >= 8:
        seen = pixels[0, :, :32] if padded else pixels[0]
        assert (seen * trained[0, 0] + trained[1, 0]).std() == pytest.approx(1, abs=1e-6)
    assert trained[0, 1] == 1


@pytest.mark.parametrize("plan", [False, True])
def test_gradient_checkpointing_changes_nothing(plan):
    encoder = small(pool="mean").train()
    images = torch.rand(2, 1, *SIZE)
    inside = torch.rand(2, *GRID) < 0.5
    if plan:
        encoder.keep = "contour"
    gradients = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        encoder(images, inside=inside).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_padding_counts_for_nothing_when_it_is_told():
    """The whole canvas and a crop without its padding are normalised alike; without valid patches all count."""
    encoder = small(keep="valid")
    valid = torch.zeros(2, *GRID, dtype=torch.bool)
    valid[0, :, :2] = True
    pixels = torch.randint(60, 200, (2, 1, *SIZE), dtype=torch.uint8)
    pixels[0] *= valid[0].repeat_interleave(16, 0).repeat_interleave(16, 1)
    scale, shift = encoder.pixel_scale(pixels, valid)
    seen = pixels[0, :, :, :32].double()
    torch.testing.assert_close(1 / scale[0].double(), seen.std(correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(shift[0].double(), -seen.mean() / seen.std(correction=0), rtol=1e-5, atol=0)
    whole = encoder.pixel_scale(pixels)
    torch.testing.assert_close((scale[1], shift[1]), (whole[0][1], whole[1][1]))
    given = encoder(pixels[:1], valid=valid[:1], scale=scale[:1], shift=shift[:1]).values
    torch.testing.assert_close(encoder(pixels[:1], valid=valid[:1]).values, given)


def test_what_is_set_later_is_checked_and_saved(tmp_path):
    encoder = small()
    encoder.keep, encoder.margin, encoder.pool = "contour", 2, "mean"
    again = hx.load_model(hx.save_model(encoder, tmp_path / "model"))
    assert (again.keep, again.margin, again.pool) == ("contour", 2, "mean")
    for name, value in (("keep", "lungs"), ("margin", -1), ("pool", "max"), ("pool", "attention")):
        with pytest.raises(hx.ArgumentError, match=f"^{name}: got"):
            setattr(encoder, name, value)
    assert (encoder.keep, encoder.margin, encoder.pool) == ("contour", 2, "mean")


def test_the_same_size_again_changes_no_parameter():
    encoder = small()
    table = encoder.pos_embed
    encoder.set_input_size(SIZE)
    assert encoder.pos_embed is table


def test_indices_that_are_no_numbers_are_refused():
    for indices in ([1.5], "a", {}):
        with pytest.raises((hx.ArgumentError, hx.ArgumentTypeError), match=r"^indices: got"):
            small().forward_intermediates(torch.rand(1, 1, *SIZE), indices)


def test_no_weight_decay_names_parameters():
    names = set(small(reg_tokens=1, pool="attention").state_dict())
    assert small(reg_tokens=1, pool="attention").no_weight_decay() <= names


@pytest.mark.parametrize(
    ("culprit", "kwargs"),
    [
        ("keep", {"keep": "lungs"}),
        ("pool", {"pool": "max"}),
        ("pool", {"pool": "cls", "class_token": False}),
        ("margin", {"margin": -1}),
        ("reg_tokens", {"reg_tokens": 1.5}),
        ("normalisation", {"normalisation": (0.5, 0)}),
        ("normalisation", {"normalisation": "imagenet"}),
        ("norm_eps", {"norm_eps": 0}),
        ("layer_scale", {"layer_scale": "yes"}),
        ("class_token", {"class_token": 1}),
        ("in_chans", {"in_chans": True}),
        ("layer_scale", {"layer_scale": float("nan")}),
        ("normalisation", {"normalisation": (float("inf"), 1)}),
    ],
)
def test_bad_settings_name_the_argument(culprit, kwargs):
    with pytest.raises((hx.ArgumentError, hx.ArgumentTypeError), match=f"^{culprit}:"):
        small(**kwargs)


@pytest.mark.parametrize(
    ("hint", "kwargs"),
    [
        ("pretrained: .*weights='pretrained'", {"pretrained": True}),
        ("num_classes: .*timm.create_model", {"num_classes": 2}),
        ("global_pool: .*pool is meant, of None, 'cls', 'mean', 'attention'", {"global_pool": "avg"}),
        ("in_channels: .*in_chans is meant", {"in_channels": 3}),
        ("dept: .*is depth meant", {"dept": 3}),
        ("pool: .*is 'mean' meant", {"pool": "avg"}),
        ("name: .*; is vit_tiny_patch16 meant", {"name": "hdxray_vit_tiny_patch16_1280"}),
    ],
)
def test_what_timm_calls_it_is_told(hint, kwargs):
    with pytest.raises(hx.ArgumentError, match=f"^{hint}"):
        hx.create_encoder(**kwargs)


def test_the_options_told_are_those_that_can_be_given():
    with pytest.raises(hx.ArgumentError) as told:
        hx.create_encoder(what=1)
    names = str(told.value).partition("accepted are ")[2].split(", ")
    assert {"img_size", "in_chans", "weights", "strict", "keep", "pool"} <= set(names)
    assert "began_from" not in names and "stem" not in names


def test_a_film_without_a_wanted_patch_has_one_feature_wherever_it_stands():
    images = torch.randint(0, 256, (1, 1, *SIZE), dtype=torch.uint8).expand(3, -1, -1, -1)
    encoder = small(keep="contour", margin=0, pool="mean")
    found = encoder(images, inside=torch.zeros(3, *encoder.grid_size, dtype=torch.bool))
    torch.testing.assert_close(found, found[:1].expand_as(found))


def test_blocks_by_dinos_name_are_of_the_patches_that_are_kept():
    images = torch.randint(0, 256, (2, 1, *SIZE), dtype=torch.uint8)
    encoder = small(keep="contour")
    inside = torch.zeros(2, *encoder.grid_size, dtype=torch.bool)
    inside[:, 1, 1] = True
    (found,) = encoder.get_intermediate_layers(images, inside=inside)
    (expected,) = encoder.forward_intermediates(images, 1, output_fmt="NLC", intermediates_only=True, inside=inside)
    assert torch.equal(found, expected) and (found == 0).all(-1).any()
