"""Whatever stands for a picture (a path, pixels, a tensor, a PIL image) as :func:`.read_canvas` takes it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import ArgumentTypeError


def readable(image: Any) -> str | np.ndarray:
    """A path, or pixels ``[H, W]`` or ``[H, W, C]``.

    Args:
        image: a path; a PIL image, turned as its EXIF says; an array or a tensor ``[H, W]``, ``[H, W, C]`` or
            ``[C, H, W]`` with 1 or 3 channels.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if hasattr(image, "detach"):  # a tensor, and PyTorch need not be imported to know one
        image = image.detach().cpu()
        if str(image.dtype) in ("torch.bfloat16", "torch.float16"):
            image = image.float()
        image = image.numpy()
    if isinstance(image, np.ndarray):
        channels_first = image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3, 4)
        return np.ascontiguousarray(np.moveaxis(image, 0, -1)) if channels_first else image
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise ArgumentTypeError(
            f"images: holds a {type(image).__name__}, accepted are paths, arrays, tensors and PIL images"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "I", "F", "RGB", "RGBA") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")  # palettes, CMYK and the like
    return np.asarray(image)
