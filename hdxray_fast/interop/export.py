"""The encoder as a graph that other runtimes execute: torch.export and ONNX, over whole images, any batch size.

What is exported is written out in standard operations (matrix products, softmax, LayerNorm, GELU) with PyTorch's
``scaled_dot_product_attention``: no operator of this package is in the graph.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from ..files import written_whole
from ..models.encoder import Encoder
from ..models.layers import Block
from ..models.pool import AttentionPool

OUTPUTS = ("features", "tokens", "map")
MAX_ONE_FILE = 2**31 - 2**20  # bytes of an ONNX file (protobuf); larger weights lie in a file beside it


class DenseEncoder(nn.Module):
    """``images [B, C, H, W]`` float to ``features [B, D]``, ``tokens [B, S, D]`` or a ``map [B, D, gh, gw]``.

    Shares its weights with ``encoder``; see :func:`export_onnx` for the arguments.
    """

    def __init__(self, encoder: Encoder, output: str = "features", pool: str | None = None, normalise: bool = False):
        super().__init__()
        _check(encoder, output)
        self.encoder, self.output, self.normalise = encoder, output, normalise
        self.pool = pool or encoder.pool or ("mean" if encoder.cls_token is None else "cls")
        if self.pool not in ("mean", "cls", "attention"):
            raise ArgumentError(f"pool: got {pool!r}, accepted are 'cls', 'mean' and 'attention'")
        if self.pool == "cls" and encoder.cls_token is None:
            raise ArgumentError("pool: got 'cls', this encoder has no class token")
        if self.pool == "attention" and encoder.pool != "attention":
            raise ArgumentError("pool: got 'attention', this encoder was not built with it")

    def forward(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        if self.normalise:
            images = _normalised(images, encoder.normalisation)
        x = encoder.add_prefix(encoder.patch_embed.embed_images(images))  # [B, S, D]
        for block in encoder.blocks:
            x = _block(block, x)
        x = encoder.norm(x)
        if self.output == "tokens":
            return x
        if self.output == "map":
            grid = x[:, encoder.num_prefix_tokens :].transpose(1, 2)  # [B, P, D] -> [B, D, P]
            return grid.unflatten(2, encoder.grid_size)
        if self.pool == "cls":
            return encoder.fc_norm(x[:, 0])
        if self.pool == "mean":
            return encoder.fc_norm(x[:, encoder.num_prefix_tokens :].mean(dim=1))
        return encoder.fc_norm(_attention_pool(encoder.attn_pool, x))


def export_program(
    encoder: Encoder, output: str = "features", *, pool: str | None = None, normalise: bool = False
) -> torch.export.ExportedProgram:
    """The encoder as a ``torch.export`` program with a dynamic batch; save it with ``torch.export.save``.

    Arguments and errors are those of :func:`export_onnx`.
    """
    model, training = DenseEncoder(encoder, output, pool, normalise), encoder.training
    # two images, because torch.export would take a batch of one for a constant
    images = torch.zeros(2, encoder.in_chans, *encoder.img_size).to(encoder.pos_embed)
    model.eval()
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    finally:
        encoder.train(training)


def export_onnx(
    encoder: Encoder,
    path: str | os.PathLike,
    output: str = "features",
    *,
    pool: str | None = None,
    normalise: bool = False,
    opset: int = 18,
) -> Path:
    """Write the encoder as an ONNX file: input ``images [batch, C, H, W]`` float, one output called as ``output``.

    Args:
        encoder: with ``keep="all"``; the graph computes all patches.
        path: the file; weights of 2 GiB and more go to ``<path>.data`` beside it.
        output: ``"features"`` (``[batch, D]``), ``"tokens"`` (``[batch, num_prefix_tokens + P, D]``) or ``"map"``
            (``[batch, D, gh, gw]``).
        pool: ``"cls"``, ``"mean"`` or ``"attention"``, for features; left out, the encoder's, or ``"cls"``, or in an
            encoder without class token ``"mean"``.
        normalise: the graph takes pixels on [0, 1] and normalises them as the encoder's ``normalisation`` says (over
            the whole image, padding included); left out, it takes normalised images.
        opset: ONNX operator set, at least 18.

    Returns:
        The path.

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
    program = export_program(encoder, output, pool=pool, normalise=normalise)
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
    weights = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    if weights > MAX_ONE_FILE:  # two files, which name each other, cannot appear at once
        graph.save(str(path), external_data=True)
        return path
    with written_whole(path) as temporary:
        graph.save(str(temporary), external_data=False)
    return path


def _check(encoder: object, output: object) -> None:
    if not isinstance(encoder, Encoder):
        raise ArgumentTypeError(f"encoder: got {type(encoder).__name__}, accepted is an Encoder")
    if isinstance(getattr(encoder, "head", None), nn.Module):
        raise ArgumentError(
            "encoder: is timm's model with its own pooling and head, which would be left out; save its state_dict and "
            "make an encoder of it with create_encoder(weights=...), or export it with torch.onnx.export"
        )
    if encoder.keep != "all":
        raise ArgumentError(
            f"encoder: has keep={encoder.keep!r}, the exported graph computes all patches; set encoder.keep = 'all'"
        )
    if output not in OUTPUTS:
        raise ArgumentError(f"output: got {output!r}, accepted are {', '.join(map(repr, OUTPUTS))}")


def _block(block: Block, x: Tensor) -> Tensor:  # [B, S, D]
    """:meth:`hdxray_fast.models.layers.Block.forward` in standard operations."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))  # [B, S, 3, H, Dh]
    x = x + block.ls1(block.attn.proj(_attention(*qkv.unbind(2))))
    return x + block.ls2(block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # 3 x [B, S, H, Dh] -> [B, S, D]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def _attention_pool(pool: AttentionPool, x: Tensor) -> Tensor:  # [B, S, D] -> [B, D]
    attn = pool.attn
    query = attn.q(pool.query).unflatten(-1, (1, attn.num_heads, -1)).expand(x.shape[0], -1, -1, -1)  # [B, 1, H, Dh]
    k, v = attn.kv(pool.norm(x)).unflatten(-1, (2, attn.num_heads, -1)).unbind(2)  # 2 x [B, S, H, Dh]
    return attn.proj(_attention(query, k, v)).squeeze(1)


def _normalised(images: Tensor, normalisation: str | tuple[float, float]) -> Tensor:
    """As :meth:`hdxray_fast.models.encoder.Encoder.pixel_scale` has it for images of 8 bits."""
    if normalisation != "per_image":
        mean, std = normalisation
        return (images - mean) / std
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    std = (images - mean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return (images - mean) / std.clamp(min=1 / 255)  # one grey level: a flat image stays finite
