"""One picture to what an encoder was trained on: canvas, normalisation, channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .encoder_config import EncoderConfig, fixed_scale


class Transform:
    """Lays a picture on the encoder's canvas and normalises it; see :meth:`.Encoder.transform`.

    It can be pickled for the workers of a loader, and stands in ``Compose`` of torchvision like any other.

    Args:
        config: of the encoder.

    Raises:
        ArgumentError: the encoder takes no square images.
    """

    def __init__(self, config: EncoderConfig) -> None:
        height, width = config.img_size
        if height != width:
            raise ArgumentError(
                f"img_size: the encoder takes {height} x {width} pixels, radiographs are laid on square canvases; make "
                "such images yourself and give them to encoder.normalise"
            )
        self.config = config

    def __call__(self, picture: Any) -> Tensor:
        """Normalised pixels ``[C, S, S] float32``; where the picture does not reach, those of grey level 0.

        Args:
            picture: a path (DICOM, PNG, JPEG, TIFF, BMP, WebP, .npy), a PIL image, or an array or tensor ``[H, W]``,
                ``[H, W, C]`` or ``[C, H, W]`` of any integer or float dtype, bright = dense.

        Raises:
            ArgumentError, ArgumentTypeError: it is none of these.
            ImageReadError: a file cannot be read; the message names it.
        """
        from ..images.canvas import read_canvas
        from ..images.picture import readable
        from ..images.standardise import standardisation

        config = self.config
        canvas = read_canvas(readable(picture), size=config.img_size[0])
        if config.normalisation == "per_image":
            scale, shift = standardisation(canvas.pixels, canvas.valid_grid(config.patch_size))
        else:
            scale, shift = fixed_scale(config.normalisation)
        pixels = torch.from_numpy(canvas.pixels).float() * scale + shift
        return pixels.expand(config.in_chans, -1, -1).contiguous()

    def __repr__(self) -> str:
        c = self.config
        return f"Transform(size={c.img_size[0]}, channels={c.in_chans}, normalisation={c.normalisation!r})"
