"""The exported encoder: the same numbers through torch.export and onnxruntime, for every batch size."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from onnx_runtimes import run_onnx

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.models.encoder import Encoder

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning:torch.*", "error:.*LeafSpec:FutureWarning"
)
VARIANTS = {
    "plain": {"depth": 2},
    "attention pool": {"reg_tokens": 2, "layer_scale": 0.1, "pool": "attention"},
    "no class token": {"class_token": False},
    "fc_norm": {"in_chans": 3, "pool": "mean", "fc_norm": True},
    "stem64": {"name": "vit_tiny_stem64", "img_size": (64, 128)},
}


def small(name: str = "vit_tiny_patch16", img_size=(32, 48), **kwargs) -> Encoder:
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3, **kwargs}
    encoder = hx.create_encoder(name, img_size=img_size, **options)
    for parameter in encoder.parameters():
        if parameter.requires_grad:  # fixed positions are what they are
            parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


def expected(encoder: Encoder, images: torch.Tensor, output: str) -> torch.Tensor:
    with torch.no_grad():
        tokens, (grid,) = encoder.forward_intermediates(images, 1, norm=True)
        if output == "features":
            packed = encoder.encode(images)
            pool = encoder.pool or ("cls" if encoder.cls_token is not None else "mean")
            return encoder.pool_tokens(packed, pool, tokens.shape[1])
        return tokens if output == "tokens" else grid


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("output", ["features", "tokens", "map"])
def test_torch_export_agrees(variant, output):
    encoder = small(**VARIANTS[variant])
    program = hx.export_program(encoder, output)
    assert encoder.training  # left as it was
    for batch in (1, 3):
        images = torch.randn(batch, encoder.in_chans, *encoder.img_size)
        result = program.module()(images)
        torch.testing.assert_close(result, expected(encoder, images, output), rtol=1e-4, atol=1e-5)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "hdxray" in name]
    assert any("scaled_dot_product_attention" in name for name in operators)


@pytest.mark.parametrize(
    ("variant", "output", "runtime"),
    [
        ("attention pool", "features", "onnxruntime"),
        ("fc_norm", "tokens", "onnxruntime"),
        ("plain", "map", "onnxruntime"),
        ("attention pool", "features", "openvino"),
    ],
)
def test_onnx_agrees(variant, output, runtime, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    pytest.importorskip("onnxscript")
    encoder = small(**VARIANTS[variant])
    path = hx.export_onnx(encoder, tmp_path / "encoder.onnx", output)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]
    for batch in (1, 3):
        images = torch.randn(batch, encoder.in_chans, *encoder.img_size)
        result = run_onnx(path, images, runtime)
        np.testing.assert_allclose(result, expected(encoder, images, output), rtol=1e-4, atol=1e-5)
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    (given,), (result,) = graph.input, graph.output
    assert (given.name, result.name) == ("images", output)
    assert given.type.tensor_type.shape.dim[0].dim_param == result.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("normalisation", ["per_image", (0.5, 0.25)])
def test_normalisation_in_the_graph(normalisation):
    encoder = small(normalisation=normalisation)
    images = torch.randint(0, 256, (2, 1, 32, 48), dtype=torch.uint8)
    images[1] = 7  # a flat image stays finite
    program = hx.export_program(encoder, "tokens", normalise=True)
    result = program.module()(images.float() / 255)
    torch.testing.assert_close(result, expected(encoder, images, "tokens"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("normalisation", ["per_image", (0.5, 0.25)])
def test_integers_are_normalised_in_the_graph(normalisation, dtype):
    """As the encoder does it by itself, over the whole image."""
    encoder = small(normalisation=normalisation, in_chans=3)
    images = torch.randint(0, torch.iinfo(dtype).max, (2, 3, 32, 48)).to(dtype)
    images[1] = 7  # a flat image stays finite
    with warnings.catch_warnings(record=True) as told:
        program = hx.export_program(encoder, "tokens", pixels=str(dtype).removeprefix("torch."))
    of_padding = [warning for warning in told if "padding counts" in str(warning.message)]
    assert [warning.filename for warning in of_padding] == [__file__] * (normalisation == "per_image")
    torch.testing.assert_close(program.module()(images), expected(encoder, images, "tokens"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", ["mean", "cls", "attention", "tokens", "map"])
def test_patches_that_are_not_kept_count_for_nothing(kept):
    pool = kept if kept in ("mean", "cls", "attention") else None
    encoder = small(keep="contour", margin=0, reg_tokens=2, pool=pool)
    images = torch.randint(0, 256, (3, 1, 32, 48), dtype=torch.uint8)
    inside, valid = torch.rand(2, 3, 2, 3) < torch.tensor([0.4, 0.7])[:, None, None, None]
    inside[:, 0, 0] = valid[:, 0, 0] = True
    keep = encoder.kept_patches(images, inside, valid)
    assert torch.equal(keep, inside & valid)
    program = hx.export_program(encoder, None if pool else kept, pixels="uint8", valid=True)
    result = program.module()(images, keep=keep, valid=valid)
    with torch.no_grad():
        if pool:
            wanted = encoder(images, inside=inside, valid=valid)
        else:
            wanted = encoder.forward_features(images, inside=inside, valid=valid)
            wanted = wanted if kept == "tokens" else wanted[:, 3:].transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)
    other = torch.where(keep.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None], images, 255 - images)
    everywhere = hx.export_program(encoder, None if pool else kept)  # on normalised images
    a, b = (everywhere.module()(i / 255, keep=keep) for i in (images, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_image_that_keeps_nothing_is_looked_at_whole():
    encoder = small(keep="valid", class_token=False, pool="mean")
    images = torch.randn(2, 1, 32, 48)
    keep = torch.zeros(2, 2, 3, dtype=torch.bool)
    keep[0, 1] = True
    result = hx.export_program(encoder).module()(images, keep=keep)
    torch.testing.assert_close(result[:1], encoder(images[:1], valid=keep[:1]), rtol=1e-5, atol=1e-5)
    encoder.keep = "all"
    torch.testing.assert_close(result[1:], encoder(images[1:]), rtol=1e-5, atol=1e-5)


def test_a_saved_program_runs_without_the_encoder(tmp_path):
    encoder = small()
    torch.export.save(hx.export_program(encoder), tmp_path / "encoder.pt2")
    images = torch.randn(2, 1, 32, 48)
    result = torch.export.load(tmp_path / "encoder.pt2").module()(images)
    torch.testing.assert_close(result, expected(encoder, images, "features"), rtol=1e-4, atol=1e-5)


def test_the_command(tmp_path, capsys):
    for package in ("onnx", "onnxscript", "safetensors", "jsonargparse"):
        pytest.importorskip(package)
    encoder = small(img_size=32, keep="contour")
    hx.save_model(encoder, tmp_path / "model")
    path = tmp_path / "encoder.onnx"
    argv = ["export", str(tmp_path / "model"), "--out", str(path), "--img-size", "48", "--normalise", "--pool", "mean"]
    argv += ["--keep", "all"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert printed.out.strip().endswith(str(path)) and printed.err.count("padding counts") == 1
    encoder.keep = "all"
    encoder.set_input_size(48)
    images = torch.randint(0, 256, (1, 1, 48, 48), dtype=torch.uint8)
    features = encoder.pool_tokens(encoder.encode(images), "mean").detach()
    np.testing.assert_allclose(run_onnx(path, images.float() / 255), features, rtol=1e-3, atol=1e-4)
    assert main(["export", str(tmp_path / "none"), "--out", str(path)]) == 2
    assert "none" in capsys.readouterr().err


def test_what_is_refused(tmp_path, monkeypatch):
    encoder = small()
    path = tmp_path / "encoder.onnx"
    with pytest.raises(hx.ArgumentError, match=r"^pixels: got 'int8', accepted are 'float', 'uint8', 'uint16'"):
        hx.export_onnx(encoder, path, pixels="int8")
    with pytest.raises(hx.ArgumentTypeError, match=r"^normalise: got 'uint8'"):
        hx.export_onnx(encoder, path, normalise="uint8")
    with pytest.raises(hx.ArgumentError, match=r"^valid: got True, which is for graphs that normalise"):
        hx.export_onnx(encoder, path, valid=True)
    with pytest.raises(hx.ArgumentError, match=r"^valid: .* this encoder is \(0.5, 0.25\)"):
        hx.export_onnx(small(normalisation=(0.5, 0.25)), path, pixels="uint8", valid=True)
    with pytest.raises(hx.ArgumentTypeError, match=r"^encoder: got Linear"):
        hx.export_program(torch.nn.Linear(2, 2))
    with pytest.raises(hx.ArgumentError, match=r"^output: got 'logits'"):
        hx.export_onnx(encoder, path, "logits")
    for pool in ("attention", "max"):
        with pytest.raises(hx.ArgumentError, match=rf"^pool: got '{pool}'"):
            hx.export_onnx(encoder, path, pool=pool)
    with pytest.raises(hx.ArgumentError, match=r"^pool: got 'cls'"):
        hx.export_onnx(small(class_token=False), path, pool="cls")
    with pytest.raises(hx.ArgumentError, match=r"^path: got .* there is no folder"):
        hx.export_onnx(encoder, tmp_path / "none" / "encoder.onnx")
    with pytest.raises(hx.ArgumentTypeError, match=r"^path: got int"):
        hx.export_onnx(encoder, 3)
    with pytest.raises(hx.ArgumentError, match=r"^path: got .* is a folder"):
        hx.export_onnx(encoder, tmp_path)
    with pytest.raises(hx.ArgumentError, match=r"^opset: got 11"):
        hx.export_onnx(encoder, path, opset=11)
    with pytest.raises(hx.ArgumentError, match=r"^opset: got 99"):
        hx.export_onnx(encoder, path, opset=99)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(hx.MissingDependencyError, match=r"needs onnx.*pip install '\w"):
        hx.export_onnx(encoder, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--output", "tokens"], []),
        (["--output", "map", "--keep", "contour"], ["takes keep [batch, 4, 4] bool, "]),
        (["--pool", "mean", "--pixels", "uint8", "--valid"], []),
        ([], ["class tokens; those of embed are means of the patches: --pool mean"]),
        (["--pool", "cls", "--pixels", "uint8"], ["--valid makes an input"]),
        (["--pool", "mean", "--normalise", "--img-size", "128"], ["--valid makes an", "pos_embed: 4 x 4 to 8 x 8"]),
    ],
)
def test_what_a_graph_does_otherwise_is_said(tmp_path, monkeypatch, capsys, words, told):
    from hdxray_fast.interop import export

    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1), tmp_path / "m")
    monkeypatch.setattr(export, "export_onnx", lambda model, path, **options: path)
    assert main(["export", str(tmp_path / "m"), "--out", str(tmp_path / "e.onnx"), *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    assert all(any(part in line for line in lines) for part in told)
