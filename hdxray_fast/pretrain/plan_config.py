"""What a planned pre-training is: its radiographs, model, devices and batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError
from ..ops.mask_ratio import RATIO_INSIDE, RATIO_OUTSIDE
from .config import check_encoder_name, decoder_size
from .gpus import DEVICES


@dataclass(frozen=True)
class PlanConfig:
    """A planned pre-training.

    Args:
        images: how many radiographs; taken from ``data`` if that is given.
        data: a prepared data set, to take the number of images, their contours and their padding from.
        model: encoder preset: ``vit_tiny_patch16``, and likewise small, base, large and huge; or with ``stem64``.
        decoder: ``cross`` or ``self``.
        decoder_embed_dim: width of the decoder; as for ``pretrain`` by default: 512, and 192 for tiny encoders.
        decoder_depth: blocks of the decoder; 8 by default, 4 for tiny encoders.
        img_size: canvas side, pixels; that of ``data`` by default, or 1280.
        gpus: how many.
        gpu: their kind: ``h100``, ``h200``, ``a100``, ``b200``, ``l40s``, ``a6000``, ``rtx4090``, or ``cpu``.
        batch_size: images per GPU and forward pass.
        epochs: passes over the images.
        precision: ``bf16``, ``fp32``, or ``auto``: fp32 on a CPU, bf16 on GPUs.
        inside: share of a canvas inside the contour.
        valid: share of a canvas that is no padding.
        ratio_inside: share of the patches inside the contour that are masked.
        ratio_outside: share of the patches outside the contour that are masked.
        predict: share of the masked patches that are predicted; the decoder's by default.
        grad_accum: batches per step.
        checkpoint_activations: blocks are computed again in the backward pass.
        shard: weights, gradients and optimizer state are spread over the GPUs (FSDP2).
        format: of the prepared images: ``raw``, ``png`` or ``jpeg``.
        bits: of the prepared images, 8 or 16.
    """

    images: int | None = None
    data: str | None = None
    model: str = "vit_base_patch16"
    decoder: Literal["cross", "self"] = "cross"
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    img_size: int | None = None
    gpus: int = 8
    gpu: str = "h100"
    batch_size: int = 32
    epochs: float = 100
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    inside: float = 0.38
    valid: float = 0.85
    ratio_inside: float = RATIO_INSIDE
    ratio_outside: float = RATIO_OUTSIDE
    predict: float | None = None
    grad_accum: int = 1
    checkpoint_activations: bool = False
    shard: bool = False
    format: Literal["raw", "png", "jpeg"] = "raw"
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.gpu not in (*DEVICES, "cpu"):
            raise ConfigError(f"gpu: got {self.gpu!r}, accepted are {', '.join(DEVICES)} and cpu")
        if self.images is None and self.data is None:
            raise ConfigError("images and data: give one of them, the number of radiographs or a prepared data set")
        check_encoder_name(self.model)
        for name in ("images", "gpus", "batch_size", "grad_accum", "img_size", "decoder_embed_dim", "decoder_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: got {value}, accepted are whole numbers from 1 on")
        for name in ("inside", "valid", "ratio_inside", "ratio_outside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, accepted are shares from 0 to 1")
        if not self.epochs > 0 or (self.predict is not None and not 0 < self.predict <= 1):
            raise ConfigError("epochs is above 0, and predict a share above 0 and up to 1")

    def filled_in(self) -> PlanConfig:
        """These settings with a decoder, a size and a precision, and the format of ``data``.

        Raises:
            ConfigError: ``data`` is no prepared data set, or of another size.
        """
        size, stored = self.img_size or 1280, {}
        if self.data is not None:
            from ..data.prepared.chunk_store import is_address
            from ..data.prepared.reading import PreparedSet

            if is_address(self.data):
                raise ConfigError("data: plan reads sets on a disk; for one at an address give images and img_size")
            recipe = PreparedSet(self.data).recipe
            if self.img_size not in (None, recipe["size"]):
                raise ConfigError(
                    f"img_size: got {self.img_size}, {self.data} was prepared with {recipe['size']}; leave it out"
                )
            size, stored = recipe["size"], {name: recipe[name] for name in ("format", "bits")}
        width, depth = decoder_size(self.model, self.decoder_embed_dim, self.decoder_depth)
        precision = ("fp32" if self.gpu == "cpu" else "bf16") if self.precision == "auto" else self.precision
        filled = {"img_size": size, "decoder_embed_dim": width, "decoder_depth": depth, "precision": precision}
        return replace(self, **filled, **stored)
