"""Changes a radiograph can undergo and stay one: small ones for pre-training, and RandAugment, a few drawn from a list.

After Cubuk et al., https://arxiv.org/abs/1909.13719, with the operations that would change what a radiograph says left
out: nothing is mirrored (the heart lies on the left), inverted, solarised or posterised (grey levels mean density), and
nothing is cut out (a nodule may be all there is).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import ArgumentError

Tone = Callable[[np.ndarray], np.ndarray]  # [S, S] to [S, S], uint8 or uint16

# largest change at magnitude 1
ROTATE = 20.0  # degrees
ZOOM = 0.25
SHIFT = 0.10  # of the canvas side
SHEAR = 0.15  # tangent of the angle
GAMMA = 1.0  # |log2| of the exponent
CONTRAST = 0.6  # |log2| of the factor about the mean
BRIGHTNESS = 48.0  # grey levels
BLUR = 0.003  # deviation, of the canvas side
SHARPEN = 1.5
NOISE = 12.0  # deviation, grey levels
EQUALISE = 0.7  # share of the locally equalised image


@dataclass(frozen=True)
class RandAugment:
    """Some operations for each image, each at a strength drawn evenly up to ``magnitude``.

    Attributes:
        operations: how many of ``OPERATIONS`` an image undergoes.
        magnitude: largest strength, 0 to 1.
    """

    operations: int = 2
    magnitude: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.operations <= len(OPERATIONS):
            raise ArgumentError(f"operations: got {self.operations}, accepted is 0 to {len(OPERATIONS)}")
        if not 0 <= self.magnitude <= 1:
            raise ArgumentError(f"magnitude: got {self.magnitude}, accepted is 0 to 1")

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, Tone]:
        """A random affine map (``[2, 3] float64``, canvas to canvas pixels), and what follows it on the pixels."""
        affine, tones = np.eye(3), []
        for name in rng.permutation(list(OPERATIONS))[: self.operations]:
            strength = rng.uniform(-self.magnitude, self.magnitude)
            change = OPERATIONS[name](strength, size, rng)
            if isinstance(change, np.ndarray):
                affine = change @ affine
            else:
                tones.append(change)

        def tone(pixels: np.ndarray) -> np.ndarray:  # [S, S] u8 | u16 -> u8
            pixels = eight_bits(pixels)
            for change in tones:
                pixels = change(pixels)
            return pixels

        return affine[:2], tone


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """``[S, S] uint8``, of 16 bits the upper ones, rounded."""
    # no value of 16 bits over 257 lies nearer than 1/514 to a half, so that its rounding in float32 is exact
    return pixels if pixels.dtype == np.uint8 else cv2.convertScaleAbs(pixels, alpha=1 / 257)


def gamma_tone(exponent: float) -> Tone:
    """``(pixels / 255) ** exponent``, through a table; ``pixels / 65535`` if they have 16 bits."""

    def change(pixels: np.ndarray) -> np.ndarray:  # [S, S] u8 | u16
        top = np.iinfo(pixels.dtype).max
        levels = np.rint(np.linspace(0, 1, top + 1) ** exponent * top).astype(pixels.dtype)
        return cv2.LUT(pixels, levels) if top == 255 else levels[pixels]

    return change


def gamma_table(exponent: float, dtype: np.dtype) -> np.ndarray:
    """`gamma_tone` as the table of a view: ``[256] uint8``, or for uint16 the values at 257 knots, ``[257] uint16``."""
    dtype = np.dtype(dtype)
    top = np.iinfo(dtype).max
    levels = np.arange(256) if dtype == np.uint8 else np.minimum(256.0 * np.arange(257), top)
    return np.rint((levels / top) ** exponent * top).astype(dtype)


# --- operations: a strength from -1 to 1 to a [3, 3] map or a tone ----------------------------------------------------
def _rotate(strength: float, size: int, rng) -> np.ndarray:
    return _about_centre(cv2.getRotationMatrix2D((0, 0), ROTATE * strength, 1.0)[:, :2], size)


def _zoom(strength: float, size: int, rng) -> np.ndarray:
    return _about_centre(np.eye(2) * (1 + ZOOM) ** strength, size)


def _shift(strength: float, size: int, rng) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    moved = np.eye(3)
    moved[:2, 2] = SHIFT * strength * size * np.array([math.cos(angle), math.sin(angle)])
    return moved


def _shear(strength: float, size: int, rng) -> np.ndarray:
    linear = np.eye(2)
    linear[0, 1] = SHEAR * strength
    return _about_centre(linear, size)


def _gamma(strength: float, size: int, rng) -> Tone:
    return gamma_tone(2.0 ** (GAMMA * strength))


def _contrast(strength: float, size: int, rng) -> Tone:
    factor = 2.0 ** (CONTRAST * strength)

    def change(pixels: np.ndarray) -> np.ndarray:
        mean = float(pixels.mean())
        return cv2.LUT(pixels, _levels((np.arange(256) - mean) * factor + mean))

    return change


def _brightness(strength: float, size: int, rng) -> Tone:
    return _table(np.arange(256) + BRIGHTNESS * strength)


def _blur_or_sharpen(strength: float, size: int, rng) -> Tone:
    sigma = max(BLUR * size * abs(strength), 1e-3)

    def change(pixels: np.ndarray) -> np.ndarray:
        blurred = cv2.GaussianBlur(pixels, (0, 0), sigma if strength < 0 else BLUR * size)
        amount = SHARPEN * strength
        return blurred if strength < 0 else cv2.addWeighted(pixels, 1 + amount, blurred, -amount, 0)

    return change


def _noise(strength: float, size: int, rng) -> Tone:
    seed = int(rng.integers(2**32))

    def change(pixels: np.ndarray) -> np.ndarray:
        grain = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32) * (NOISE * abs(strength))
        return np.clip(np.rint(pixels + grain), 0, 255).astype(np.uint8)

    return change


def _equalise(strength: float, size: int, rng) -> Tone:
    share = EQUALISE * abs(strength)

    def change(pixels: np.ndarray) -> np.ndarray:
        local = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(pixels)
        return cv2.addWeighted(pixels, 1 - share, local, share, 0)

    return change


OPERATIONS: dict[str, Callable[[float, int, np.random.Generator], np.ndarray | Tone]] = {
    "rotate": _rotate,
    "zoom": _zoom,
    "shift": _shift,
    "shear": _shear,
    "gamma": _gamma,
    "contrast": _contrast,
    "brightness": _brightness,
    "blur or sharpen": _blur_or_sharpen,
    "noise": _noise,
    "equalise": _equalise,
}


def _about_centre(linear: np.ndarray, size: int) -> np.ndarray:
    """``linear [2, 2]`` as a map ``[3, 3]`` of the canvas that leaves its centre where it is."""
    centre = np.full(2, size / 2)
    moved = np.eye(3)
    moved[:2, :2], moved[:2, 2] = linear, centre - linear @ centre
    return moved


def _table(values: np.ndarray) -> Tone:
    levels = _levels(values)
    return lambda pixels: cv2.LUT(pixels, levels)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Augmentation:
    """Changes a radiograph can undergo and stay one: none of them mirrors it, since the heart lies on the left.

    Attributes:
        rotate: largest rotation, degrees.
        zoom: largest relative change of scale.
        shift: largest shift, as a share of the canvas side.
        gamma: largest ``|log2|`` of the exponent applied to the pixel values.
        min_scale: smallest scale that all of this is brought to; its logarithm is drawn evenly, up to a scale of 1.
            Much below 0.5 reading between four pixels would leave others out.
    """

    rotate: float = 5.0
    zoom: float = 0.1
    shift: float = 0.04
    gamma: float = 0.3
    min_scale: float = 1.0

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, Tone]:
        """A random affine map (``[2, 3] float64``, canvas to canvas pixels), and what follows it on the pixels."""
        affine, exponent = self._draw(rng, size)
        return affine, gamma_tone(exponent)

    def draw_view(self, rng: np.random.Generator, size: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The same draw with its tone as a table: what :class:`hdxray_fast.View` takes for pixels of ``dtype``.

        Returns:
            The map, as from :meth:`draw`, and ``[256] uint8`` or ``[257] uint16``.
        """
        affine, exponent = self._draw(rng, size)
        return affine, gamma_table(exponent, dtype)

    def _draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
        angle = rng.uniform(-self.rotate, self.rotate)
        scale = float(np.exp2(rng.uniform(-1, 1) * np.log2(1 + self.zoom)))
        affine = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
        affine[:, 2] += rng.uniform(-self.shift, self.shift, 2) * size
        exponent = float(np.exp2(rng.uniform(-self.gamma, self.gamma)))
        if self.min_scale < 1:
            smaller = np.exp2(rng.uniform(np.log2(self.min_scale), 0))
            affine = (_about_centre(np.eye(2) * smaller, size) @ np.vstack([affine, [0, 0, 1]]))[:2]
        return affine, exponent
