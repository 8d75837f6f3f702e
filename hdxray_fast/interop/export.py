"""Models as graphs that other runtimes execute: torch.export and ONNX, over whole images, any batch size."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import torch
from torch import nn

from ..classify.classifier import Classifier
from ..errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from ..files import written_whole
from .dense import HEAD_OUTPUTS, dense

MAX_ONE_FILE = 2**31 - 2**20  # bytes of an ONNX file (protobuf); larger weights lie in a file beside it


def export_program(
    encoder: nn.Module, output: str | None = None, *, pool: str | None = None, normalise: bool = False
) -> torch.export.ExportedProgram:
    """A model as a ``torch.export`` program with a dynamic batch; save it with ``torch.export.save``.

    Arguments and errors are those of :func:`export_onnx`; the program has the dtype of the model's weights.
    """
    model, inner, _ = dense(encoder, output, pool, normalise)
    # two images, because torch.export would take a batch of one for a constant
    images = torch.zeros(2, inner.in_chans, *inner.img_size).to(inner.pos_embed)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
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
    opset: int = 18,
) -> Path:
    """Write a model as an ONNX file: input ``images [batch, C, H, W]`` float, one output called as ``output``.

    Args:
        encoder: an encoder, a classifier with its head (:func:`.load_classifier`), an ``HDXrayModel`` of transformers
            or a model of timm's registry; with ``keep="all"``, for the graph computes all patches. Weights of another
            dtype are written as float32.
        path: the file; weights of 2 GiB and more go to ``<path>.data`` beside it.
        output: ``"features"`` (``[batch, D]``), ``"tokens"`` (``[batch, num_prefix_tokens + P, D]``) or ``"map"``
            (``[batch, D, gh, gw]``) of the encoder; of a head ``"logits"`` (``[batch, num_classes]``) or, of a
            classifier, ``"probabilities"``. Left out, logits where there is a head, otherwise features.
        pool: ``"cls"``, ``"mean"`` or ``"attention"``, for features; left out, the encoder's, or ``"cls"``, or in an
            encoder without class token ``"mean"``.
        normalise: the graph takes pixels on [0, 1] and normalises them as the encoder's ``normalisation`` says (over
            the whole image, padding included); left out, it takes normalised images.
        opset: ONNX operator set, at least 18.

    Returns:
        The path. The file of a head holds ``classes``, ``thresholds`` and ``multiclass`` of its classifier as JSON in
        its metadata.

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
    output = dense(encoder, output, pool, normalise)[-1]
    program = export_program(_in_float32(encoder), output, pool=pool, normalise=normalise)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX export needs onnx and onnxscript: pip install 'hdxray-fast[export]'"
        ) from error
    graph = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes={"images": {0: "batch"}},
        input_names=["images"],
        output_names=[output],
        verbose=False,
    )
    written = next(entry.version for entry in graph.model_proto.opset_import if not entry.domain)
    if written != opset:
        raise ArgumentError(f"opset: got {opset}, this version of onnxscript writes {written} instead; give that")
    if isinstance(encoder, Classifier) and output in HEAD_OUTPUTS:
        for name in ("classes", "thresholds", "multiclass"):
            graph.model.metadata_props[name] = json.dumps(getattr(encoder.config, name))
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > MAX_ONE_FILE:  # two files, which name each other, cannot appear at once
        graph.save(str(path), external_data=True)
        return path
    with written_whole(path) as temporary:
        graph.save(str(temporary), external_data=False)
    return path


def _in_float32(model: nn.Module) -> nn.Module:
    """``model``, or a copy of it in float32: runtimes lack kernels for bfloat16, and most for float16 on the CPU."""
    if all(tensor.dtype == torch.float32 for tensor in model.parameters()):
        return model
    return copy.deepcopy(model).float()
