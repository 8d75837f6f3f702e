"""Models as graphs that other runtimes execute: torch.export and ONNX, over whole images, any batch size."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..classify.classifier import Classifier
from ..errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from ..extras import install
from ..files import written_whole
from ..models.encoder import Encoder
from ..models.grey_levels import level_of_caller
from .dense import HEAD_OUTPUTS, INTEGERS, DenseEncoder, PixelInput, dense

MAX_ONE_FILE = 2**31 - 2**20  # bytes of an ONNX file (protobuf); larger weights lie in a file beside it


def export_program(
    encoder: nn.Module,
    output: str | None = None,
    *,
    pool: str | None = None,
    normalise: bool = False,
    pixels: str = "float",
    valid: bool = False,
) -> torch.export.ExportedProgram:
    """A model as a ``torch.export`` program with a dynamic batch; save it with ``torch.export.save``.

    Arguments and errors are those of :func:`export_onnx`; the program has the dtype of the model's weights. Its module
    is called as ``program.module()(images)``, and where the graph has these inputs with ``keep=`` and ``valid=``.
    """
    pixel_input = PixelInput(pixels, normalise, valid)
    model, inner, _ = dense(encoder, output, pool, pixel_input)
    if pixel_input.normalises and inner.normalisation == "per_image" and not valid:
        warnings.warn(
            "valid: is left out, so the graph takes mean and deviation over whole images, and padding counts, as it "
            "does not in embed; valid=True makes an input of the graph for the patches that are none",
            stacklevel=level_of_caller(),
        )
    images, grids = _example_inputs(inner, pixels, valid)
    shapes = {name: {0: torch.export.Dim("batch")} for name in ("images", *grids)}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), grids, dynamic_shapes=shapes)
    finally:
        for module, training in modes:
            module.training = training


def export_onnx(
    encoder: nn.Module,
    path: str | os.PathLike,
    output: str | None = None,
    *,
    pool: str | None = None,
    normalise: bool = False,
    pixels: str = "float",
    valid: bool = False,
    opset: int = 18,
) -> Path:
    """Write a model as an ONNX file: input ``images [batch, C, H, W]``, one output called as ``output``.

    The graph computes all patches. Of a model with ``keep="valid"`` or ``"contour"`` it has an input
    ``keep [batch, gh, gw]`` bool: the patches that count, which :meth:`.Encoder.kept_patches` gives. The others are no
    keys of any attention and part of no pooling, so the outputs are the model's own (zero for other patches in tokens
    and map); an image that keeps none is looked at whole.

    Args:
        encoder: an encoder, a classifier with its head (:func:`.load_classifier`), an ``HDXrayModel`` of transformers
            or a model of timm's registry. Weights of another dtype are written as float32.
        path: the file; weights of 2 GiB and more go to ``<path>.data`` beside it.
        output: ``"features"`` (``[batch, D]``), ``"tokens"`` (``[batch, num_prefix_tokens + P, D]``) or ``"map"``
            (``[batch, D, gh, gw]``) of the encoder; of a head ``"logits"`` (``[batch, num_classes]``) or, of a
            classifier, ``"probabilities"``. Left out, logits where there is a head, otherwise features.
        pool: ``"cls"``, ``"mean"`` or ``"attention"``, for features; left out, the encoder's, or ``"cls"``, or in an
            encoder without class token ``"mean"``.
        normalise: the graph takes pixels on [0, 1] and normalises them as the encoder's ``normalisation`` says; left
            out, it takes normalised images. Integers are always normalised.
        pixels: ``"float"`` (float32), ``"uint8"`` or ``"uint16"``, the dtype of ``images``.
        valid: the graph has an input ``valid [batch, gh, gw]`` bool, the patches that are no padding, over which
            ``"per_image"`` takes mean and deviation; left out, they are taken over the whole image, and a
            warning says so.
        opset: ONNX operator set, at least 18.

    Returns:
        The path. Its metadata hold as JSON ``normalisation`` (``null`` where the graph takes normalised images),
        ``keep`` and ``margin`` of the encoder, of features ``pool``, and of a classifier's head ``classes``,
        ``thresholds`` and ``multiclass``.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path: got {type(path).__name__}, accepted is a path")
    if isinstance(opset, bool) or not isinstance(opset, int) or opset < 18:
        raise ArgumentError(f"opset: got {opset!r}, accepted is an int of at least 18")
    path = Path(path)
    if not path.parent.is_dir():
        raise ArgumentError(f"path: got {path}, there is no folder {path.parent}")
    if path.is_dir():
        raise ArgumentError(f"path: got {path}, which is a folder; name a file such as {path / 'encoder.onnx'}")
    pixel_input = PixelInput(pixels, normalise, valid)
    network, inner, output = dense(encoder, output, pool, pixel_input)
    pooled = network.pool if output == "features" and isinstance(network, DenseEncoder) else None
    program = export_program(_in_float32(encoder), output, pool=pool, normalise=normalise, pixels=pixels, valid=valid)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"ONNX export needs onnx and onnxscript: {install('export')}") from error
    inputs = ["images", *_example_inputs(inner, pixels, valid)[1]]
    with warnings.catch_warnings():  # torch's exporter copies the program, and what it copies is deprecated by torch
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        # of a second input, whose batch is meant to be that of the images
        warnings.filterwarnings("ignore", r".*axis name: batch will not be used", UserWarning)
        graph = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={name: {0: "batch"} for name in inputs},
            input_names=inputs,
            output_names=[output],
            verbose=False,
        )
    written = next(entry.version for entry in graph.model_proto.opset_import if not entry.domain)
    if written != opset:
        raise ArgumentError(f"opset: got {opset}, this version of onnxscript writes {written} instead; give that")
    told = {"normalisation": inner.normalisation if pixel_input.normalises else None}
    told |= {name: getattr(inner, name) for name in ("keep", "margin")}
    told |= {} if pooled is None else {"pool": pooled}
    if isinstance(encoder, Classifier) and output in HEAD_OUTPUTS:
        told |= {name: getattr(encoder.config, name) for name in ("classes", "thresholds", "multiclass")}
    for name, value in told.items():
        graph.model.metadata_props[name] = json.dumps(value)
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > MAX_ONE_FILE:  # two files, which name each other, cannot appear at once
        graph.save(str(path), external_data=True)
        return path
    with written_whole(path) as temporary:
        graph.save(str(temporary), external_data=False)
    return path


def _example_inputs(encoder: Encoder, pixels: str, valid: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Images as a graph takes them, and the grids beside them by their names.

    Two images, because torch.export would take a batch of one for a constant.
    """
    device = encoder.pos_embed.device
    dtype = INTEGERS[pixels][0] if pixels in INTEGERS else encoder.pos_embed.dtype
    wanted = [name for name, there in (("keep", encoder.keep != "all"), ("valid", valid)) if there]
    grids = {name: torch.ones(2, *encoder.grid_size, dtype=torch.bool, device=device) for name in wanted}
    return torch.zeros(2, encoder.in_chans, *encoder.img_size, dtype=dtype, device=device), grids


def _in_float32(model: nn.Module) -> nn.Module:
    """``model``, or a copy of it in float32: runtimes lack kernels for bfloat16, and most for float16 on the CPU."""
    if all(tensor.dtype == torch.float32 for tensor in model.parameters()):
        return model
    return copy.deepcopy(model).float()
