"""Weights from elsewhere: read whole or refused by name, with a report of every tensor."""

from __future__ import annotations

import argparse
import json
import logging
import os

import pytest
import safetensors.torch as safetensors_torch
import torch
import torch.nn.functional as F

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.cli.main import main
from hdxray_fast.models.positions import resample_positions, sincos_positions
from hdxray_fast.weights.hub_retries import CLIENT, quiet_retries
from hdxray_fast.weights.load import convert
from hdxray_fast.weights.report import LoadReport

SHAPE = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere but in fixed positions."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def small(stem: str = "patch16", **options) -> hx.encoder.Encoder:
    return shaken(hx.create_encoder(f"vit_tiny_{stem}", **{"img_size": 64, **SHAPE, **options}))


def save(path, tensors, **more):
    torch.save({"model": tensors, **more}, path)
    return path


def values(encoder, images) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval().forward_features(images)


# --- layouts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whole", [True, False], ids=["whole auto-encoder", "encoder"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_mae_layout(plain_mae, tmp_path, whole, wrapped):
    """A checkpoint as facebookresearch/mae's training writes it, its features block by block."""
    mae = shaken(plain_mae.PlainMAE((64, 96), 16, 3, 48, 2, 3, 32, 1, 2, blocks="torch"))
    tensors = {n: t for n, t in mae.state_dict().items() if whole or not (n == "mask_token" or n.startswith("decoder"))}
    content = {"model": tensors, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": argparse.Namespace(lr=1)}
    torch.save(content if wrapped else tensors, tmp_path / "mae.pth")
    encoder = hx.create_encoder(weights=tmp_path / "mae.pth", img_size=(64, 96), in_chans=3, num_heads=3)
    report = encoder.load_report
    assert report.complete and report.layout.startswith("plain ViT")
    assert sorted(report.loaded) == sorted(encoder.state_dict())
    assert sorted(report.left_out) == sorted(n for n in tensors if n == "mask_token" or n.startswith("decoder"))
    assert not encoder.config.learned_positions and encoder.normalisation == "per_image"
    images = torch.rand(2, 3, 64, 96)
    noise = torch.arange(24.0).expand(2, 24)
    with torch.no_grad():
        x = torch.cat([(mae.cls_token + mae.pos_embed[:, :1]).expand(2, -1, -1),
                       mae.patch_embed(images) + mae.pos_embed[:, 1:]], dim=1)  # fmt: skip
        _, maps = encoder.eval().forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=True)
        for block, (grid, prefix) in zip(mae.blocks, maps, strict=True):
            x = block(x)
            torch.testing.assert_close(torch.cat([prefix, grid], dim=1), x, rtol=1e-4, atol=1e-5)
        expected = mae.forward_encoder(images, 24, noise)[0]
    torch.testing.assert_close(values(encoder, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "student.", "module.student.backbone.", "backbone.", "encoder.", "a.b."]
)
def test_prefixes_do_not_matter(tmp_path, prefix):
    twin = small(learned_positions=True)
    tensors = {prefix + name: tensor for name, tensor in twin.state_dict().items()}
    tensors["module.head.weight"] = torch.zeros(3, 48)
    encoder = hx.create_encoder(weights=save(tmp_path / "vit.pth", tensors), img_size=64, num_heads=3)
    images = torch.rand(1, 1, 64, 64)
    assert torch.equal(values(encoder, images), values(twin, images))
    assert encoder.load_report.left_out == ["module.head.weight"]


def test_of_several_encoders_the_teacher_is_taken(tmp_path):
    student, teacher = small(), small()
    named = {"student": student, "teacher": teacher}
    flat = {f"{who}.backbone.{n}": t for who, twin in named.items() for n, t in twin.state_dict().items()}
    nested = {who: {f"module.{n}": t for n, t in twin.state_dict().items()} for who, twin in named.items()}
    images = torch.rand(1, 1, 64, 64)
    for content in (flat, nested):
        torch.save(content, tmp_path / "dino.pth")
        encoder = hx.create_encoder(weights=tmp_path / "dino.pth", img_size=64, num_heads=3)
        assert torch.equal(values(encoder, images), values(teacher, images))
        left_out = encoder.load_report.left_out
        assert len(left_out) == len(student.state_dict())
        assert all(name.startswith("student.") for name in left_out)


@pytest.mark.parametrize("chunks", [False, True])
def test_dinov2_layout(tmp_path, chunks):
    twin = small(learned_positions=True, reg_tokens=4, layer_scale=0.1)
    tensors = {("register_tokens" if n == "reg_token" else n): t for n, t in twin.state_dict().items()}
    if chunks:
        tensors = {
            n.replace("blocks.", "blocks.0.").replace("blocks.0.1.", "blocks.1.1."): t for n, t in tensors.items()
        }
    tensors["mask_token"] = torch.zeros(1, 48)
    encoder = hx.create_encoder(weights=save(tmp_path / "dinov2.pth", tensors), img_size=64, num_heads=3)
    images = torch.rand(1, 1, 64, 64)
    assert torch.equal(values(encoder, images), values(twin, images))


