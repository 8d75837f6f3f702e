"""Exported models with heads: what onnxruntime answers is what the model answers."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from onnx_runtimes import RUNTIMES, run_onnx

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.classify.heads import HEADS
from hdxray_fast.cli.main import main
from hdxray_fast.interop.dense import HEAD_OUTPUTS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch.*")
CLASSES = ["edema", "mass", "nodule"]
KINDS = (*HEADS, "label-query of text")
CANVAS = {"pixels": "uint8", "valid": True}
SIZES = {"img_size": (32, 48), "depth": 2, "embed_dim": 48, "num_heads": 3}


def moved(model):
    """No parameter as it was initialised: zeros and ones hide what is left out."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def classifier(head: str = "linear", multiclass: bool = False, text=None, **encoder) -> Classifier:
    config = ClassifierConfig(CLASSES, head=head, multiclass=multiclass, thresholds=[0.1, 0.2, 0.3])
    encoder = hx.create_encoder("vit_tiny_patch16", **{**SIZES, **encoder})
    return moved(Classifier(encoder, config, text)).eval()


@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("head", KINDS)
def test_every_head_is_in_the_program(head, fc_norm):
    text = torch.randn(3, 7) if "text" in head else None
    model = classifier(head.split()[0], text=text, fc_norm=fc_norm, pool="mean" if fc_norm else None)
    program = hx.export_program(model)
    for batch in (1, 3):
        images = torch.randn(batch, 1, 32, 48)
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
    assert not [node for node in program.graph.nodes if "hdxray" in str(node.target)]


FAST = (
    "label-query",
    "attention",
)  # the others are slow: writing a file takes seconds; each is of one block, therefore


@pytest.fixture(scope="module", params=[pytest.param(h, marks=[] if h in FAST else pytest.mark.slow) for h in KINDS])
def chest(request, tmp_path_factory):
    """A classifier of the chest, and its files of logits and, of both kinds, of probabilities."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    head, folder = request.param, tmp_path_factory.mktemp("onnx")
    text = torch.randn(3, 7) if "text" in head else None
    model = classifier(head.split()[0], multiclass=head == "attention", text=text, keep="contour", depth=1)
    outputs = HEAD_OUTPUTS if head in FAST else HEAD_OUTPUTS[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch's, of inputs that have one batch
        return model, {name: hx.export_onnx(model, folder / f"{name}.onnx", name, **CANVAS) for name in outputs}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_canvas_in_answers_out(chest, runtime):
    """What PyTorch's path makes of the same 8-bit canvases."""
    model, files = chest
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, 1, 32, 48), dtype=torch.uint8)
        inside, valid = torch.rand(2, batch, 2, 3) < 0.6
        keep = model.encoder.kept_patches(images, inside, valid)
        with torch.no_grad():
            logits = model(images, inside=inside, valid=valid)
        expected = dict(zip(HEAD_OUTPUTS, (logits, model.probabilities(logits)), strict=True))
        for name, file in files.items():
            result = run_onnx(file, images, runtime, keep=keep, valid=valid)
            np.testing.assert_allclose(result, expected[name], rtol=1e-5, atol=1e-5)


