"""Stored pixels to display brightness: one look-up table made of masks, modality, VOI LUT, polarity and padding.

Everything that happens between the decoder and the resize is a function of one stored value, so for 8- and 16-bit
pixels it is composed once over all possible values (in float64) and applied in a single pass.
Sources: DICOM PS3.3 C.11.1 (modality LUT), C.7.5.1.1.2 (pixel padding); the VOI LUT is in `voi_lut.py`.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..errors import ArgumentError
from .voi_lut import Table, VoiOptions, Window, choose_voi


class ConstantImageError(ValueError):
    """Every pixel that is not padding has one value; the caller turns this into an ImageReadError with the path."""


@dataclass
class Grey:
    """What a decoder hands over: stored grey pixels and what is known about their meaning."""

    pixels: np.ndarray  # [H, W] uint8 | uint16 bit patterns (masked and sign-extended here), or int32..64 | float32..64
    bits: int  # bits that carry the value
    high_bit: int | None = None  # position of the top bit; None: bits - 1
    signed: bool = False
    display: bool = False  # True: the full range is meant to be shown (8-bit pictures, floats in 0..1)
    slope: float = 1.0
    intercept: float = 0.0
    modality_table: Table | None = None
    log: bool = False  # linear detector signal (FOR PROCESSING): take the logarithm first
    windows: list[Window] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    use_voi: bool = True
    invert: bool = False
    padding: tuple[int, int] | None = None  # lowest and highest stored value that is no image
    spacing: tuple[float, float] | None = None  # millimetres per row step, per column step
    provenance: dict = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def stored_values(pixels: np.ndarray, bits: int, high_bit: int, signed: bool) -> np.ndarray:
    """Bit patterns ([H, W] uint8 | uint16) to the values they stand for ([H, W], signed or unsigned of that width)."""
    if not signed and high_bit == bits - 1:
        return pixels & pixels.dtype.type((1 << bits) - 1)
    width = pixels.dtype.itemsize
    patterns = pixels.view(f"{'i' if signed else 'u'}{width}")
    values = patterns << (8 * width - 1 - high_bit)
    values >>= 8 * width - bits  # this extends a sign
    return values


def padding_range(grey: Grey, value: int, limit: int) -> tuple[int, int] | None:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2), both ends included; None where the stored bits hold none.

    Args:
        grey: gives bits and sign of the stored values.
        value, limit: PixelPaddingValue and PixelPaddingRangeLimit. Some files write signed ones as unsigned 16-bit
            words or the other way round; that much is undone. A value that the stored bits cannot hold is no pixel's.
    """
    if grey.signed:
        lowest, highest = -(1 << grey.bits - 1), (1 << grey.bits - 1) - 1
        ends = [end - 65536 if end > 32767 else end for end in (value, limit)]
    else:
        lowest, highest = 0, (1 << grey.bits) - 1
        ends = [end + 65536 if end < 0 else end for end in (value, limit)]
    return None if max(ends) < lowest or min(ends) > highest else (min(ends), max(ends))


def render(grey: Grey, out_bits: int, options: VoiOptions) -> tuple[np.ndarray, dict]:
    """Stored pixels to brightness.

    Returns:
        ([H, W] uint8 or uint16 with bright = dense, a JSON-able description of the window used). The pixels may be the
        stored ones or this thread's buffer: resize or copy them before the next call.
    """
    if grey.pixels.dtype in (np.uint8, np.uint16):
        return _render_by_table(grey, out_bits, options)
    return _render_wide(grey, out_bits, options)


def _render_by_table(grey: Grey, out_bits: int, options: VoiOptions) -> tuple[np.ndarray, dict]:
    container = 8 * grey.pixels.dtype.itemsize
    plain = grey.display and not grey.invert and grey.bits == container and grey.padding is None
    if plain and options.window in ("auto", "full"):
        low, high = cv2.minMaxLoc(grey.pixels)[:2]
        if low == high:
            raise ConstantImageError
        described = {"kind": "full", "low": 0.0, "high": float(2**container - 1)}
        if out_bits == container:
            return grey.pixels, described
        return apply_table(
            _quantise(np.arange(2**container) / (2.0**container - 1.0), out_bits), grey.pixels
        ), described

    shift = 0 if grey.high_bit is None else grey.high_bit + 1 - grey.bits
    counts = _pattern_counts(grey.pixels, grey.bits, shift, every=_sampling(grey.pixels.shape))
    values = np.arange(2.0**grey.bits)  # every value the stored bits can hold, float64
    if grey.signed:
        values[2 ** (grey.bits - 1) :] -= 2.0**grey.bits
    blank = None  # [2**bits] bool, stored values that are padding
    if grey.padding is not None:
        blank = (values >= grey.padding[0]) & (values <= grey.padding[1])
        counts[blank] = 0
    if np.count_nonzero(counts) < 2:  # the sample may have missed what little there is
        counts = _pattern_counts(grey.pixels, grey.bits, shift, every=1)
        if blank is not None:
            counts[blank] = 0
    if not counts.any():
        raise ConstantImageError
    modality = _modality(grey, values)
    if np.ptp(modality[counts > 0]) == 0:
        raise ConstantImageError
    brightness, described, flags = choose_voi(
        modality,
        counts,
        options,
        tables=grey.tables if grey.use_voi else [],
        windows=grey.windows if grey.use_voi else [],
        full=(grey.display or grey.bits <= 8) and not grey.log,
    )
    grey.flags += flags
    if grey.invert:
        brightness = np.subtract(1.0, brightness, out=brightness)
    if blank is not None:
        brightness[blank] = 0.0  # after polarity: padding is black whatever the photometric interpretation
    table = _quantise(brightness, out_bits)
    if shift:
        table = table[(np.arange(2**container) >> shift) & (2**grey.bits - 1)]
    elif grey.bits < container:  # overlay or rubbish bits above the value are ignored
        table = np.tile(table, 2 ** (container - grey.bits))
    return apply_table(table, grey.pixels), described


