"""Radiographs for :class:`.HDXrayModel`: files, arrays, tensors and PIL images to ``pixel_values``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

# transformers' options that change nothing here, with why they could not
OPTIONS = {
    "do_resize": "radiographs are laid on a canvas of the encoder's size",
    "do_rescale": "pixels are brought to the encoder's range by its normalisation, and are 0 to 255 without it",
    "rescale_factor": "see do_rescale",
    "do_center_crop": "nothing of a radiograph is cut off",
    "do_convert_rgb": "radiographs are grey; num_channels=3 gives three equal channels",
    "data_format": "the models take [B, C, H, W]",
    "input_data_format": "the order is read off an image's shape",
    "device": "images are read on the CPU",
}


class HDXrayImagesKwargs(ImagesKwargs, total=False):
    """Settings beyond those that every image processor has."""

    patch_size: int
    num_channels: int
    normalisation: str | list[float]
    return_grids: bool
    contour: str


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
        contour: how the chest is found (see :func:`hdxray_fast.find_contour`).
        **kwargs: other options of transformers' processors, held to what :meth:`preprocess` says of them.
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
        contour: str = "network",
        **kwargs: Any,
    ) -> None:
        checked_options({name: kwargs.pop(name) for name in list(kwargs) if name in OPTIONS}, do_normalize)
        super().__init__(**kwargs)
        self.size = _size(size)
        self.patch_size, self.num_channels = patch_size, num_channels
        self.normalisation = normalisation if isinstance(normalisation, str) else list(normalisation)
        self.do_normalize, self.return_grids, self.contour = do_normalize, return_grids, contour

    @classmethod
    def from_config(cls, config: EncoderConfig, **kwargs: Any) -> HDXrayImageProcessor:
        """The processor of an encoder with these settings; ``kwargs`` are further ones of the processor."""
        settings = preprocessor_settings(config)
        del settings["image_processor_type"]
        return cls(**{**settings, **kwargs})

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
            **kwargs: options of transformers' processors, taken where they ask for what is done anyway and refused with
                the reason where not: ``do_resize``, ``do_rescale``, ``rescale_factor``, ``data_format``,
                ``input_data_format``, ``do_center_crop``, ``do_convert_rgb``. With ``device``, tensors
                (``return_tensors="pt"``) are put there; images are read on the CPU.

        Returns:
            ``pixel_values [B, C, S, S]`` float32 (uint8 if not normalised), and if asked for ``inside`` and ``valid``
            ``[B, S / patch_size, S / patch_size]`` bool.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
            ImageReadError: a file cannot be read; the message names it.
        """
        size = self.size if size is None else _size(size)
        if size["height"] != size["width"]:
            raise ArgumentError(
                f"size: got {size['height']} x {size['width']}, radiographs are laid on square canvases; make tensors "
                "[B, C, H, W] yourself for other shapes"
            )
        normalise = self.do_normalize if do_normalize is None else do_normalize
        grids = self.return_grids if return_grids is None else return_grids
        options = checked_options(kwargs, normalise, return_tensors)
        images = _listed(images)
        if (order := options.get("input_data_format")) is not None:
            _check_order(images, order)
        canvases = [read_canvas(readable(image), size=size["height"]) for image in images]
        if options.get("do_resize") is False:
            _check_unresized(canvases)
        valid = [canvas.valid_grid(self.patch_size) for canvas in canvases]
        pixels = [self._pixels(canvas, grid, normalise) for canvas, grid in zip(canvases, valid, strict=True)]
        data = {"pixel_values": np.stack([np.stack([image] * self.num_channels) for image in pixels])}  # [B, C, S, S]
        if grids:
            inside = [find_contour(canvas, self.contour, self.patch_size).inside for canvas in canvases]
            data["inside"] = np.stack([a & b for a, b in zip(inside, valid, strict=True)])
            data["valid"] = np.stack(valid)
        batch = BatchFeature(data=data, tensor_type=return_tensors)
        return batch if options.get("device") is None else batch.to(options["device"])

    def _pixels(self, canvas: Canvas, valid: np.ndarray, normalise: bool) -> np.ndarray:
        if not normalise:
            return canvas.pixels
        if self.normalisation == "per_image":
            scale, shift = standardisation(canvas.pixels, valid)
        else:
            scale, shift = fixed_scale(self.normalisation)
        return canvas.pixels.astype(np.float32) * np.float32(scale) + np.float32(shift)


def checked_options(options: Mapping[str, Any], normalise: bool, return_tensors: str | None = "pt") -> dict[str, Any]:
    """Those of transformers' usual options that are given, once it is known that they ask for what is done anyway.

    Args:
        options: by name; ``None`` is as if left out.
        normalise: whether images are normalised.
        return_tensors: what is returned.

    Raises:
        ArgumentError: one asks for something else, or is none that this processor has; the message names it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise ArgumentError(
            f"{unknown[0]}: is no option of this processor, accepted are size, do_normalize, return_grids, "
            f"return_tensors, and where they change nothing {', '.join(OPTIONS)}"
        )
    for name in ("do_center_crop", "do_convert_rgb"):
        if given.get(name):
            raise ArgumentError(f"{name}: got {given[name]!r}, accepted is False: {OPTIONS[name]}")
    rescale = given.get("do_rescale")
    if rescale is not None and bool(rescale) != normalise:
        raise ArgumentError(
            f"do_rescale: got {rescale} with do_normalize={normalise}, accepted is {normalise}: "
            + OPTIONS["do_rescale"]
        )
    if abs(255 * given.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise ArgumentError(
            f"rescale_factor: got {given['rescale_factor']}, accepted is 1/255: {OPTIONS['do_rescale']}"
        )
    if "data_format" in given and _order(given["data_format"]) != "channels_first":
        raise ArgumentError(
            f"data_format: got {_order(given['data_format'])!r}, accepted is 'channels_first': {OPTIONS['data_format']}"
        )
    if str(given.get("device", "cpu")) != "cpu" and return_tensors != "pt":
        raise ArgumentError(f"device: got {given['device']}, which needs return_tensors='pt'")
    return given


def _order(value: object) -> str:
    return str(getattr(value, "value", value))  # transformers' ChannelDimension, or a word


def _check_order(images: list, order: object) -> None:
    order = _order(order)
    if order not in ("channels_first", "channels_last", "none"):
        raise ArgumentError(f"input_data_format: got {order!r}, accepted are 'channels_first' and 'channels_last'")
    for image in images:
        if getattr(image, "ndim", 0) != 3 or order == "none":
            continue
        first = image.shape[0] in (1, 3) and image.shape[2] not in (1, 3, 4)
        if first != (order == "channels_first"):
            shape = list(image.shape)
            raise ArgumentError(
                f"input_data_format: got {order!r} for an image of shape {shape}, which is read as "
                f"{'channels_first' if first else 'channels_last'}; hand it over as [H, W]"
            )


def _check_unresized(canvases: list[Canvas]) -> None:
    for canvas in canvases:
        rows, columns = canvas.provenance["original_size"]
        if (rows, columns) != canvas.pixels.shape:
            raise ArgumentError(
                f"do_resize: got False for an image of {rows} x {columns} pixels, accepted is True: "
                f"{OPTIONS['do_resize']} ({canvas.size} x {canvas.size})"
            )


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
