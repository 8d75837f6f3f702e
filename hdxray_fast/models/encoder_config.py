"""What an encoder is made of: its settings, checked."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ArgumentError, ArgumentTypeError
from ..images.contour_methods import METHODS
from .layers import LAYER_NORM_EPS, check_count
from .presets import ENCODERS, STEMS

DEFAULTS = {"img_size": 1280, "in_chans": 1}
KEEPS = ("all", "valid", "contour")
POOLS = ("cls", "mean", "attention")
MAX_PATCHES = 2**20  # 16384 x 16384 pixels in patches of 16: a mistyped img_size fails by name, not for want of memory


_HINTS = {  # what others call it, or look for here
    "pretrained": "hx.create_encoder(weights='pretrained') takes the weights that come with the package",
    "checkpoint_path": "hx.create_encoder(weights=) takes a path",
    "in_channels": "in_chans is meant",
    "num_channels": "in_chans is meant",
    "image_size": "img_size is meant",
    "global_pool": f"pool is meant, of None, {', '.join(map(repr, POOLS))}",
    "num_classes": "an encoder has no head; timm.create_model('hdxray_vit_...', num_classes=) makes one with a head",
}
_POOLS_OF_TIMM = {"avg": "mean", "token": "cls", "map": "attention"}


class LeftOut(int):
    """A number that an argument has if it is left out; it can be told from the same number given by the caller."""


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of an encoder; JSON-able through ``dataclasses.asdict``.

    Attributes:
        img_size: ``(height, width)`` in pixels (an int for both), multiples of ``patch_size``.
        patch_size: edge of a patch, pixels.
        in_chans: 1 or 3.
        embed_dim, depth, num_heads, mlp_ratio: the transformer.
        stem: ``"patch16"`` (one convolution, any patch size) or ``"stem64"`` (HD X-ray's three layers).
        class_token: have one.
        reg_tokens: register tokens (https://arxiv.org/abs/2309.16588), without positions, after the class token.
        qkv_bias: biases of the query, key and value projections.
        layer_scale: initial LayerScale factor; ``None`` for none.
        norm_eps: of all LayerNorms.
        fc_norm: the last LayerNorm comes after pooling instead of before it (as timm's models for mean pooling); tokens
            are then not normalised.
        learned_positions: train the position table; otherwise it is fixed sine-cosine.
        normalisation: ``"per_image"`` (mean 0, deviation 1) or ``(mean, std)`` of pixels on [0, 1]: how integer
            images are normalised.
        keep: ``"all"``, ``"valid"`` (no padding) or ``"contour"`` (the chest and a margin around it).
        margin: patches around the chest.
        pool: ``None`` (tokens), ``"cls"``, ``"mean"`` or ``"attention"``.
        contour: how the chest is found where nobody says which patches it has: ``"network"``, ``"classical"``,
            ``"prior"`` or ``"rectangle"``; that of the training.
        began_from: which encoder of the package the weights were before they were trained further (its terms and
            citation go into model cards); ``None`` for others. It has no part in what tells encoders apart.

    Raises:
        ArgumentError, ArgumentTypeError: a setting is not as described; the message begins with its name.
    """

    img_size: int | tuple[int, int]
    patch_size: int
    in_chans: int
    embed_dim: int
    depth: int
    num_heads: int
    stem: str = "patch16"
    mlp_ratio: float = 4.0
    class_token: bool = True
    reg_tokens: int = 0
    qkv_bias: bool = True
    layer_scale: float | None = None
    norm_eps: float = LAYER_NORM_EPS
    fc_norm: bool = False
    learned_positions: bool = False
    normalisation: str | tuple[float, float] = "per_image"
    keep: str = "all"
    margin: int = 1
    pool: str | None = None
    contour: str = "network"
    began_from: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for option in ("patch_size", "embed_dim", "depth", "num_heads"):
            check_count(option, getattr(self, option))
        for option in ("reg_tokens", "margin"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ArgumentError(f"{option}: got {value!r}, accepted is an int of at least 0")
        for option in ("class_token", "qkv_bias", "fc_norm", "learned_positions"):
            if not isinstance(getattr(self, option), bool):
                raise ArgumentTypeError(f"{option}: got {getattr(self, option)!r}, accepted are True and False")
        if not _is_number(self.mlp_ratio) or not 1 <= self.embed_dim * self.mlp_ratio < 2**31:
            raise ArgumentError(f"mlp_ratio: got {self.mlp_ratio!r}, accepted is a number of at least 1 / embed_dim")
        if not _is_number(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ArgumentError(f"norm_eps: got {self.norm_eps!r}, accepted is a number between 0 and 1")
        largest = 3e38  # of float32
        if self.layer_scale is not None and not (_is_number(self.layer_scale) and abs(self.layer_scale) < largest):
            raise ArgumentTypeError(f"layer_scale: got {self.layer_scale!r}, accepted are a finite number and None")
        if type(self.in_chans) is not int or self.in_chans not in (1, 3):
            raise ArgumentError(f"in_chans: got {self.in_chans!r}, accepted are 1 and 3")
        _check_choice("stem", self.stem, STEMS)
        _check_choice("keep", self.keep, KEEPS)
        _check_choice("contour", self.contour, METHODS)
        meant = _POOLS_OF_TIMM.get(self.pool) if isinstance(self.pool, str) else None
        _check_choice("pool", self.pool, (None, *POOLS), f"; is {meant!r} meant?" if meant else "")
        _check_choice("began_from", self.began_from, (None, *ENCODERS))
        if self.pool == "cls" and not self.class_token:
            raise ArgumentError("pool: got 'cls', but class_token is False; accepted are 'mean' and 'attention'")
        object.__setattr__(self, "img_size", _height_width(self.img_size, self.patch_size))
        object.__setattr__(self, "normalisation", _normalisation(self.normalisation))

    @property
    def grid_size(self) -> tuple[int, int]:
        """``(height, width)`` in patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


def preset(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the preset ``name``.

    Raises:
        ArgumentError: there is no such preset, or ``options`` names something that is no option of an encoder.
    """
    if not isinstance(name, str) or name not in ENCODERS:
        near = [known for known in ENCODERS if isinstance(name, str) and known in name]  # in timm's with a size
        hint = f"; is {near[0]} meant?" if near else ""
        raise ArgumentError(f"name: got {name!r}, accepted are {', '.join(ENCODERS)}{hint}")
    check_options(options)
    return ENCODERS[name]


def check_options(options: dict[str, Any], more: tuple[str, ...] = ()) -> None:
    """Raise an error naming the first of ``options`` that is no option of an encoder; the caller takes ``more`` too."""
    known = [field.name for field in fields(EncoderConfig) if field.name != "stem"]  # which the name says
    if unknown := sorted(set(options) - set(known)):
        name, given = unknown[0], ", ".join([*more, *(option for option in known if option != "began_from")])
        near = difflib.get_close_matches(name, [*more, *known], 1)
        hint = _HINTS.get(name) or (f"is {near[0]} meant?" if near else "")
        raise ArgumentError(f"{name}: is no option of an encoder, accepted are {given}{hint and '; ' + hint}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_choice(option: str, value: object, accepted, hint: str = "") -> None:
    if value not in tuple(accepted):
        raise ArgumentError(f"{option}: got {value!r}, accepted are {', '.join(map(repr, accepted))}{hint}")


def _height_width(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise ArgumentTypeError(f"img_size: got {img_size!r}, accepted is an int or (height, width)")
    if min(sides) < patch_size or sides[0] % patch_size or sides[1] % patch_size:
        raise ArgumentError(
            f"img_size: got {sides[0]} x {sides[1]}, accepted are positive multiples of patch_size {patch_size}"
        )
    if (sides[0] // patch_size) * (sides[1] // patch_size) > MAX_PATCHES:
        raise ArgumentError(
            f"img_size: got {sides[0]} x {sides[1]}, accepted are up to {MAX_PATCHES} patches of {patch_size} pixels"
        )
    return sides[0], sides[1]


def _normalisation(value: object) -> str | tuple[float, float]:
    if isinstance(value, str) and value == "per_image":
        return value
    if isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value)) and value[1] > 0:
        return float(value[0]), float(value[1])
    raise ArgumentError(f"normalisation: got {value!r}, accepted are 'per_image' and (mean, std) with std above 0")


def fixed_scale(normalisation: tuple[float, float], white: float = 255.0) -> tuple[float, float]:
    """``(scale, shift)`` of integer pixels up to ``white`` for the ``(mean, std)`` of pixels on [0, 1]."""
    mean, std = normalisation
    return 1.0 / (white * std), -mean / std