def _render_wide(grey: Grey, out_bits: int, options: VoiOptions) -> tuple[np.ndarray, dict]:
    """Arrays of 32- or 64-bit integers or floats: no table is possible, a linear window in row blocks is."""
    pixels = grey.pixels
    low, high = float(pixels.min()), float(pixels.max())
    if low == high:
        raise ConstantImageError
    described: dict
    if grey.display and options.window in ("auto", "full"):
        low, high = 0.0, 1.0
        described = {"kind": "full", "low": low, "high": high}
    elif isinstance(options.window, tuple):
        low, high = options.window[0] - options.window[1] / 2, options.window[0] + options.window[1] / 2
        described = {"kind": "explicit", "center": options.window[0], "width": options.window[1]}
    elif options.window == "full":
        raise ArgumentError(
            f"window='full' has no meaning for {pixels.dtype} values outside 0..1; accepted: 'auto', 'percentile', "
            "'minmax' or (center, width)"
        )
    else:
        if options.window != "minmax":
            step = max(1, int(math.sqrt(pixels.size / 4e6)))
            inner = np.percentile(pixels[::step, ::step], options.percentiles)
            if inner[1] > inner[0]:
                low, high = float(inner[0]), float(inner[1])
        kind = "minmax" if options.window == "minmax" else "percentile"
        described = {"kind": kind, "low": low, "high": high}
    top = 2**out_bits - 1
    out = np.empty(pixels.shape, np.uint8 if out_bits == 8 else np.uint16)
    for row in range(0, pixels.shape[0], 64):
        block = np.clip((pixels[row : row + 64].astype(np.float64) - low) / (high - low), 0.0, 1.0)
        if grey.invert:
            block = 1.0 - block
        out[row : row + 64] = np.rint(block * top)
    return out, described


def _sampling(shape: tuple[int, int]) -> int:
    """Statistics look at every k-th row, whole rows being cheap to read: some 100,000 pixels and at least 64 rows."""
    rows, columns = shape
    return max(1, min(rows * columns // 100_000, rows // 64))


def _pattern_counts(pixels: np.ndarray, bits: int, shift: int, every: int) -> np.ndarray:
    """How often each value of the stored bits occurs, int64 [2**bits]."""
    container = 8 * pixels.dtype.itemsize
    counts = np.bincount(pixels[::every].ravel(), minlength=2**container)
    if shift:
        patterns = (np.arange(2**container) >> shift) & (2**bits - 1)
        return np.bincount(patterns, weights=counts, minlength=2**bits).astype(np.int64)
    return counts.reshape(-1, 2**bits).sum(axis=0)


def _modality(grey: Grey, values: np.ndarray) -> np.ndarray:
    if grey.modality_table is not None:
        out = grey.modality_table.lookup(values)
    elif grey.slope == 1.0 and grey.intercept == 0.0:
        out = values
    else:
        out = values * grey.slope + grey.intercept
    return np.log1p(np.maximum(out, 0.0)) if grey.log else out


def _quantise(brightness: np.ndarray, out_bits: int) -> np.ndarray:
    """0..1 float64 (used up) to uint8 or uint16."""
    brightness *= 2.0**out_bits - 1.0
    brightness += 0.5  # halves round up; truncation is several times faster than np.rint
    return brightness.astype(np.uint8 if out_bits == 8 else np.uint16)


def _cv2_has_wide_lut() -> bool:
    try:
        return cv2.LUT(np.array([[65535]], np.uint16), np.arange(65536, dtype=np.uint16))[0, 0] == 65535
    except cv2.error:  # OpenCV 4: tables of 256 entries only
        return False


_WIDE_LUT = _cv2_has_wide_lut()


_SCRATCH = threading.local()
_SCRATCH_BYTES = 1 << 25  # larger images are rare, and their memory is given back


def scratch(name: str, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A buffer that this thread's next call of that name uses again: fresh pages cost as much as filling them."""
    count, dtype = shape[0] * shape[1], np.dtype(dtype)
    if count * dtype.itemsize > _SCRATCH_BYTES:
        return np.empty(shape, dtype)
    held = getattr(_SCRATCH, name, None)
    if held is None or held.size < count * dtype.itemsize:
        held = np.empty(count * dtype.itemsize, np.uint8)
        setattr(_SCRATCH, name, held)
    return held[: count * dtype.itemsize].view(dtype).reshape(shape)


def apply_table(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """``table[pixels]`` for uint8 or uint16 pixels ([H, W]), in this thread's buffer: used up before the next call."""
    out = scratch("brightness", pixels.shape, table.dtype)
    if pixels.dtype == np.uint8 or _WIDE_LUT:
        return cv2.LUT(pixels, table, dst=out)
    for row in range(0, pixels.shape[0], 32):  # blocks that stay in cache, so that no full-size index array is made
        np.take(table, pixels[row : row + 32], out=out[row : row + 32], mode="clip")
    return out