def test_a_whole_canvas_is_normalised_to_the_digits_of_pytorch(tmp_path):
    """1.6 million pixels are summed: one by one they would cost digits."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    model = classifier(img_size=1280, patch_size=64, depth=1)
    path = hx.export_onnx(model, tmp_path / "model.onnx", "logits", pixels="uint8")
    images = torch.randint(0, 40, (2, 1, 1280, 1280), dtype=torch.uint8) + torch.arange(128).byte().repeat(10)
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(path, images), model(images), rtol=1e-5, atol=1e-5)


def test_the_file_says_what_it_takes_and_gives(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = classifier(multiclass=True, keep="contour", margin=2, depth=1)
    path = hx.export_onnx(model, tmp_path / "model.onnx", "probabilities", **CANVAS)
    written = onnx.load(path)
    assert [given.name for given in written.graph.input] == ["images", "keep", "valid"]
    kinds = [given.type.tensor_type.elem_type for given in written.graph.input]
    assert kinds == [onnx.TensorProto.UINT8, onnx.TensorProto.BOOL, onnx.TensorProto.BOOL]
    assert {given.type.tensor_type.shape.dim[0].dim_param for given in written.graph.input} == {"batch"}
    said = {entry.key: json.loads(entry.value) for entry in written.metadata_props if entry.key != "source"}
    expected = {
        "classes": CLASSES,
        "thresholds": [0.1, 0.2, 0.3],
        "multiclass": True,
        "keep": "contour",
        "margin": 2,
        "normalisation": "per_image",
    }
    assert {name: said[name] for name in expected} == expected


def test_the_command_takes_the_head_of_a_classifiers_folder(tmp_path, capsys):
    for package in ("onnx", "onnxscript", "safetensors", "jsonargparse"):
        pytest.importorskip(package)
    model = classifier(img_size=32, depth=1)
    save_classifier(model, tmp_path / "run" / "model")
    path = tmp_path / "model.onnx"
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    argv = ["export", str(tmp_path / "run"), "--out", str(path), "--normalise"]
    assert main(argv) == 0
    logits = model(images).detach()
    np.testing.assert_allclose(run_onnx(path, images.float() / 255), logits, rtol=1e-3, atol=1e-4)
    assert main([*argv, "--output", "features"]) == 0
    assert run_onnx(path, images.float() / 255).shape == (2, 48)
    model.encoder.keep = "valid"
    save_classifier(model, tmp_path / "run" / "model")
    argv = ["export", str(tmp_path / "run"), "--out", str(path), "--pixels", "uint8", "--valid"]
    assert main(argv) == 0
    valid = torch.tensor([[True, True], [True, False]]).expand(2, 2, 2)
    logits = model(images, valid=valid).detach()
    np.testing.assert_allclose(run_onnx(path, images, keep=valid, valid=valid), logits, rtol=1e-5, atol=1e-5)
    assert main([*argv, "--pixels", "int8"]) == 2
    assert "pixels: got 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize("global_pool", ["token", "avg", "max", "avgmax", "map", ""])
def test_timm_models_are_exported_with_their_heads(global_pool, timm):
    for num_classes in (0, 3):
        options = {"num_classes": num_classes, "global_pool": global_pool, **SIZES, "depth": 1}
        model = moved(timm.create_model("hdxray_vit_tiny_patch16_1280", **options)).eval()
        images = torch.randn(3, 1, 32, 48)
        result = hx.export_program(model).module()(images)
        torch.testing.assert_close(result, model(images), rtol=1e-4, atol=1e-5)
        seen = model.forward_head(model.forward_features(images), pre_logits=True)  # by the head
        result = hx.export_program(model, "features").module()(images)
        torch.testing.assert_close(result, seen, rtol=1e-4, atol=1e-5)
    with pytest.raises(hx.ArgumentError, match=r"^output: got 'probabilities'.* exclude"):
        hx.export_program(model, "probabilities")
    assert hx.export_program(model, "map").module()(images).shape == (3, 48, 2, 3)
    model.keep = "valid"
    with pytest.raises(hx.ArgumentError, match=r"^encoder: has keep='valid', but timm's models look at all"):
        hx.export_program(model)


def test_models_of_transformers_are_exported_as_their_encoders(timm):
    pytest.importorskip("transformers")
    from hdxray_fast.interop.hf import HDXrayModel

    model = HDXrayModel.from_encoder(moved(hx.create_encoder("vit_tiny_patch16", **SIZES, fc_norm=True))).eval()
    images = torch.randn(3, 1, 32, 48)
    outputs = model(images)
    for output, expected in (("features", outputs.pooler_output), ("tokens", outputs.last_hidden_state)):
        result = hx.export_program(model, output).module()(images)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_written_as_float32(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = classifier(depth=1).to(torch.bfloat16)
    path = hx.export_onnx(model, tmp_path / "model.onnx")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}  # the caller's stays
    images = torch.randn(2, 1, 32, 48)
    np.testing.assert_allclose(run_onnx(path, images), model.float()(images).detach(), rtol=1e-4, atol=1e-5)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_modes_stay_as_they_were():
    model = classifier().train()
    model.encoder.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    hx.export_program(model)
    assert [module.training for module in model.modules()] == modes


def test_what_is_refused():
    model = classifier()
    with pytest.raises(hx.ArgumentError, match=r"^output: got 'classes', accepted are 'logits', 'probabilities'"):
        hx.export_program(model, "classes")
    with pytest.raises(hx.ArgumentError, match=r"^pool: got 'cls', which is for"):
        hx.export_program(model, pool="cls")

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decide = model.encoder, torch.nn.Linear(48, 2)

    with pytest.raises(hx.ArgumentTypeError, match=r"^encoder: got Wrapper, which has more"):
        hx.export_program(Wrapper())