@pytest.mark.parametrize("key", ["student", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", ""])
def test_stem64_layout(tmp_path, key, prefix):
    """As HD X-ray's training and its script for the backbone write it."""
    twin = small("stem64", img_size=128)
    tensors = {prefix + name: tensor for name, tensor in twin.state_dict().items()}
    tensors |= {prefix + "mask_token": torch.zeros(1, 1, 32), prefix + "decoder_image.weight": torch.zeros(1, 196)}
    torch.save({key: tensors, "epoch": 1, "args": argparse.Namespace(), "all_loss": 0.5}, tmp_path / "hd.pth")
    encoder = hx.create_encoder(weights=tmp_path / "hd.pth", img_size=128, num_heads=3)
    assert encoder.load_report.layout == "HD X-ray stem64"
    assert encoder.config.stem == "stem64" and encoder.patch_size == 64
    assert encoder.normalisation == (0.5, 0.5)
    images = torch.rand(1, 1, 128, 128)
    assert torch.equal(values(encoder, images), values(twin, images))
    colour = hx.create_encoder(weights=tmp_path / "hd.pth", img_size=128, num_heads=3, in_chans=3)
    torch.testing.assert_close(values(colour, images.expand(-1, 3, -1, -1)), values(twin, images), rtol=1e-4, atol=1e-5)


def test_own_folders(tmp_path):
    options = {"keep": "valid", "pool": "attention", "normalisation": (0.5, 0.25), "learned_positions": True}
    twin = small(reg_tokens=2, fc_norm=True, **options)
    hx.save_model(twin, tmp_path / "encoder")
    encoder = hx.create_encoder(weights=tmp_path / "encoder")
    assert encoder.config == twin.config
    images = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images), twin(images))
    other = hx.create_encoder(weights=str(tmp_path / "encoder"), img_size=(96, 64), pool="mean", keep="all")
    assert other.config.img_size == (96, 64) and other.pool == "mean"
    assert all(name.startswith("attn_pool.") for name in other.load_report.left_out) and other.load_report.left_out
    assert other.load_report.resized == ["pos_embed: 4 x 4 to 6 x 4, learned, resampled (bicubic)"]
    torch.testing.assert_close(other.pos_embed, resample_positions(twin.pos_embed, (4, 4), (6, 4)))

    mae = hx.create_mae("vit_tiny_patch16", img_size=64, decoder_embed_dim=32, decoder_depth=1, **SHAPE)
    shaken(mae)
    hx.save_model(mae, tmp_path / "mae")
    encoder = hx.create_encoder(weights=tmp_path / "mae", pool="cls")
    assert torch.equal(values(encoder, images), values(mae.encoder, images))
    assert all(name.startswith("decoder.") for name in encoder.load_report.left_out) and encoder.load_report.left_out
    moved = tmp_path / "moved.safetensors"  # the tensors alone, without their config
    moved.write_bytes((tmp_path / "mae" / "model.safetensors").read_bytes())
    encoder = hx.create_encoder(weights=moved, img_size=64, num_heads=3)
    assert torch.equal(values(encoder, images), values(mae.encoder, images))


def test_a_new_attention_pool_is_no_lack(tmp_path):
    path = save(tmp_path / "vit.pth", small().state_dict())
    encoder = hx.create_encoder(weights=path, img_size=64, num_heads=3, pool="attention")
    assert encoder.load_report.new == [n for n in encoder.state_dict() if n.startswith("attn_pool.")] != []
    assert encoder.load_report.complete


# --- channels ---------------------------------------------------------------------------------------------------------
def transformers_folder(folder, twin, **preprocessor):
    """A folder as timm writes it; its tensors have our names."""
    safetensors_torch.save_file(twin.state_dict(), folder / "model.safetensors")
    config = {"architecture": "vit", "model_args": {"num_heads": 3, "img_size": 64}}
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5307] * 3, [0.2583] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
    ids=["equal", "ImageNet"],
)
def test_colour_weights_see_grey_images_as_before(tmp_path, mean, std):
    """Grey images, replicated and normalised as the source says, give the same features through one channel."""
    twin = small(in_chans=3, learned_positions=True)
    transformers_folder(tmp_path, twin, image_mean=mean, image_std=std, rescale_factor=1 / 255)
    encoder = hx.create_encoder(weights=tmp_path, img_size=64)
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    expected = values(twin, (pixels / 255 - mean) / std)
    torch.testing.assert_close(values(encoder, pixels), expected, rtol=1e-4, atol=1e-4)
    wide = pixels.to(torch.int32) * 257
    torch.testing.assert_close(values(encoder, wide.to(torch.uint16)), expected, rtol=1e-4, atol=1e-4)
    assert encoder.normalisation == pytest.approx((mean.mean().item(), std.mean().item()))
    colour = hx.create_encoder(weights=tmp_path, img_size=64, in_chans=3)
    assert torch.equal(values(colour, (pixels / 255 - mean) / std), expected)


