"""Radiographs for :class:`.HDXrayModel`: files, arrays, tensors and PIL images to ``pixel_values``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from ..errors import ArgumentError, ArgumentTypeError
from ..images.canvas import Canvas, read_canvas
from ..images.contour import find_contour
from ..images.picture import readable
from ..images.standardise import standardisation
from ..models.encoder_config import EncoderConfig, fixed_scale
from ..weights.hub_files import preprocessor_settings


class HDXrayImagesKwargs(ImagesKwargs, total=False):
    """Settings beyond those that every image processor has."""

    patch_size: int
    num_channels: int
    normalisation: str | list[float]
    return_grids: bool


class HDXrayImageProcessor(BaseImageProcessor):
    """Lays radiographs on square canvases and normalises them as the encoder was trained.

    Args:
        size: side of the canvas in pixels, or ``{"height": ..., "width": ...}`` with both equal.
        patch_size: edge of a patch, pixels.
        num_channels: 1, or 3 for three equal channels.
        normalisation: ``"per_image"`` (mean 0, deviation 1 over the patches that are no padding), or ``[mean, std]``
            of pixels on [0, 1].
        do_normalize: ``False`` gives the canvases as they are, uint8.
        return_grids: give ``inside`` (patches of the chest) and ``valid`` (patches that are no padding) too.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers asks for a list)
    valid_kwargs = HDXrayImagesKwargs

    def __init__(
        self,
        size: int | dict[str, int] = 1280,
        patch_size: int = 16,
        num_channels: int = 1,
        normalisation: str | Iterable[float] = "per_image",
        do_normalize: bool = True,
        return_grids: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = _size(size)
        self.patch_size, self.num_channels = patch_size, num_channels
        self.normalisation = normalisation if isinstance(normalisation, str) else list(normalisation)
        self.do_normalize, self.return_grids = do_normalize, return_grids

    @classmethod
    def from_config(cls, config: EncoderConfig) -> HDXrayImageProcessor:
        """The processor of an encoder with these settings."""
        settings = preprocessor_settings(config)
        del settings["image_processor_type"]
        return cls(**settings)

    def preprocess(
        self,
        images: Any,
        size: int | dict[str, int] | None = None,
        do_normalize: bool | None = None,
        return_grids: bool | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare radiographs.

        Args:
            images: one or a list of: paths (DICOM, PNG, JPEG, TIFF, BMP, WebP, .npy), PIL images, arrays or tensors
                ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` (bright = dense); or one array or tensor ``[B, C, H, W]``.
            size, do_normalize, return_grids: as in the constructor; left out, as said there.
            return_tensors: ``"pt"`` or ``"np"``.

        Returns:
            ``pixel_values [B, C, S, S]`` float32 (uint8 if not normalised), and if asked for ``inside`` and ``valid``
            ``[B, S / patch_size, S / patch_size]`` bool.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
            ImageReadError: a file cannot be read; the message names it.
        """
        if unknown := sorted(name for name, value in kwargs.items() if value is not None):
            raise ArgumentError(
                f"{unknown[0]}: is no option of this processor, accepted are size, do_normalize, return_grids and "
                "return_tensors"
            )
        size = self.size if size is None else _size(size)
        if size["height"] != size["width"]:
            raise ArgumentError(
                f"size: got {size['height']} x {size['width']}, radiographs are laid on square canvases; make tensors "
                "[B, C, H, W] yourself for other shapes"
            )
        normalise = self.do_normalize if do_normalize is None else do_normalize
        grids = self.return_grids if return_grids is None else return_grids
        canvases = [read_canvas(readable(image), size=size["height"]) for image in _listed(images)]
        valid = [canvas.valid_grid(self.patch_size) for canvas in canvases]
        pixels = [self._pixels(canvas, grid, normalise) for canvas, grid in zip(canvases, valid, strict=True)]
        data = {"pixel_values": np.stack([np.stack([image] * self.num_channels) for image in pixels])}  # [B, C, S, S]
        if grids:
            inside = [find_contour(canvas, patch_size=self.patch_size).inside for canvas in canvases]
            data["inside"] = np.stack([a & b for a, b in zip(inside, valid, strict=True)])
            data["valid"] = np.stack(valid)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _pixels(self, canvas: Canvas, valid: np.ndarray, normalise: bool) -> np.ndarray:
        if not normalise:
            return canvas.pixels
        if self.normalisation == "per_image":
            scale, shift = standardisation(canvas.pixels, valid)
        else:
            scale, shift = fixed_scale(self.normalisation)
        return canvas.pixels.astype(np.float32) * np.float32(scale) + np.float32(shift)


def _size(size: object) -> dict[str, int]:
    if isinstance(size, int) and not isinstance(size, bool):
        return {"height": size, "width": size}
    try:
        return {"height": int(size["height"]), "width": int(size["width"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"size: got {size!r}, accepted are an int and {{'height': ..., 'width': ...}}"
        ) from error


def _listed(images: object) -> list:
    if isinstance(images, np.ndarray | torch.Tensor):
        images = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, list | tuple):
        images = list(images)
    else:
        images = [images]
    if not images:
        raise ArgumentError("images: got an empty list, accepted is at least one image")
    return images


def register() -> None:
    """Make the processor known to ``AutoImageProcessor``."""
    from transformers import AutoImageProcessor

    from .hf_config import HDXrayConfig

    try:
        backends = dict.fromkeys(("pil", "torchvision"), HDXrayImageProcessor)
        AutoImageProcessor.register(HDXrayConfig, image_processor_classes=backends, exist_ok=True)
    except TypeError:  # transformers 4: "slow" is any processor that is not made of torchvision's operations
        AutoImageProcessor.register(HDXrayConfig, slow_image_processor_class=HDXrayImageProcessor, exist_ok=True)
