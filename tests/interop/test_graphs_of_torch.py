"""PyTorch's own ways to write a model down: standard operations for models over all patches, a name for others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx_runtimes import run_onnx
from torch import nn
from torch.utils import _pytree

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig
from hdxray_fast.classify.heads import HEADS

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::DeprecationWarning"),
]
SIZES = {"img_size": (32, 48), "depth": 1, "embed_dim": 48, "num_heads": 3}
TWO = {**SIZES, "depth": 2}  # blocks: what the models share is written down twice at least
POOLS = ("None", "cls", "mean", "attention")
TIMM_POOLS = ("token", "avg", "max", "avgmax", "map", "")
MODELS = [
    *(f"encoder {pool}" for pool in POOLS),
    *(f"classifier {head}" for head in HEADS),
    *(f"timm {pool}" for pool in TIMM_POOLS),
    "transformers",
    "encoder stem64",
]


@pytest.fixture
def model(request, plain_mae):
    """A model by its name, no parameter as it was initialised; in training where nothing depends on that."""
    kind, _, part = request.param.partition(" ")
    if kind in ("timm", "transformers"):
        if plain_mae.import_timm() is None:  # with a torchvision that imports, which transformers needs too
            pytest.skip("timm is not installed")
        pytest.importorskip(kind)
    if kind == "timm":
        import timm

        built = timm.create_model("hdxray_vit_tiny_patch16_1280", num_classes=3, global_pool=part, **SIZES)
    elif kind == "transformers":
        from hdxray_fast.interop.hf import HDXrayModel

        built = HDXrayModel.from_encoder(hx.create_encoder("vit_tiny_patch16", fc_norm=True, **TWO))
    elif kind == "classifier":
        encoder = hx.create_encoder("vit_tiny_patch16", reg_tokens=1, **SIZES)
        built = Classifier(encoder, ClassifierConfig(["edema", "mass", "nodule"], head=part))
    elif part == "stem64":
        built = hx.create_encoder("vit_tiny_stem64", pool="mean", **{**TWO, "img_size": (64, 128)})
    else:
        pool, sizes = (None, TWO) if part == "None" else (part, SIZES)
        built = hx.create_encoder("vit_tiny_patch16", pool=pool, **sizes)
    for parameter in built.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return built


def images_for(model, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    config = getattr(model, "encoder", model).config
    shape = (batch, 1, *config.img_size)
    return torch.randn(shape) if dtype == torch.float32 else torch.randint(0, 256, shape, dtype=dtype)


def tensors_of(outputs) -> list[torch.Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def assert_equal(results, expected) -> None:
    for result, wanted in zip(tensors_of(results), tensors_of(expected), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_a_traced_model_is_the_model(model, dtype, tmp_path):
    traced = torch.jit.trace(model, images_for(model, 2, dtype), strict=False)
    torch.jit.save(traced, tmp_path / "model.pt")  # which an operator that lives in Python would not stand
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert not [node for node in loaded.inlined_graph.nodes() if "hdxray" in node.kind()]
    for batch in (1, 3):
        images = images_for(model, batch, dtype)
        assert_equal(loaded(images), model(images))


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_an_exported_model_is_the_model(model):
    program = torch.export.export(
        model, (images_for(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    assert not [node for node in program.graph.nodes if "hdxray" in str(node.target)]
    for batch in (1, 3):
        images = images_for(model, batch)
        assert_equal(program.module()(images), model(images))


@pytest.mark.parametrize(
    "model", ["encoder attention", "classifier label-query", "timm map", "transformers"], indirect=True
)
def test_onnx_export_of_torch(model, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    path = tmp_path / "model.onnx"
    options = {"return_dict": False} if hasattr(model, "from_pretrained") else {}
    last = _Last(model, options).eval()
    torch.onnx.export(
        last,
        (images_for(model, 2, torch.uint8),),
        path,
        dynamo=True,
        input_names=["images"],
        verbose=False,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
    )
    for batch in (1, 3):
        images = images_for(model, batch, torch.uint8)
        np.testing.assert_allclose(run_onnx(path, images), last(images).detach(), rtol=1e-5, atol=1e-5)


class _Last(torch.nn.Module):
    """The last output of a model."""

    def __init__(self, model: torch.nn.Module, options: dict) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return tensors_of(self.model(images, **self.options))[-1]


@pytest.mark.parametrize("keep", ["contour", "valid"])
@pytest.mark.parametrize("write", ["torch.export", "torch.jit.trace", "torch.onnx"])
def test_a_choice_by_values_is_refused_by_name(write, keep):
    """With the calls that do it: a graph would hold the patches of the example for ever."""
    encoder = hx.create_encoder("vit_tiny_patch16", keep=keep, pool="mean", **SIZES).eval()
    images = torch.randint(0, 256, (2, 1, 32, 48), dtype=torch.uint8)
    if write == "torch.onnx":
        for package in ("onnx", "onnxscript"):
            pytest.importorskip(package)
    calls = {
        "torch.export": lambda: torch.export.export(encoder, (images,), strict=False),
        "torch.jit.trace": lambda: torch.jit.trace(encoder, images),
        "torch.onnx": lambda: torch.onnx.export(encoder, (images,), dynamo=True, verbose=False),
    }
    with pytest.raises(Exception, match=rf"keep: is '{keep}'.* call hx.export_onnx or hx.export_program"):
        calls[write]()


def test_a_compiled_model_keeps_the_operators():
    """Some versions of PyTorch say that they export while they compile."""
    encoder, seen = hx.create_encoder("vit_tiny_patch16", pool="mean", **SIZES), []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(encoder, backend=backend, fullgraph=True)(images_for(encoder, 2))
    assert [target for target in seen if "hdxray_fast" in target and "gather_patches" in target]


@pytest.mark.slow  # compiles C++
def test_an_exported_program_is_compiled_ahead_of_time(tmp_path):
    encoder = hx.create_encoder("vit_tiny_patch16", keep="contour", pool="mean", **SIZES)
    program = hx.export_program(encoder, pixels="uint8", valid=True)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "encoder.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    images = torch.randint(0, 256, (3, 1, 32, 48), dtype=torch.uint8)
    inside, valid = torch.rand(2, 3, 2, 3) < 0.6
    keep = encoder.kept_patches(images, inside, valid)
    assert_equal(compiled(images, keep=keep, valid=valid), encoder(images, inside=inside, valid=valid))


def slanted(out: torch.Tensor) -> torch.Tensor:
    return out * torch.linspace(0.2, 1.8, out.shape[-1])


class Slanted(nn.Module):
    """A block with something around it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *arguments, **options):
        return slanted(self.block(*arguments, **options))


