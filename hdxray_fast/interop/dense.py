"""Models written out over whole images: what is exported, in standard operations alone.

Every module here shares its weights with the model it is made of; :mod:`hdxray_fast.models.dense` has the layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..classify.classifier import Classifier
from ..errors import ArgumentError, ArgumentTypeError
from ..images.standardise import standardising
from ..models import dense as layers
from ..models.encoder import Encoder
from ..models.encoder_config import fixed_scale

ENCODER_OUTPUTS = ("features", "tokens", "map")
HEAD_OUTPUTS = ("logits", "probabilities")
INTEGERS = {"uint8": (torch.uint8, 255.0), "uint16": (torch.uint16, 65535.0)}  # dtype and its largest level
PIXELS = ("float", *INTEGERS)


@dataclass(frozen=True)
class PixelInput:
    """What pixels a graph takes.

    Attributes:
        pixels: ``"float"``, ``"uint8"`` or ``"uint16"``.
        normalise: the graph normalises them, which it always does to integers; floats are on [0, 1] then.
        valid: mean and deviation of ``"per_image"`` are taken over an input ``valid``.
    """

    pixels: str = "float"
    normalise: bool = False
    valid: bool = False

    def check(self, encoder: Encoder) -> PixelInput:
        """This, if it is of accepted values, and fits the encoder."""
        if self.pixels not in PIXELS:
            raise ArgumentError(f"pixels: got {self.pixels!r}, accepted are {', '.join(map(repr, PIXELS))}")
        for name in ("normalise", "valid"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentTypeError(f"{name}: got {getattr(self, name)!r}, accepted is a bool")
        if self.valid and not (self.normalises and encoder.normalisation == "per_image"):
            raise ArgumentError(
                "valid: got True, which is for graphs that normalise (pixels='uint8' or normalise=True) by the mean "
                f"and deviation of each image; normalisation of this encoder is {encoder.normalisation!r}"
            )
        return self

    @property
    def normalises(self) -> bool:
        """Whether the graph normalises."""
        return self.normalise or self.pixels in INTEGERS


class DenseEncoder(nn.Module):
    """``images [B, C, H, W]`` to ``features [B, D]``, ``tokens [B, S, D]`` or a ``map [B, D, gh, gw]``.

    See :func:`.export_onnx` for the arguments and inputs. Where the encoder does not look at all patches, ``keep`` is
    needed, and patches that are not kept are zero in ``tokens`` and ``map``.
    """

    def __init__(
        self, encoder: Encoder, output: str = "features", pool: str | None = None, pixels: PixelInput | None = None
    ) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise ArgumentTypeError(f"encoder: got {type(encoder).__name__}, accepted is an Encoder")
        if output not in ENCODER_OUTPUTS:
            raise ArgumentError(f"output: got {output!r}, accepted are {', '.join(map(repr, ENCODER_OUTPUTS))}")
        self.encoder, self.output = encoder, output
        self.pixels = (pixels or PixelInput()).check(encoder)
        self.pool = pool or encoder.pool or ("mean" if encoder.cls_token is None else "cls")
        if self.pool not in ("mean", "cls", "attention"):
            raise ArgumentError(f"pool: got {pool!r}, accepted are 'cls', 'mean' and 'attention'")
        if self.pool == "cls" and encoder.cls_token is None:
            raise ArgumentError("pool: got 'cls', this encoder has no class token")
        if self.pool == "attention" and encoder.pool != "attention":
            raise ArgumentError("pool: got 'attention', this encoder was not built with it")

    def forward(self, images: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        encoder = self.encoder
        x, kept = self.tokens(images, keep, valid)
        if self.output == "features":
            attn_pool = encoder.attn_pool if self.pool == "attention" else None
            return encoder.fc_norm(layers.pooled(x, self.pool, encoder.num_prefix_tokens, attn_pool, kept))
        if kept is not None:
            x = torch.where(kept[..., None], x, 0.0)
        if self.output == "tokens":
            return x
        return x[:, encoder.num_prefix_tokens :].transpose(1, 2).unflatten(2, encoder.grid_size)  # -> [B, D, gh, gw]

    def tokens(
        self,
        images: Tensor,  # [B, C, H, W]
        keep: Tensor | None,  # [B, gh, gw] bool
        valid: Tensor | None,  # [B, gh, gw] bool
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised tokens ``[B, S, D]``, and which of them count, bool ``[B, S]`` (None for all)."""
        encoder = self.encoder
        kept = None if keep is None else layers.kept_tokens(keep, encoder.num_prefix_tokens)
        if self.pixels.normalises:
            images = _normalised(images, self.pixels.pixels, encoder.normalisation, encoder.patch_size, valid)
        x = encoder.add_prefix(encoder.patch_embed(images.to(encoder.pos_embed.dtype)))
        for block in encoder.blocks:
            x = layers.run_block(block, x, kept)
        return encoder.norm(x), kept


