"""Grey levels to what an encoder was trained on, and float images that look as if nobody had done that."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from ..images.standardise import standardising
from .encoder_config import fixed_scale

LIBRARIES = ("hdxray_fast", "timm", "torch", "transformers")  # between a user's line and an encoder
FAR = 25.0  # deviations: further from the mean no pixel of a standardised radiograph lies


def scale_of_levels(
    images: Tensor, valid: Tensor | None, normalisation: str | tuple[float, float], white: float
) -> tuple[float | Tensor, float | Tensor]:
    """``(scale, shift)`` for grey levels from 0 to ``white``; ``[B]`` each for ``"per_image"``.

    Args:
        images: ``[B, C, H, W]``.
        valid: bool ``[B, gh, gw]``, patches over which an image's own mean and deviation are taken; ``None`` for all.
        normalisation: as the encoder's config has it.
        white: the largest level.
    """
    if normalisation != "per_image":
        return fixed_scale(normalisation, white)
    if valid is None:
        std, mean = torch.std_mean(images.float().flatten(1), dim=1, correction=0)  # [B] each
    else:
        std, mean = _std_mean_of_patches(images, valid)
    return standardising(mean, std)


def level_of_caller() -> int:
    """``stacklevel`` of a warning that is given here: of the line that called an encoder, by whatever way."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def _std_mean_of_patches(images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, H, W], [B, gh, gw]
    """Deviation and mean ``[B]`` over the valid patches; of an image without any, over all."""
    valid = valid.to(images.device)
    valid = valid | ~valid.flatten(1).any(1)[:, None, None]
    side = images.shape[2] // valid.shape[1]
    chosen = valid.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)  # [B, 1, H, W]
    pixels = images.float()
    count = chosen.sum((1, 2, 3)) * images.shape[1]
    mean = (pixels * chosen).sum((1, 2, 3)) / count
    variance = ((pixels - mean[:, None, None, None]).square() * chosen).sum((1, 2, 3)) / count
    return variance.sqrt(), mean


def warn_of_range(images: Tensor, normalisation: str | tuple[float, float]) -> bool:
    """Warn if the values of float ``images`` are not of the range that ``normalisation`` gives radiographs.

    Gives whether it did.

    Waits for a GPU. Where there are no values to look at (while a graph is made) nothing is said.
    """
    try:
        low, high = (float(value) for value in torch.aminmax(images.detach().float()))
    except (RuntimeError, NotImplementedError):  # fake, meta, or wrapped by a transform of functions
        return False
    if low == high or images.numel() == 0:
        return False
    if normalisation == "per_image":
        wanted, least, most = "mean 0 and deviation 1 over each image", -FAR, FAR
    else:
        scale, least = fixed_scale(normalisation, 1.0)
        most = scale + least
        wanted = f"from {least:.2f} to {most:.2f} (mean {normalisation[0]:g}, deviation {normalisation[1]:g} on [0, 1])"
        least, most = least - 0.25 * scale, most + 0.25 * scale
    one_sided = least < 0 <= low and normalisation not in ((0.0, 1.0), (0, 1))
    wrong = low < least or high > most or one_sided
    if wrong:
        warnings.warn(
            f"images: float values from {low:.4g} to {high:.4g}, and this encoder was trained on pixels of {wanted}; "
            "float images are taken as they are: encoder.transform() makes such of files and pictures, and "
            "encoder.normalise(images, valid) of tensors, valid being the patches that are no padding; integer images "
            "without padding are normalised by the encoder",
            stacklevel=level_of_caller(),
        )
    return wrong