def hook_on(layer: str):
    return lambda encoder: encoder.get_submodule(layer).register_forward_hook(lambda _, inputs, out: slanted(out))


def slant_the_input(encoder) -> None:
    encoder.blocks[1].register_forward_pre_hook(lambda _, inputs: (slanted(inputs[0]), *inputs[1:]))


def wrap(encoder) -> None:
    encoder.blocks[1] = Slanted(encoder.blocks[1])


def take_out(encoder) -> None:
    encoder.blocks[1] = nn.Identity()


LAYERS = ["blocks.1", "blocks.1.attn", "blocks.1.mlp", "patch_embed.proj", "attn_pool", "norm"]


@pytest.mark.parametrize("change", [*map(hook_on, LAYERS), slant_the_input, wrap, take_out])
def test_graphs_hold_what_hangs_on_blocks_and_layers(change):
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=64, depth=2, embed_dim=32, num_heads=2, pool="attention"
    ).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        before = encoder(images)
        change(encoder)
        expected = encoder(images)
        assert (expected - before).abs().max() > 1e-3
        graphs = [
            hx.export_program(encoder, "features").module(),
            torch.export.export(encoder, (images,)).module(),
            torch.jit.trace(encoder, (images,), check_trace=False),
        ]
        for graph in graphs:
            torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)


def test_hooks_on_what_is_written_layer_by_layer_are_refused():
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=32, num_heads=2)
    encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(hx.ArgumentError, match="hooks on its Encoder"):
        hx.export_program(encoder)
