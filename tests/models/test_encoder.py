"""Encoder: presets, positions, patch embeddings against convolutions, packing of ragged batches, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from plan_helpers import make_plan, ragged_plan, single_plan

import hdxray_fast as hx
from hdxray_fast.models.layers import GeluLinear, Mlp
from hdxray_fast.models.packing import image_of_row, token_rows
from hdxray_fast.models.positions import sincos_positions
from hdxray_fast.models.presets import ENCODERS

GRID = (4, 6)
SIZE = (64, 96)


def tiny(**kwargs) -> torch.nn.Module:
    return hx.create_encoder("vit_tiny_patch16", img_size=SIZE, depth=2, embed_dim=48, num_heads=3, **kwargs).eval()


def test_presets():
    assert hx.list_encoders() == list(ENCODERS)
    sizes = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
    sizes |= {"large": (1024, 24, 16), "huge": (1280, 32, 16)}
    for size, (dim, depth, heads) in sizes.items():
        preset = ENCODERS[f"vit_{size}_patch16"]
        assert (preset["embed_dim"], preset["depth"], preset["num_heads"]) == (dim, depth, heads)
        assert (preset["patch_size"], ENCODERS[f"vit_{size}_stem64"]["patch_size"]) == (16, 64)


def test_default_encoder_is_a_vit_small_over_6400_patches():
    encoder = hx.create_encoder()
    assert encoder.grid_size == (80, 80)
    assert encoder.pos_embed.shape == (1, 6401, 384)
    assert encoder.num_features == 384
    trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    # patch embedding, class token, 12 blocks of 12 d^2 + 13 d, final norm
    assert trainable == 257 * 384 + 384 + 12 * (12 * 384**2 + 13 * 384) + 2 * 384


def test_positions_put_the_column_first():
    dim = 8
    table = sincos_positions(dim, (3, 5))[0]
    assert table.shape == (1 + 15, dim)
    assert table[0].eq(0).all()
    for row in range(3):
        for column in range(5):
            expected = []
            for position in (column, row):
                angles = [position / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            torch.testing.assert_close(table[1 + row * 5 + column], torch.tensor(expected))


@pytest.mark.parametrize("in_chans", [1, 3])
def test_patch_embedding_equals_the_convolution(in_chans):
    encoder = tiny(in_chans=in_chans)
    images = torch.rand(2, in_chans, *SIZE)
    plan = ragged_plan(GRID, [5, 9], [0, 0])
    tokens = encoder.embed(images, plan, scale=2.0, shift=-1.0)
    dense = encoder.patch_embed.proj(images * 2 - 1).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    ids = plan.keep_ids.split([5, 9])
    expected = torch.cat([encoder.cls_token[0], dense[0, ids[0]], encoder.cls_token[0], dense[1, ids[1]]])
    torch.testing.assert_close(tokens.values, expected, rtol=1e-5, atol=1e-5)
    assert tokens.cu_seqlens.tolist() == [0, 6, 16]
    assert tokens.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("in_chans", [1, 3])
def test_stem64_equals_its_convolutions(in_chans):
    encoder = hx.create_encoder(
        "vit_base_stem64", img_size=(128, 192), in_chans=in_chans, depth=1, embed_dim=32, num_heads=2
    )
    stem = encoder.patch_embed
    names = {name for name, _ in stem.named_parameters()}
    assert names == {f"{layer}.{kind}" for layer in ("conv1", "conv2", "proj") for kind in ("weight", "bias")}
    images = torch.rand(1, in_chans, 128, 192)
    maps = stem.proj(F.relu(stem.conv2(F.relu(stem.conv1(images)))))  # [1, D, 2, 3]
    expected = maps.flatten(2).transpose(1, 2)[0] + encoder.pos_embed[0, 1:]
    tokens = encoder.embed(images, make_plan([list(range(6))], [[]], (2, 3), patch_size=64))
    torch.testing.assert_close(tokens.values[1:], expected, rtol=1e-5, atol=1e-5)


def test_parameter_names_and_shapes_are_those_of_mae():
    shapes = {name: tuple(t.shape) for name, t in tiny(in_chans=3).state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (48, 3, 16, 16)
    assert shapes["cls_token"] == (1, 1, 48)
    assert shapes["pos_embed"] == (1, 25, 48)
    assert shapes["blocks.1.attn.qkv.weight"] == (144, 48)
    assert shapes["blocks.1.mlp.fc1.bias"] == (192,)
    kinds = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    expected = {"cls_token", "pos_embed"} | {
        f"{m}.{k}" for m in ("patch_embed.proj", "norm") for k in ("weight", "bias")
    }
    expected |= {f"blocks.{i}.{kind}.{k}" for i in range(2) for kind in kinds for k in ("weight", "bias")}
    assert set(shapes) == expected


def test_initialised_as_mae():
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1)
    assert encoder.patch_embed.proj.weight.abs().max() <= math.sqrt(6 / (192 + 256))  # xavier of the flattened patch
    qkv = encoder.blocks[0].attn.qkv
    assert qkv.weight.abs().max() <= math.sqrt(6 / (4 * 192))
    assert qkv.bias.eq(0).all()
    assert qkv.bias.requires_grad
    assert 0.01 < encoder.cls_token.std() < 0.03
    assert not encoder.pos_embed.requires_grad


def test_without_a_plan_all_patches_are_kept():
    encoder = tiny()
    images = torch.rand(2, 1, *SIZE)
    tokens, cu_seqlens = encoder(images)
    assert cu_seqlens.tolist() == [0, 25, 50]
    everything = [list(range(24))] * 2
    torch.testing.assert_close(tokens, encoder(images, make_plan(everything, [[], []], GRID)).values)


def test_ragged_batch_equals_one_by_one():
    encoder = tiny()
    images = torch.randint(0, 255, (5, 1, *SIZE), dtype=torch.uint8)
    plan = ragged_plan(GRID, [1, 7, 0, 24, 7], [0] * 5)
    tokens, cu_seqlens = encoder(images, plan, scale=1 / 255, shift=-0.5)
    assert cu_seqlens.tolist() == [0, 2, 10, 11, 36, 44]
    for image in range(5):
        alone = encoder(images[image : image + 1], single_plan(plan, image), scale=1 / 255, shift=-0.5).values
        together = tokens[cu_seqlens[image] : cu_seqlens[image + 1]]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_maps_end_with_the_output():
    encoder = tiny()
    images = torch.rand(2, 1, *SIZE)
    plan = ragged_plan(GRID, [3, 5], [0, 0])
    maps, cu_seqlens = encoder.forward_maps(images, plan)
    assert len(maps) == 3
    torch.testing.assert_close(maps[0], encoder.embed(images, plan).values)
    torch.testing.assert_close(maps[-1], encoder(images, plan).values)
    assert cu_seqlens.tolist() == [0, 4, 10]


def test_bfloat16_autocast_and_bfloat16_weights():
    encoder = tiny()
    images = torch.rand(2, 1, *SIZE)
    plan = ragged_plan(GRID, [3, 5], [0, 0])
    expected = encoder(images, plan).values
    with torch.autocast("cpu", torch.bfloat16):
        autocast = encoder(images, plan).values
    half = encoder.bfloat16()(images, plan).values
    assert half.dtype == torch.bfloat16
    for out in (autocast, half):
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_gelu_linear_equals_its_parts():
    x, weight, bias = torch.randn(7, 5), torch.randn(4, 5), torch.randn(4)
    for arguments in ((x, weight, bias), (x, weight, None)):
        inputs = [t.double().requires_grad_() for t in arguments if t is not None]
        padded = [*inputs, None][:3]
        torch.testing.assert_close(GeluLinear.apply(*padded), F.linear(F.gelu(padded[0]), *padded[1:]))
        assert torch.autograd.gradcheck(lambda *p: GeluLinear.apply(*[*p, None][:3]), inputs)


def test_a_replaced_linear_layer_is_called():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    mlp = Mlp(8, 16)
    x = torch.randn(3, 8)
    expected = 2 * mlp(x)
    replacement = Doubled(16, 8)
    replacement.load_state_dict(mlp.fc2.state_dict())
    mlp.fc2 = replacement
    torch.testing.assert_close(mlp(x), expected)


def test_packing_helpers():
    cu_seqlens = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    assert image_of_row(cu_seqlens, 5).tolist() == [0, 0, 2, 2, 2]
    patch_rows, cls_rows, with_cls = token_rows(cu_seqlens, 5)
    assert patch_rows.tolist() == [1, 2, 5, 6, 7]
    assert cls_rows.tolist() == [0, 3, 4]
    assert with_cls.tolist() == [0, 3, 4, 8]


@pytest.mark.parametrize(
    ("culprit", "kwargs"),
    [
        ("name", {"name": "vit_giant"}),
        ("img_size", {"img_size": 100}),
        ("img_size", {"img_size": (64, 0)}),
        ("img_size", {"img_size": 16 * 1025}),
        ("in_chans", {"in_chans": 2}),
        ("img_size", {"img_size": 64.0}),
        ("img_size", {"img_size": (64, 64, 1)}),
        ("img_size", {"img_size": None}),
        ("depth", {"depth": 0}),
        ("depth", {"depth": "12"}),
        ("mlp_ratio", {"mlp_ratio": 0}),
        ("num_heads", {"num_heads": 0}),
        ("num_heads", {"num_heads": 5}),
        ("embed_dim", {"embed_dim": 6, "num_heads": 3}),
        ("patch_size", {"name": "vit_tiny_stem64", "patch_size": 16}),
        ("drop_path", {"drop_path": 0.1}),
    ],
)
def test_bad_options_name_the_argument(culprit, kwargs):
    with pytest.raises((hx.ArgumentError, hx.ArgumentTypeError), match=rf"^{culprit}:"):
        hx.create_encoder(**{"name": "vit_tiny_patch16", "img_size": 64, "depth": 1, **kwargs})


def test_bad_calls_name_the_argument():
    encoder = tiny()
    plan = ragged_plan(GRID, [3], [0])
    for images in (torch.rand(1, 1, 64, 64), torch.rand(1, 3, *SIZE), torch.rand(1, *SIZE)):
        with pytest.raises(hx.ArgumentError, match=r"^images:.*\[B, 1, 64, 96\]"):
            encoder(images, plan)
    images = torch.rand(1, 1, *SIZE)
    for wrong in (
        ragged_plan((6, 4), [3], [0]),
        ragged_plan(GRID, [3], [0], patch_size=32),
        ragged_plan(GRID, [3, 3], [0, 0]),
    ):
        with pytest.raises(hx.ArgumentError, match=r"^plan:"):
            encoder(images, wrong)
    with pytest.raises(hx.ArgumentTypeError, match=r"^images:"):
        encoder([[1.0]], plan)
    with pytest.raises(hx.ArgumentTypeError, match=r"^plan:"):
        encoder(images, "all")
