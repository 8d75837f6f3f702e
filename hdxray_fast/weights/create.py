"""Encoders by name, new or with weights from elsewhere."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from ..models.encoder import Encoder
from ..models.encoder_config import DEFAULTS, EncoderConfig, LeftOut, check_options, preset
from ..models.presets import ENCODERS
from .load import load_encoder
from .shipped import pretrained_encoders


def create_encoder(
    name: str | None = None,
    img_size: int | tuple[int, int] | None = LeftOut(DEFAULTS["img_size"]),
    in_chans: int | None = LeftOut(DEFAULTS["in_chans"]),
    weights: str | Path | None = None,
    strict: bool = True,
    **overrides: Any,
) -> Encoder:
    """Build an encoder from the presets' table, or from published weights.

    Args:
        name: one of :func:`list_encoders`; left out, ``weights`` say what to build, or without them it is
            ``"vit_small_patch16"``.
        img_size: edge in pixels, or ``(height, width)``; multiples of the patch size. Left out, it is 1280, or that of
            ``weights`` that this package wrote. ``None`` takes that of any ``weights``.
        in_chans: 1 or 3. Left out, it is 1, or that of ``weights`` that this package wrote. ``None`` takes that of any
            ``weights``.
        weights: ``"pretrained"`` for those that come with the package (see :func:`list_encoders`; without ``name`` or
            ``depth`` the first blocks of the smallest, which are read best), a path, ``"hf:org/name"`` (``@revision``
            may follow) or ``"timm:name"``; see :mod:`hdxray_fast.weights.load` for what is read, and ``load_report`` of
            the encoder for what became of it.
        strict: refuse weights that lack something, or hold something unexpected.
        **overrides: any other field of :class:`hdxray_fast.EncoderConfig`, such as ``keep``, ``pool`` or ``depth``. Of
            ``weights`` with more blocks the first ``depth`` are taken.

    Raises:
        ArgumentError: unknown name or override, or settings that do not fit together.
        CheckpointError: ``weights`` cannot be read, are unsafe, or do not fit; the message names the file.
    """
    check_options(overrides, ("weights", "strict"))
    if weights is not None:
        return load_encoder(weights, name, img_size, in_chans, strict, **overrides)
    settings = {**preset("vit_small_patch16" if name is None else name, overrides), **overrides}
    for option, value in (("img_size", img_size), ("in_chans", in_chans)):
        settings[option] = int(value) if isinstance(value, LeftOut) else value
    return Encoder(EncoderConfig(**settings))


def list_encoders(pretrained: bool = False) -> list[str]:
    """Names that :func:`create_encoder` and :func:`hdxray_fast.create_mae` accept.

    Args:
        pretrained: only those whose weights come with the package, for ``weights="pretrained"``.
    """
    shipped = pretrained_encoders() if pretrained else ENCODERS
    return [name for name in ENCODERS if name in shipped]


def encoder_of_size(weights: str | os.PathLike | Encoder, img_size: int | None) -> Encoder:
    """An encoder at the size asked for: its learned positions are resampled once, from the weights' own grid.

    Args:
        weights: as for :func:`create_encoder`; or an encoder, of which a copy is taken where the size is
            another, so that the caller's keeps its own.
        img_size: canvas side, pixels; left out, the weights' own, or 1280.
    """
    if not isinstance(weights, Encoder):
        return create_encoder(weights=weights, **({} if img_size is None else {"img_size": img_size}))
    if img_size is None or weights.img_size == (img_size, img_size):
        return weights
    encoder = copy.deepcopy(weights)
    encoder.set_input_size(img_size)
    return encoder