class DenseClassifier(nn.Module):
    """``images [B, C, H, W]`` to a classifier's ``logits`` or ``probabilities`` ``[B, num_classes]``."""

    def __init__(self, model: Classifier, output: str = "logits", pixels: PixelInput | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.encoder = DenseEncoder(model.encoder, "tokens", pixels=pixels)

    def forward(self, images: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        logits = self.model.classify_dense(*self.encoder.tokens(images, keep, valid))
        return logits if self.output == "logits" else self.model.probabilities(logits)


class DenseTimm(nn.Module):
    """``images [B, C, H, W]`` to what the timm model gives: ``logits``, or ``features``, which its head sees."""

    def __init__(self, model: Encoder, output: str, pixels: PixelInput | None = None) -> None:
        super().__init__()
        if model.keep != "all":
            raise ArgumentError(
                f"encoder: has keep={model.keep!r}, but timm's models look at all patches; set keep = 'all'"
            )
        self.model, self.output = model, output
        self.encoder = DenseEncoder(model, "tokens", pixels=pixels)

    def forward(self, images: Tensor, keep: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        return self.model.forward_head(self.encoder.tokens(images, keep, valid)[0], self.output == "features")


def dense(model: nn.Module, output: str | None, pool: str | None, pixels: PixelInput) -> tuple[nn.Module, Encoder, str]:
    """The module that is exported for ``model``, its encoder, and the name of what it gives.

    Args:
        model: an encoder, a classifier, or either library's model of an encoder.
        output, pool: see :func:`.export_onnx`.
        pixels: what the images are.
    """
    if not isinstance(model, Encoder) and hasattr(model, "to_classifier"):  # transformers', which need not be there
        model = model.to_classifier()
    for part in (model, getattr(model, "encoder", None), getattr(model, "head", None)):
        if isinstance(part, nn.Module) and (part._forward_hooks or part._forward_pre_hooks):
            raise ArgumentError(
                f"encoder: there are hooks on its {type(part).__name__}, which is written layer by layer; hang them on "
                "layers or blocks, or remove them"
            )
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
        return DenseClassifier(model, output, pixels), model.encoder, output
    if of_timm and pool is None and output in ("logits", "features"):
        return DenseTimm(model, output, pixels), model, output
    encoder = model.encoder if isinstance(model, Classifier) else model
    return DenseEncoder(encoder, output, pool, pixels), encoder, output


def _normalised(
    images: Tensor, pixels: str, normalisation: str | tuple[float, float], patch_size: int, valid: Tensor | None
) -> Tensor:
    """As :meth:`hdxray_fast.models.encoder.Encoder.normalise`, float32.

    Means are taken of patches first and of these then: a runtime that sums one by one would lose digits over the 1.6
    million pixels of a canvas.
    """
    levels, white = (images.float(), INTEGERS[pixels][1]) if pixels in INTEGERS else (images.float() * 255.0, 255.0)
    if normalisation != "per_image":
        scale, shift = fixed_scale(normalisation, white)
        return levels * scale + shift
    mean = _mean_of_patches(levels, patch_size, valid)
    variance = _mean_of_patches((levels - mean[:, None, None, None]).square(), patch_size, valid)
    scale, shift = standardising(mean, variance.sqrt())
    return levels * scale[:, None, None, None] + shift[:, None, None, None]


def _mean_of_patches(values: Tensor, p: int, valid: Tensor | None) -> Tensor:  # [B, C, H, W] -> [B]
    """The mean over the valid patches (bool ``[B, gh, gw]``); of an image without any, over all."""
    means = values.unflatten(3, (-1, p)).unflatten(2, (-1, p)).mean(dim=(1, 3, 5))  # [B, gh, gw]
    if valid is None:
        return means.mean(dim=(1, 2))
    counts = (valid | ~valid.flatten(1).any(dim=1)[:, None, None]).to(means.dtype)
    return (means * counts).sum(dim=(1, 2)) / counts.sum(dim=(1, 2))
