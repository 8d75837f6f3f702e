"""Models written out over whole images: what is exported, in standard operations alone.

Matrix products, softmax, LayerNorm and GELU, with PyTorch's ``scaled_dot_product_attention``: no operator of this
package is in the graph. Every module here shares its weights with the model it is made of.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..classify.classifier import Classifier
from ..classify.heads import AttentionHead, LabelQueryHead, LinearHead
from ..errors import ArgumentError, ArgumentTypeError
from ..models.encoder import Encoder
from ..models.layers import Block, CrossAttention, CrossBlock
from ..models.pool import AttentionPool

ENCODER_OUTPUTS = ("features", "tokens", "map")
HEAD_OUTPUTS = ("logits", "probabilities")


class DenseEncoder(nn.Module):
    """``images [B, C, H, W]`` float to ``features [B, D]``, ``tokens [B, S, D]`` or a ``map [B, D, gh, gw]``.

    See :func:`.export_onnx` for the arguments.
    """

    def __init__(self, encoder: Encoder, output: str = "features", pool: str | None = None, normalise: bool = False):
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise ArgumentTypeError(f"encoder: got {type(encoder).__name__}, accepted is an Encoder")
        if encoder.keep != "all":
            raise ArgumentError(
                f"encoder: has keep={encoder.keep!r}, the exported graph computes all patches; set encoder.keep = 'all'"
            )
        if output not in ENCODER_OUTPUTS:
            raise ArgumentError(f"output: got {output!r}, accepted are {', '.join(map(repr, ENCODER_OUTPUTS))}")
        self.encoder, self.output, self.normalise = encoder, output, normalise
        self.pool = pool or encoder.pool or ("mean" if encoder.cls_token is None else "cls")
        if self.pool not in ("mean", "cls", "attention"):
            raise ArgumentError(f"pool: got {pool!r}, accepted are 'cls', 'mean' and 'attention'")
        if self.pool == "cls" and encoder.cls_token is None:
            raise ArgumentError("pool: got 'cls', this encoder has no class token")
        if self.pool == "attention" and encoder.pool != "attention":
            raise ArgumentError("pool: got 'attention', this encoder was not built with it")

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        if self.output == "tokens":
            return x
        if self.output == "map":
            grid = x[:, self.encoder.num_prefix_tokens :].transpose(1, 2)  # [B, P, D] -> [B, D, P]
            return grid.unflatten(2, self.encoder.grid_size)
        return self.encoder.fc_norm(self.pooled(x, self.pool))

    def tokens(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, S, D]
        encoder = self.encoder
        if self.normalise:
            images = _normalised(images, encoder.normalisation)
        x = encoder.add_prefix(encoder.patch_embed.embed_images(images))
        for block in encoder.blocks:
            x = _block(block, x)
        return encoder.norm(x)

    def pooled(self, x: Tensor, pool: str) -> Tensor:  # [B, S, D] -> [B, D]
        if pool == "cls":
            return x[:, 0]
        if pool == "mean":
            return x[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        return _attention_pool(self.encoder.attn_pool, x)


class DenseClassifier(nn.Module):
    """``images [B, C, H, W]`` float to a classifier's ``logits`` or ``probabilities`` ``[B, num_classes]``."""

    def __init__(self, model: Classifier, output: str = "logits", normalise: bool = False) -> None:
        super().__init__()
        if model.encoder.keep != "all":
            raise ArgumentError(
                f"model: its encoder has keep={model.encoder.keep!r}, the exported graph computes all patches, which "
                "other probabilities come of; set model.encoder.keep = 'all', and evaluate it anew"
            )
        self.model, self.output = model, output
        self.encoder = DenseEncoder(model.encoder, "tokens", normalise=normalise)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(self.encoder.tokens(images))
        return logits if self.output == "logits" else self.model.probabilities(logits)

    def logits(self, x: Tensor) -> Tensor:  # [B, S, D] -> [B, num_classes]
        """:meth:`.Classifier.classify` in standard operations."""
        head, norm = self.model.head, self.model.encoder.fc_norm
        if isinstance(head, LinearHead):
            return head.decide(norm(self.encoder.pooled(x, head.pool)))
        if isinstance(head, AttentionHead):
            return head.fc(head.norm(_attention_pool(head.attn_pool, norm(x))))
        return _label_queries(head, norm(x))


class DenseTimm(nn.Module):
    """``images [B, C, H, W]`` float to what the timm model gives: ``logits``, or ``features``, which its head sees."""

    def __init__(self, model: Encoder, output: str, normalise: bool = False) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.encoder = DenseEncoder(model, "tokens", normalise=normalise)

    def forward(self, images: Tensor) -> Tensor:
        model, x = self.model, self.encoder.tokens(images)
        if model.global_pool != "map":
            return model.forward_head(x, pre_logits=self.output == "features")
        features = model.fc_norm(self.encoder.pooled(x, "attention"))
        return features if self.output == "features" else model.head(features)