@pytest.mark.parametrize(
    "preprocessor",
    [
        {},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": False},
        {"image_mean": "grey", "image_std": None},
        {"image_mean": [0.5] * 3, "image_std": [0.0] * 3},
    ],
)
def test_pixels_nobody_tells_about(tmp_path, preprocessor):
    twin = small(in_chans=3)
    encoder = hx.create_encoder(weights=transformers_folder(tmp_path, twin, **preprocessor), img_size=64)
    assert encoder.normalisation == "per_image"
    assert "normalisation 'per_image', which the weights do not tell" in encoder.load_report.assumed
    images = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(
        values(encoder, images), values(twin, images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )
    assert hx.create_encoder(weights=tmp_path, normalisation=(0.4, 0.2)).normalisation == (0.4, 0.2)


def test_pixels_that_are_not_normalised(tmp_path):
    folder = transformers_folder(tmp_path, small(in_chans=3), do_normalize=False, image_mean=[0.5] * 3)
    assert hx.create_encoder(weights=folder).normalisation == (0.0, 1.0)


def test_grey_weights_see_colour_images(tmp_path):
    twin = small()
    path = save(tmp_path / "vit.pth", twin.state_dict())
    encoder = hx.create_encoder(weights=path, img_size=64, num_heads=3, in_chans=3)
    assert encoder.load_report.converted == ["patch_embed.proj: 1 channel to 3, a third of the weight for each"]
    grey = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(values(encoder, grey.expand(-1, 3, -1, -1)), values(twin, grey), rtol=1e-4, atol=1e-5)


# --- positions --------------------------------------------------------------------------------------------------------
def test_learned_positions_are_resampled(tmp_path):
    twin = small(learned_positions=True)
    path = save(tmp_path / "vit.pth", twin.state_dict())
    encoder = hx.create_encoder(weights=path, img_size=(96, 160), num_heads=3)
    assert encoder.pos_embed.requires_grad and encoder.config.learned_positions
    assert encoder.load_report.resized == ["pos_embed: 4 x 4 to 6 x 10, learned, resampled (bicubic)"]
    grid = twin.pos_embed.detach()[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (6, 10), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(encoder.pos_embed[:, 1:], grid)
    torch.testing.assert_close(encoder.pos_embed[:, :1], twin.pos_embed[:, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [64, (32, 160), (16, 64), (64, 16)])
def test_sine_cosine_positions_are_made_anew(tmp_path, size, dtype):
    """Recognised by their values on any grid, in any precision; they stay fixed."""
    tensors = {name: tensor.to(dtype) for name, tensor in small(img_size=size).state_dict().items()}
    encoder = hx.create_encoder(weights=save(tmp_path / "vit.pth", tensors), img_size=(96, 64), num_heads=3)
    assert not encoder.config.learned_positions and not encoder.pos_embed.requires_grad
    torch.testing.assert_close(encoder.pos_embed, sincos_positions(48, (6, 4)), rtol=0, atol=0)
    assert encoder.load_report.resized[0].endswith("to 6 x 4, sine-cosine, made anew")
    if dtype != torch.float32:
        assert encoder.load_report.converted == [f"{len(tensors)} tensors: {dtype} to torch.float32"]
    trained = hx.create_encoder(weights=tmp_path / "vit.pth", img_size=64, num_heads=3, learned_positions=True)
    assert trained.pos_embed.requires_grad


def test_positions_of_no_square_grid(tmp_path):
    """They are taken for those of the size asked for, if their number is right."""
    for size, rows in (((48, 96), 19), ((64, 96), 25)):
        twin = small(img_size=size, learned_positions=True)
        path = save(tmp_path / "vit.pth", twin.state_dict())
        images = torch.rand(1, 1, *size)
        encoder = hx.create_encoder(weights=path, img_size=size, num_heads=3)
        assert torch.equal(values(encoder, images), values(twin, images))
        if rows == 19:
            with pytest.raises(hx.CheckpointError, match=r"vit\.pth: its position table has 19 rows"):
                hx.create_encoder(weights=path, img_size=64, num_heads=3)
    encoder = hx.create_encoder(weights=path, img_size=64, num_heads=3)  # 25 rows could be 5 x 5: the report says so
    assert "pos_embed: 5 x 5 patches, without a row for the class token" in encoder.load_report.assumed


@pytest.mark.parametrize("size", [(32, 128), (128, 32)])
def test_as_many_positions_as_a_square_has(tmp_path, size):
    """2 x 8 are as many as 4 x 4: the grid that was asked for goes first, and the report says so."""
    twin = small(img_size=size, learned_positions=True)
    path = save(tmp_path / "vit.pth", twin.state_dict())
    images = torch.rand(1, 1, *size)
    encoder = hx.create_encoder(weights=path, img_size=size, num_heads=3)
    assert torch.equal(values(encoder, images), values(twin, images))
    assert not encoder.load_report.resized
    height, width = size[0] // 16, size[1] // 16
    (line,) = [line for line in encoder.load_report.assumed if line.startswith("pos_embed")]
    assert line.startswith(f"pos_embed: {height} x {width} patches, as img_size has them; 4 x 4 are as many")
    square = hx.create_encoder(weights=path, img_size=64, num_heads=3)  # nothing tells it from a square one then
    assert torch.equal(square.pos_embed, twin.pos_embed)
    assert not any(line.startswith("pos_embed") for line in square.load_report.assumed)


# --- the report -------------------------------------------------------------------------------------------------------
def test_the_report_prints_itself(tmp_path):
    tensors = {**small(in_chans=3).state_dict(), "head.weight": torch.zeros(2, 48)}
    encoder = hx.create_encoder(weights=save(tmp_path / "vit.pth", tensors), img_size=96, num_heads=3)
    assert str(encoder.load_report).splitlines() == [
        f"{tmp_path / 'vit.pth'} (plain ViT: MAE, timm, DINOv2)",
        "  loaded      30 tensors",
        "  resized     pos_embed: 4 x 4 to 6 x 6, sine-cosine, made anew",
        "  converted   patch_embed.proj: 3 channels to 1, summed over the channels",
        "  assumed     norm_eps 1e-06, which the weights do not tell",
        "  assumed     normalisation 'per_image', which the weights do not tell",
        "  left out    1: head.weight",
        "  missing     none",
        "  unexpected  none",
    ]
    assert small().load_report is None
    names = [f"blocks.{i}" for i in range(9)]
    assert "missing     9: blocks.0, blocks.1, blocks.2, blocks.3, ..." in str(LoadReport(missing=names))


def test_what_does_not_fit_is_refused_unless_asked_for(tmp_path):
    twin = small(learned_positions=True)
    tensors = twin.state_dict()
    del tensors["blocks.1.mlp.fc2.bias"]
    tensors["blocks.0.attn.gate.weight"] = torch.ones(16)
    tensors["text.weight"] = torch.ones(2, dtype=torch.int64)
    path = save(tmp_path / "vit.pth", tensors)
    with pytest.raises(hx.CheckpointError) as caught:
        hx.create_encoder(weights=path, img_size=64, num_heads=3)
    for said in (str(path), "missing 1: blocks.1.mlp.fc2.bias", "unexpected 2", "attn.gate.weight", "strict=False"):
        assert said in str(caught.value)
    encoder = hx.create_encoder(weights=path, img_size=64, num_heads=3, strict=False)
    assert encoder.load_report.missing == ["blocks.1.mlp.fc2.bias"]
    assert sorted(encoder.load_report.unexpected) == ["blocks.0.attn.gate.weight", "text.weight"]
    assert encoder.blocks[1].mlp.fc2.bias.eq(0).all()
    assert torch.equal(encoder.blocks[1].mlp.fc2.weight, twin.blocks[1].mlp.fc2.weight)


def test_strays_beside_an_encoder_are_not_taken_for_its_parts(tmp_path):
    twin = small()
    tensors = {f"vit.{name}": tensor for name, tensor in twin.state_dict().items()}
    tensors["norm.weight"] = torch.zeros(48)
    path = save(tmp_path / "vit.pth", tensors)
    with pytest.raises(hx.CheckpointError, match=r"unexpected 1: norm\.weight"):
        hx.create_encoder(weights=path, img_size=64, num_heads=3)
    encoder = hx.create_encoder(weights=path, img_size=64, num_heads=3, strict=False)
    assert torch.equal(encoder.norm.weight, twin.norm.weight)


# --- bad input --------------------------------------------------------------------------------------------------------
class Bomb:
    """Pickles into a call; loading it would leave a trace."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "w")


def test_pickles_with_code_are_refused_with_the_reason(tmp_path):
    trace = tmp_path / "trace"
    bomb = save(tmp_path / "bomb.pth", small().state_dict(), extra=Bomb(str(trace)))
    with pytest.raises(hx.CheckpointError, match=r"bomb\.pth: refused.*io\.open was not an allowed global") as caught:
        hx.create_encoder(weights=bomb)
    assert not trace.exists()
    system = type("System", (), {"__reduce__": lambda self: (os.system, (f"touch {trace}",))})
    with pytest.raises(hx.CheckpointError, match=r"os\.pth: refused.*(posix|nt)\.system") as caught_too:
        hx.create_encoder(weights=save(tmp_path / "os.pth", small().state_dict(), extra=system()))
    assert not trace.exists()
    assert "weights_only" not in str(caught_too.value)
    assert "weights_only" not in str(caught.value)  # PyTorch's own message tells how to run the code all the same
    hx.save_model(small(), tmp_path / "folder")
    (tmp_path / "folder" / "config.json").unlink()
    (tmp_path / "folder" / "model.safetensors").unlink()
    bomb.rename(tmp_path / "folder" / "pytorch_model.bin")
    with pytest.raises(hx.CheckpointError, match=r"pytorch_model\.bin: refused"):
        hx.create_encoder(weights=tmp_path / "folder")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -100])
@pytest.mark.parametrize("name", ["vit.pth", "model.safetensors", "pytorch_model.bin"])
def test_truncated_files_are_named(tmp_path, name, keep):
    if name == "vit.pth":
        path = given = save(tmp_path / name, small().state_dict())
    else:
        given = transformers_folder(tmp_path, small())
        path = given / name
        if name.endswith("bin"):
            (given / "model.safetensors").unlink()
            torch.save(small().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(hx.CheckpointError, match=rf"{name}: "):
        hx.create_encoder(weights=given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.clear() or t.update(weight=torch.zeros(2)), "another architecture: there is no"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("blocks.")], "another architecture, not a plain ViT"),
        (lambda t: t.update({"blocks.99999999.x": torch.zeros(1)}), "another architecture, not a plain ViT"),
        (lambda t: t.update({"patch_embed.proj.weight": torch.zeros(48, 1, 16, 8)}), "another architecture"),
        (lambda t: t.update({"patch_embed.proj.weight": torch.zeros(48, 256)}), "another architecture"),
        (lambda t: t.update({"pos_embed": torch.zeros(17, 48)}), r"pos_embed is \[17, 48\]"),
        (lambda t: t.update({"pos_embed": torch.zeros(1, 17, 24)}), r"pos_embed is \[1, 17, 24\]"),
        (lambda t: t.update({"cls_token": torch.zeros(1, 1, 48, dtype=torch.int8)}), "cls_token is torch.int8"),
        (lambda t: t.update({"norm.weight": torch.zeros(48, dtype=torch.int8)}), "norm.weight is torch.int8"),
        (lambda t: t.update({"blocks.1.mlp.fc1.weight": torch.zeros(96, 48)}), r"mlp\.fc1\.weight is \[96, 48\]"),
        (lambda t: t.pop("cls_token"), "position table has 17 rows"),
        (lambda t: t.update({"patch_embed.proj.weight": torch.zeros(48, 4, 16, 16)}), "takes 4 channels"),
        (lambda t: t.pop("pos_embed"), "no position table"),
        (lambda t: t.update({"norm_pre.weight": torch.zeros(48)}), "a norm before the blocks"),
        (lambda t: t.update({"blocks.0.attn.relative_position_bias_table": torch.zeros(3, 3)}), "relative positions"),
        (lambda t: t.update({"blocks.1.mlp.w12.weight": torch.zeros(96, 48)}), "SwiGLU"),
        (lambda t: t.update({"blocks.1.attn.q_norm.weight": torch.zeros(16)}), "norms on queries and keys"),
        (lambda t: t.update({"dist_token": torch.zeros(1, 1, 48)}), "a distillation token"),
        (lambda t: t.update({"norm.weight": torch.zeros(48).to_sparse()}), r"norm\.weight is torch\.sparse_coo"),
        (lambda t: t.update({"blocks.0.mlp.fc1.weight": torch.tensor(1.0)}), r"mlp\.fc1\.weight is \[\]"),
        (lambda t: t.update({"reg_token": torch.tensor(1.0)}), r"reg_token is \[\]"),
        (lambda t: t["norm.weight"].fill_(float("nan")), r"norm\.weight holds values that are not finite"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_other_architectures_are_refused_by_name(tmp_path, change, says, strict):
    tensors = small(learned_positions=True).state_dict()
    change(tensors)
    with pytest.raises(hx.CheckpointError, match=rf"vit\.pth: .*{says}"):
        hx.create_encoder(weights=save(tmp_path / "vit.pth", tensors), img_size=64, num_heads=3, strict=strict)


def transformers_layout(twin) -> dict[str, torch.Tensor]:
    """The tensors of an encoder as transformers' Dinov2 names them."""
    tensors = {}
    for name, tensor in twin.state_dict().items():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        layer = f"encoder.layer.{block}."
        if rest.startswith("attn.qkv."):
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[f"{layer}attention.attention.{part}.{rest.split('.')[-1]}"] = piece
            continue
        renamed = {
            "cls_token": "embeddings.cls_token",
            "reg_token": "embeddings.register_tokens",
            "pos_embed": "embeddings.position_embeddings",
        }.get(name, name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection."))
        if name.startswith("blocks."):
            for ours, theirs in (
                ("attn.proj.", "attention.output.dense."),
                ("ls1.gamma", "layer_scale1.lambda1"),
                ("ls2.gamma", "layer_scale2.lambda1"),
            ):
                rest = rest.replace(ours, theirs)
            renamed = layer + rest
        tensors[renamed.replace("norm.", "layernorm.") if name.startswith("norm.") else renamed] = tensor
    return tensors


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("encoder.layer.1.", "num_hidden_layers 2"),
        ("embeddings.register_tokens", "num_register_tokens 2"),
        ("lambda1", "layer_scale"),
        ("bias", "qkv_bias True"),
        (None, None),
    ],
)
def test_a_config_that_tells_of_more_than_there_is(tmp_path, lost, says):
    twin = small(reg_tokens=2, layer_scale=0.1, learned_positions=True)
    everything = transformers_layout(twin)
    inner = ("query.bias", "key.bias", "value.bias") if lost == "bias" else (lost,)
    kept = {n: t.contiguous() for n, t in everything.items() if lost is None or not any(part in n for part in inner)}
    assert lost is None or len(kept) < len(everything)
    safetensors_torch.save_file(kept, tmp_path / "model.safetensors")
    config = {
        "model_type": "dinov2_with_registers", "num_hidden_layers": 2, "hidden_size": 48, "num_register_tokens": 2,
        "num_attention_heads": 3, "image_size": 64, "patch_size": 16, "qkv_bias": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    if lost is None:
        images = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(
            values(hx.create_encoder(weights=tmp_path, img_size=64), images), values(twin, images)
        )
        return
    with pytest.raises(hx.CheckpointError, match=f"was not loaded: missing.*{says}"):
        hx.create_encoder(weights=tmp_path)
    assert any(says in line for line in hx.create_encoder(weights=tmp_path, strict=False).load_report.missing)


def test_weights_of_another_preset(tmp_path):
    path = save(tmp_path / "vit.pth", small().state_dict())
    with pytest.raises(hx.CheckpointError, match=r"vit\.pth: does not fit the encoder: cls_token is \[1, 1, 48\]"):
        hx.create_encoder("vit_small_patch16", 64, weights=path)
    with pytest.raises(hx.CheckpointError, match=r"missing 12: blocks\.2"):
        hx.create_encoder(weights=path, img_size=64, num_heads=3, depth=3)
    with pytest.raises(hx.ArgumentError, match="depth"):
        hx.create_encoder(weights=path, img_size=64, num_heads=3, depth=0)
    named = hx.create_encoder("vit_tiny_patch16", 64, weights=path, **SHAPE)
    assert named.load_report.complete


def test_the_first_blocks_of_weights_are_an_encoder(tmp_path):
    """What comes out of a block in the middle, after the last norm."""
    whole, images = small().eval(), torch.rand(2, 1, 64, 64)
    path = save(tmp_path / "vit.pth", whole.state_dict())
    first = hx.create_encoder(weights=path, img_size=64, num_heads=3, depth=1).eval()
    assert len(first.blocks) == 1 and first.load_report.complete and len(first.load_report.left_out) == 12
    expected = whole.forward_intermediates(images, indices=[0], norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(first.forward_features(images)[:, 1:], expected[0])
    assert main(["convert", str(path), str(tmp_path / "first"), "--num-heads", "3", "--depth", "1"]) == 0
    again = hx.create_encoder(weights=tmp_path / "first").eval()
    torch.testing.assert_close(again.forward_features(images), first.forward_features(images))


@pytest.mark.parametrize(
    ("culprit", "options"),
    [
        ("img_size", {"img_size": 100}),
        ("img_size", {"img_size": (64, 0)}),
        ("img_size", {"img_size": "large"}),
        ("in_chans", {"in_chans": 2}),
        ("num_heads", {"num_heads": 5}),
        ("num_heads", {"num_heads": None}),
        ("name", {"name": "resnet50"}),
        ("strict", {"strict": "yes"}),
        ("window", {"window": 7}),
        ("weights", {"weights": 7}),
        ("keep", {"keep": "lungs"}),
        ("learned_positions", {"learned_positions": False}),
    ],
)
def test_bad_arguments_are_named(tmp_path, culprit, options):
    path = save(tmp_path / "vit.pth", small(learned_positions=True).state_dict())
    with pytest.raises((hx.ArgumentError, hx.ArgumentTypeError), match=f"^{culprit}:"):
        hx.create_encoder(**{"weights": path, "img_size": 64, "num_heads": 3, **options})


def test_paths_that_hold_no_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "config.json").write_text("[1]")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    for name, says in (
        ("missing.pth", "is missing"),
        ("empty", "holds neither"),
        ("json", "is no JSON object"),
        ("list.pth", "holds no state dict"),
        ("number.pth", "holds no state dict"),
    ):
        with pytest.raises(hx.CheckpointError, match=f"{name}.*{says}"):
            hx.create_encoder(weights=tmp_path / name)


# --- hubs -------------------------------------------------------------------------------------------------------------
def test_a_repository_of_the_hub(tmp_path, monkeypatch):
    """As from the hub, which needs a network: its client is asked for the files and finds them in a folder."""
    hub = pytest.importorskip("huggingface_hub")
    twin = small(learned_positions=True)
    transformers_folder(tmp_path, twin)
    asked = []

    def snapshot_download(repo_id, revision=None, allow_patterns=None):
        asked.append((repo_id, revision))
        if repo_id != "org/name":
            raise OSError("404 Client Error")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    images = torch.rand(1, 1, 64, 64)
    for weights, revision in (("hf:org/name", None), ("hf:org/name@v2", "v2")):
        encoder = hx.create_encoder(weights=weights, img_size=64)
        assert asked[-1] == ("org/name", revision)
        assert encoder.load_report.source == weights
        assert torch.equal(values(encoder, images), values(twin, images))
    (tmp_path / "model.safetensors").unlink()
    torch.save(twin.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(values(hx.create_encoder(weights="hf:org/name", img_size=64), images), values(twin, images))
    with pytest.raises(hx.CheckpointError, match=r"^hf:org/none: cannot be fetched \(404"):
        hx.create_encoder(weights="hf:org/none")


@pytest.mark.parametrize(("weights", "module"), [("hf:org/name", "huggingface_hub"), ("timm:vit", "timm")])
def test_without_the_client_the_message_says_what_to_install(monkeypatch, weights, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(hx.MissingDependencyError, match=rf"^{weights}: .*pip install"):
        hx.create_encoder(weights=weights)


# --- convert ----------------------------------------------------------------------------------------------------------
def test_convert_writes_a_model_folder(tmp_path, capsys):
    twin = small(in_chans=3, learned_positions=True)
    path = save(tmp_path / "vit.pth", twin.state_dict())
    assert main(["convert", str(path), str(tmp_path / "out"), "--num-heads", "3"]) == 0
    told = capsys.readouterr().out
    assert "loaded      30 tensors" in told and told.endswith(f"encoder: {tmp_path / 'out'}\n")
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors"}
    again = hx.load_model(tmp_path / "out")
    assert again.config.img_size == (64, 64) and again.config.in_chans == 3
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(values(again, images), values(twin, images))
    out = str(tmp_path / "other")
    argv = ["convert", str(path), out, "--num-heads", "3", "--img-size", "96", "64", "--in-chans", "1"]
    assert main(argv) == 0
    assert main(argv) == 0  # what it wrote itself is replaced
    assert hx.load_model(out).config.img_size == (96, 64)


def test_convert_leaves_models_that_hold_more_than_an_encoder(tmp_path):
    hx.save_model(small(), tmp_path / "own")
    hx.save_model(hx.create_mae("vit_tiny_patch16", img_size=64, depth=1, decoder_depth=1), tmp_path / "mae")
    save_classifier(Classifier(small(), ClassifierConfig(["sick"])), tmp_path / "classifier")
    hx.save_model(small(), tmp_path / "report" / "encoder")
    (tmp_path / "report" / "report.json").write_text("{}")
    for name, held in {
        "mae": "an auto-encoder, whose decoder",
        "classifier": "a classifier, whose head",
        "report/encoder": "the encoder of a report model",
    }.items():
        before = {path: path.read_bytes() for path in (tmp_path / name).iterdir()}
        with pytest.raises(hx.ArgumentError, match=f"^folder: .* holds {held}"):
            convert(tmp_path / "own", tmp_path / name)
        assert {path: path.read_bytes() for path in (tmp_path / name).iterdir()} == before


def test_convert_refuses_what_it_would_spoil(tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    transformers_folder(foreign, small())
    hx.save_model(small(), tmp_path / "own")
    for source, folder in ((foreign, foreign), (tmp_path / "own", foreign), (tmp_path / "own", tmp_path / "own")):
        with pytest.raises(hx.ArgumentError, match=r"^folder: "):
            convert(source, folder)
    with pytest.raises(hx.ArgumentTypeError, match=r"^folder: "):
        convert(tmp_path / "own", 7)
    for number, name in enumerate(("preprocessor_config.json", "import_hdxray_fast.py", "pytorch_model.bin")):
        beside = tmp_path / f"beside{number}"
        beside.mkdir()
        (beside / name).write_text("somebody's")
        with pytest.raises(hx.ArgumentError, match=f"holds {name}, which is of no encoder of this package"):
            convert(tmp_path / "own", beside)
        assert [(path.name, path.read_text()) for path in beside.iterdir()] == [(name, "somebody's")]
    torch.save({"weight": torch.zeros(2)}, tmp_path / "linear.pth")
    assert main(["convert", str(tmp_path / "linear.pth"), str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "linear.pth: is another architecture" in line
    assert not (tmp_path / "new").exists()


def test_convert_takes_partial_weights_if_told(tmp_path):
    tensors = small().state_dict()
    del tensors["norm.bias"]
    path = save(tmp_path / "vit.pth", tensors)
    argv = ["convert", str(path), str(tmp_path / "out"), "--num-heads", "3"]
    assert main(argv) == 2
    assert main([*argv, "--partial"]) == 0
    assert hx.load_model(tmp_path / "out").norm.bias.eq(0).all()


def test_a_size_left_out_and_the_size_of_the_weights(tmp_path):
    path = save(tmp_path / "vit.pth", small(in_chans=3).state_dict())
    left_out = hx.create_encoder(weights=path, num_heads=3).config
    assert (left_out.img_size, left_out.in_chans) == ((1280, 1280), 1)
    theirs = hx.create_encoder(weights=path, num_heads=3, img_size=None, in_chans=None).config
    assert (theirs.img_size, theirs.in_chans) == ((64, 64), 3)
    hx.save_model(small(in_chans=3), tmp_path / "own")
    own = hx.create_encoder(weights=tmp_path / "own").config
    assert (own.img_size, own.in_chans) == ((64, 64), 3)
    given = hx.create_encoder(weights=tmp_path / "own", img_size=1280, in_chans=1).config
    assert (given.img_size, given.in_chans) == ((1280, 1280), 1)
    assert type(left_out.in_chans) is int and type(hx.create_encoder(depth=1).config.img_size[0]) is int


@pytest.fixture
def run_folder(tmp_path):
    """That of a run, which holds its settings under the name of a model's; where a model is put in it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"out": "run", "save_every": 100}')
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1)
    return lambda inner: hx.save_model(encoder, tmp_path / "run" / inner)


@pytest.mark.parametrize("inner", ["model", "model/encoder"])
def test_the_folder_of_a_run_is_taken_as_its_model(tmp_path, run_folder, inner):
    found, run = run_folder(inner), tmp_path / "run"
    encoder = hx.create_encoder(weights=run)
    assert encoder.load_report.source == str(found)
    assert hx.load_model(run).config == encoder.config
    assert hx.create_encoder(weights=run / "model").config == encoder.config  # of a report model's folder, its encoder
    assert convert(run, tmp_path / "out").source == str(found)
    with pytest.raises(hx.ArgumentError, match=f"run/{inner} holds the source itself"):
        convert(run, found)


def test_a_run_that_has_not_ended_names_its_newest_checkpoint(tmp_path, run_folder):
    run_folder("checkpoints/step_00000001")
    newest = run_folder("checkpoints/step_00000002")
    for read in (lambda: hx.create_encoder(weights=tmp_path / "run"), lambda: hx.load_model(tmp_path / "run")):
        with pytest.raises(hx.CheckpointError, match=f"has not ended; its newest checkpoint is in {newest}"):
            read()


def test_the_head_of_a_classifier_is_said_to_be_left(tmp_path):
    save_classifier(Classifier(small(), ClassifierConfig(["sick"])), tmp_path / "classifier")
    report = hx.create_encoder(weights=tmp_path / "classifier").load_report
    assert "head.fc.weight" in report.left_out and report.complete
    assert "  left out    4: head.fc.bias" in str(report)
    (tmp_path / "classifier" / "head.safetensors").write_bytes(b"damaged")  # an encoder does without
    assert hx.create_encoder(weights=tmp_path / "classifier").load_report.left_out == ["head"]
    assert hx.create_encoder("vit_tiny_patch16", weights="pretrained").load_report.left_out == []


def test_one_line_says_that_the_hub_does_not_answer(caplog, capsys):
    logger = logging.getLogger(CLIENT)
    with quiet_retries("hf:a/b"):
        logger.warning("'HTTP Error 429' thrown while requesting GET https://example.org")
        assert capsys.readouterr().err == ""
        logger.warning("Retrying in 1s [Retry 1/5].")
        logger.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://example.org")
        logger.warning("Rate limited. Waiting 60s before retry [Retry 1/5].")
    logger.warning("Retrying in 2s [Retry 2/5].")
    assert [record.getMessage()[:12] for record in caplog.records] == ["Rate limited", "Retrying in "]
    assert capsys.readouterr().err == "hf:a/b: the hub gives nothing yet; it is asked again\n"