def dense(model: nn.Module, output: str | None, pool: str | None, normalise: bool) -> tuple[nn.Module, Encoder, str]:
    """The module that is exported for ``model``, its encoder, and the name of what it gives.

    Args:
        model: an encoder, a classifier, or either library's model of an encoder.
        output, pool, normalise: see :func:`.export_onnx`.
    """
    if not isinstance(model, Encoder | Classifier) and isinstance(getattr(model, "encoder", None), Encoder):
        if type(model).__name__ != "HDXrayModel":  # of transformers, which need not be there
            raise ArgumentTypeError(
                f"encoder: got {type(model).__name__}, which has more than the encoder; accepted are an encoder, a "
                "classifier (load_classifier), an HDXrayModel and timm's models of this package"
            )
        model = model.encoder  # which pools as the model does
    of_timm = isinstance(getattr(model, "head", None), nn.Module) and isinstance(model, Encoder)
    with_head = isinstance(model, Classifier) or (of_timm and not isinstance(model.head, nn.Identity))
    output = output or ("logits" if with_head else "features")
    accepted = [*HEAD_OUTPUTS[: 1 if of_timm else 2], *ENCODER_OUTPUTS] if with_head else ENCODER_OUTPUTS
    if output not in accepted:
        why = ""
        if of_timm and with_head:
            why = "; a timm model does not say whether its classes exclude each other"
        raise ArgumentError(f"output: got {output!r}, accepted are {', '.join(map(repr, accepted))}{why}")
    if output in HEAD_OUTPUTS and pool is not None:
        raise ArgumentError(f"pool: got {pool!r}, which is for output='features'; a head pools as it was trained")
    if output in HEAD_OUTPUTS and isinstance(model, Classifier):
        return DenseClassifier(model, output, normalise), model.encoder, output
    if of_timm and pool is None and output in ("logits", "features"):
        return DenseTimm(model, output, normalise), model, output
    encoder = model.encoder if isinstance(model, Classifier) else model
    return DenseEncoder(encoder, output, pool, normalise), encoder, output


def _block(block: Block, x: Tensor) -> Tensor:  # [B, S, D]
    """:meth:`hdxray_fast.models.layers.Block.forward` in standard operations."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))  # [B, S, 3, H, Dh]
    x = x + block.ls1(block.attn.proj(_attention(*qkv.unbind(2))))
    return x + block.ls2(block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))))


def _cross_block(block: CrossBlock, x: Tensor, y: Tensor) -> Tensor:  # [B, Q, D], [B, S, D]
    """:meth:`hdxray_fast.models.layers.CrossBlock.forward` in standard operations."""
    x = x + _cross_attention(block.cross_attn, block.norm1(x), y)
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def _cross_attention(attn: CrossAttention, x: Tensor, y: Tensor) -> Tensor:  # [B, Q, D], [B, S, D] -> [B, Q, D]
    q = attn.q(x).unflatten(-1, (attn.num_heads, -1))  # [B, Q, H, Dh]
    k, v = attn.kv(y).unflatten(-1, (2, attn.num_heads, -1)).unbind(2)  # 2 x [B, S, H, Dh]
    return attn.proj(_attention(q, k, v))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, Q, H, Dh], 2 x [B, S, H, Dh] -> [B, Q, D]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def _attention_pool(pool: AttentionPool, x: Tensor) -> Tensor:  # [B, S, D] -> [B, D]
    query = pool.query.expand(x.shape[0], 1, -1)
    return _cross_attention(pool.attn, query, pool.norm(x)).squeeze(1)


def _label_queries(head: LabelQueryHead, y: Tensor) -> Tensor:  # [B, S, D] -> [B, C]
    queries = head.queries if head.text is None else head.project(head.text.to(head.project.weight.dtype))
    x = queries.expand(y.shape[0], -1, -1)  # [B, C, D]
    for block, cross in zip(head.self_blocks, head.cross_blocks, strict=True):
        x = _cross_block(cross, _block(block, x), y)
    return head.fc(head.norm(x)).squeeze(-1)


def _normalised(images: Tensor, normalisation: str | tuple[float, float]) -> Tensor:
    """As :meth:`hdxray_fast.models.encoder.Encoder.pixel_scale` has it for images of 8 bits."""
    if normalisation != "per_image":
        mean, std = normalisation
        return (images - mean) / std
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    std = (images - mean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return (images - mean) / std.clamp(min=1 / 255)  # one grey level: a flat image stays finite
