"""Any radiograph file or array to one square canvas: bright = dense, padded with black, and its history on record."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import BinaryIO

import cv2
import numpy as np

from ..errors import ArgumentError, ArgumentTypeError, ImageReadError, ImageTooLargeError, UnsupportedImageError
from ..names import escaped
from .exposure import exposed_box, looks_inverted, thumbnail
from .panels import notebook_png
from .raster import decode_array, decode_npy, decode_raster
from .sniff import sniff
from .tone import ConstantImageError, Grey, render, stored_values
from .unforeseen import unforeseen_named
from .voi_lut import VoiOptions

HEAD_BYTES = 1 << 16  # enough to tell formats apart, and for the file meta group of DICOM
FORMATS = "DICOM, PNG, JPEG, TIFF, BMP, WebP or .npy (recognised by content, not by suffix)"


@dataclass(frozen=True)
class Limits:
    """Caps that are checked on what a file declares, before anything is allocated for it.

    Scans of a JPEG, tiles of a JPEG 2000 and the like have fixed caps, next to what reads them (``jpeg_segments.py``,
    ``jpeg_2000.py``, ``png_chunks.py``, ``tiff_directories.py``).

    Attributes:
        max_pixels: rows x columns of one frame.
        max_bytes: of the file, of one decoded frame, and of an inflated DICOM data set.
        max_frames: of a multi-frame file.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 1 << 29
    max_frames: int = 4096


@dataclass(frozen=True, eq=False)
class Canvas:
    """A radiograph on a square canvas.

    Attributes:
        pixels: [S, S] uint8 | uint16, bright = dense (MONOCHROME2 sense), padding 0.
        valid_box: (top, left, height, width) in canvas pixels: where the radiograph lies.
        provenance: JSON-able record of what was done: source path as given, format, sizes, window, polarity, flags,
            pixel hash. It never holds patient data.
    """

    pixels: np.ndarray
    valid_box: tuple[int, int, int, int]
    provenance: dict = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.pixels.shape[0]

    def grey(self) -> np.ndarray:
        """The pixels as a screen shows them: [S, S] uint8."""
        return self.pixels if self.pixels.dtype == np.uint8 else (self.pixels >> 8).astype(np.uint8)

    def __repr__(self) -> str:
        words = [f"{self.size} x {self.size} {self.pixels.dtype}"]
        words += [f"source={escaped(str(source))!r}"] if (source := self.provenance.get("source")) else []
        words += [f"valid_box={self.valid_box}", f"flags={self.provenance.get('flags', [])}"]
        return f"Canvas({', '.join(words)})"

    def _repr_png_(self) -> bytes:
        """The picture, as a notebook shows it."""
        return notebook_png(self.grey())

    def valid_grid(self, patch_size: int = 16) -> np.ndarray:
        """Which patches hold any of the radiograph: [S/patch_size, S/patch_size] bool."""
        if isinstance(patch_size, bool) or not isinstance(patch_size, (int, np.integer)):
            raise ArgumentTypeError(f"patch_size={patch_size!r}: accepted: an int")
        if patch_size < 1 or self.size % patch_size:
            raise ArgumentError(f"patch_size={patch_size}: accepted: a divisor of the canvas size {self.size}")
        top, left, height, width = self.valid_box
        grid = np.zeros((self.size // patch_size,) * 2, bool)
        rows = slice(top // patch_size, -(-(top + height) // patch_size))
        grid[rows, left // patch_size : -(-(left + width) // patch_size)] = True
        return grid


@unforeseen_named
def read_canvas(
    path_or_array: str | os.PathLike | np.ndarray,
    size: int = 1280,
    bits: int = 8,
    fit: str = "letterbox",
    frame: int | None = None,
    *,
    window: str | tuple[float, float] = "auto",
    window_index: int = 0,
    prefer: str = "lut",
    percentiles: tuple[float, float] = (0.5, 99.5),
    crop: str = "none",
    any_modality: bool = False,
    for_processing: str = "log",
    force: bool = False,
    pixel_hash: str = "sampled",
    limits: Limits | None = None,
) -> Canvas:
    """Read a radiograph onto a square canvas.

    The order is: padding mask, modality LUT or rescale (float), VOI LUT or window, polarity, crop, resize.

    Args:
        path_or_array: a DICOM, PNG, JPEG, TIFF, BMP, WebP or .npy file, or a NumPy array ([H, W], [H, W, 1|3|4] with
            RGB order, or [N, H, W] with ``frame``) of unsigned or signed integers or finite floats.
        size: side of the canvas in pixels, 16 to 16384.
        bits: 8 or 16 bits per canvas pixel.
        fit: ``"letterbox"`` keeps the aspect (in millimetres where the pixel spacing is known) and pads with 0;
            ``"stretch"`` fills the square.
        frame: which frame of a multi-frame file; None refuses files with several.
        window: ``"auto"`` (the file's VOI LUT or window; for more than 8 bits without one, ``"percentile"``; for 8
            bits and floats within 0..1, ``"full"``), ``"percentile"``, ``"minmax"``, ``"full"`` (all values the stored
            bits can hold), or ``(center, width)`` in modality units.
        window_index: which of several windows or VOI LUTs of the file.
        prefer: ``"lut"`` or ``"window"``, where a file has both.
        percentiles: of the image pixels (padding left out) that become black and white by ``"percentile"``.
        crop: ``"none"`` or ``"exposed"`` (drop flat collimation borders; recorded in the provenance either way).
        any_modality: read DICOM files of other modalities than projection radiography (CT, MR, ultrasound...) too.
        for_processing: ``"log"`` turns raw detector data (FOR PROCESSING) into a picture by logarithm and percentile
            window, flagged; ``"refuse"`` raises UnsupportedImageError.
        force: try a file without preamble, or without transfer syntax, once as (implicit little endian) DICOM.
        pixel_hash: SHA-256 of the stored pixels and their shape in the provenance, to find duplicates: ``"sampled"``
            (every 16th row), ``"full"`` or ``"none"``.
        limits: caps on declared pixels, bytes and frames; default ``Limits()``.

    Returns:
        A Canvas.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not one of those above.
        ImageReadError: the file is missing, damaged, truncated, empty, or holds one constant value.
        ImageTooLargeError: the file declares more than ``limits`` allow.
        UnforeseenReadError: an ImageReadError; a library raised something else that nothing here foresaw.
        UnsupportedImageError: the file is no radiograph, or of a kind that is not read.
        MissingDependencyError: DICOM without pydicom, or a transfer syntax without its plugin.
    """
    limits = Limits() if limits is None else limits
    if not isinstance(limits, Limits):
        raise ArgumentTypeError(f"limits={limits!r}: accepted: hdxray_fast.images.canvas.Limits(...) or None")
    for name, value in (("any_modality", any_modality), ("force", force)):
        if not isinstance(value, bool):
            raise ArgumentTypeError(f"{name}={value!r}: accepted: True, False")
    _check_choice("pixel_hash", pixel_hash, ("sampled", "full", "none"))
    options = _check_options(size, bits, fit, frame, window, window_index, prefer, percentiles, crop, for_processing)
    if isinstance(path_or_array, np.ndarray):
        path = "<array>"
        grey = decode_array(path, path_or_array, frame, limits)
    else:
        path = _path_text(path_or_array)
        with _open(path, limits) as stream:
            grey = _decode_file(path, stream, frame, limits, any_modality, for_processing, force)
    try:
        brightness, voi = render(grey, bits, options)
    except ConstantImageError:
        raise ImageReadError(
            path, "every pixel that is not padding has the same value: there is no picture in it"
        ) from None
    rows, columns = brightness.shape
    if crop == "exposed":
        levels, factor = thumbnail(brightness)
        exposed = _scale_box(exposed_box(levels), levels.shape, factor, brightness.shape, (rows, columns))
        top, left, height, width = exposed
        brightness = brightness[top : top + height, left : left + width]
    pixels, box = fit_square(brightness, size, fit, grey.spacing)
    top, left, height, width = box
    levels, factor = thumbnail(pixels[top : top + height, left : left + width])
    inner = exposed_box(levels)  # looked for on the canvas, which is smaller than the file
    if crop == "none":
        exposed = _scale_box(inner, levels.shape, factor, (height, width), (rows, columns))
    flags = list(grey.flags)
    if looks_inverted(levels[inner[0] : inner[0] + inner[2], inner[1] : inner[1] + inner[3]]):
        flags.append("polarity_suspect")
    if exposed != (0, 0, rows, columns):
        flags.append("flat_border_cropped" if crop == "exposed" else "flat_border")
    provenance = {
        "source": path,
        **grey.provenance,
        "original_size": [rows, columns],
        "exposed_box": list(exposed),
        "cropped": crop == "exposed",
        "window": voi,
        "inverted": grey.invert,
        "fit": fit,
        "flags": flags,
    }
    if pixel_hash != "none":
        provenance["pixel_sha256"] = stored_hash(grey, 1 if pixel_hash == "full" else 16)
    return Canvas(pixels, box, provenance)


def _scale_box(
    box: tuple[int, int, int, int],
    small: tuple[int, int],
    factor: int,
    shape: tuple[int, int],
    target: tuple[int, int],
) -> tuple[int, int, int, int]:
    """A box on the ``small`` thumbnail (1 / factor) of an image of ``shape``, on one of shape ``target``, outwards."""
    top, left, height, width = box

    def stretch(start: int, length: int, whole: int, extent: int, out: int) -> tuple[int, int]:
        last = out if start + length == whole else int(np.ceil((start + length) * factor * out / extent))
        first = int(start * factor * out / extent)
        return first, min(out, last) - first

    first_row, rows = stretch(top, height, small[0], shape[0], target[0])
    first_column, columns = stretch(left, width, small[1], shape[1], target[1])
    return first_row, first_column, rows, columns


def stored_hash(grey: Grey, every: int = 16) -> str:
    """SHA-256 of shape, dtype and every 16th row of the stored pixels: equal for every lossless encoding of an image.

    Every 16th row, because hashing all of them costs half a resize; any mark taller than 15 rows still
    changes it. ``every=1`` takes all rows. Bits that do not belong to the values are left out.
    """
    rows = grey.pixels[::every]
    if rows.dtype in (np.uint8, np.uint16) and grey.bits < 8 * rows.dtype.itemsize:
        high_bit = grey.bits - 1 if grey.high_bit is None else grey.high_bit
        rows = stored_values(rows, grey.bits, high_bit, grey.signed).view(rows.dtype)
        rows = rows.astype(np.uint8) if grey.bits <= 8 else rows
    digest = hashlib.sha256(f"{rows.dtype.name} {grey.pixels.shape} {every}".encode())
    for row in rows:
        digest.update(row)
    return digest.hexdigest()


def fit_square(
    image: np.ndarray, size: int, fit: str = "letterbox", spacing: tuple[float, float] | None = None
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Resize [H, W] onto [size, size]: area averages down, cubic up (clipped to the image's own range).

    Args:
        image: [H, W] uint8 | uint16.
        size: side of the canvas.
        fit: ``"letterbox"`` or ``"stretch"``.
        spacing: size of a pixel in millimetres (row step, column step), where known.

    Returns:
        (canvas, valid box as (top, left, height, width)).
    """
    rows, columns = image.shape
    if fit == "stretch":
        height = width = size
    else:
        tall, wide = (rows * spacing[0], columns * spacing[1]) if spacing else (float(rows), float(columns))
        scale = size / max(tall, wide)
        height, width = (min(size, max(1, int(extent * scale + 0.5))) for extent in (tall, wide))
    top, left = (size - height) // 2, (size - width) // 2
    canvas = np.zeros((size, size), image.dtype)
    _resize(image, canvas[top : top + height, left : left + width])
    return canvas, (top, left, height, width)


def _resize(image: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (a view of the canvas) with ``image``: each axis by area averages down or by cubic up."""
    height, width = out.shape
    # one axis at a time where one shrinks and the other grows: OpenCV's area mode would give up on both
    down = (min(height, image.shape[0]), min(width, image.shape[1]))
    if down != image.shape:
        image = cv2.resize(image, down[::-1], dst=out if down == out.shape else None, interpolation=cv2.INTER_AREA)
    if down != out.shape:
        low, high = cv2.minMaxLoc(image)[:2]
        image = np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), int(low), int(high))
    if image is not out:
        out[...] = image


def _decode_file(
    path: str,
    stream: BinaryIO,
    frame: int | None,
    limits: Limits,
    any_modality: bool,
    for_processing: str,
    force: bool,
) -> Grey:
    head = _read(path, stream, HEAD_BYTES)
    if not head:
        raise ImageReadError(path, f"is empty (0 bytes); accepted: {FORMATS}")
    kind = sniff(head)
    if kind in ("png", "jpeg", "tiff", "bmp", "webp", "npy"):
        stream.seek(0)  # reading the head again is cheaper than joining two halves
        data = _read(path, stream, -1)
        if kind == "npy":
            return decode_npy(path, data, frame, limits)
        return decode_raster(path, kind, data, frame, limits)
    if kind == "dicom" or force:
        from .dicom import decode_dicom  # pydicom is optional and slow to import

        return decode_dicom(path, stream, head, frame, limits, any_modality, for_processing, force)
    if kind == "dicom?":
        raise UnsupportedImageError(
            path, f"looks like DICOM without its preamble; pass force=True to try it, or give {FORMATS}"
        )
    raise UnsupportedImageError(path, f"is {kind}; accepted: {FORMATS}")


def _path_text(path: object) -> str:
    if isinstance(path, bytes) or not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(
            f"path_or_array has type {type(path).__name__}; accepted: a path (str or os.PathLike) or a numpy.ndarray"
            + (" (for a tensor, pass tensor.cpu().numpy())" if hasattr(path, "__array__") else "")
        )
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ArgumentTypeError("path_or_array is a bytes path; accepted: a str path (os.fsdecode turns it into one)")
    return text


def _open(path: str, limits: Limits) -> BinaryIO:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageReadError(path, f"is a directory; accepted: one file, {FORMATS}")
        if not stat.S_ISREG(status.st_mode):
            raise ImageReadError(path, f"is a device, pipe or socket; accepted: a regular file, {FORMATS}")
        if status.st_size > limits.max_bytes:
            raise ImageTooLargeError(
                path,
                f"has {status.st_size} bytes; accepted: up to {limits.max_bytes}. If this is expected, pass a larger "
                "limits=Limits(max_bytes=...)",
            )
        return open(path, "rb")
    except ImageReadError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = {FileNotFoundError: "does not exist", PermissionError: "cannot be read: permission denied"}.get(
            type(error), f"cannot be read: {getattr(error, 'strerror', None) or 'not a valid path'}"
        )
        raise ImageReadError(path, reason) from None


def _read(path: str, stream: BinaryIO, count: int) -> bytes:
    try:
        return stream.read(count)
    except OSError as error:
        raise ImageReadError(path, f"cannot be read to its end: {error.strerror}") from None


def _check_choice(name: str, value: object, accepted: tuple) -> None:
    if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)) or value not in accepted:
        raise ArgumentError(f"{name}={value!r}: accepted: {', '.join(repr(choice) for choice in accepted)}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArgumentTypeError(f"{name}={value!r}: accepted: an int from {low} to {high}")
    if not low <= value <= high:
        raise ArgumentError(f"{name}={value}: accepted: {low} to {high}")


def _check_options(
    size, bits, fit, frame, window, window_index, prefer, percentiles, crop, for_processing
) -> VoiOptions:
    _check_int("size", size, 16, 16384)
    _check_choice("bits", bits, (8, 16))
    _check_choice("fit", fit, ("letterbox", "stretch"))
    _check_choice("prefer", prefer, ("lut", "window"))
    _check_choice("crop", crop, ("none", "exposed"))
    _check_choice("for_processing", for_processing, ("log", "refuse"))
    _check_int("window_index", window_index, 0, 10_000)
    if frame is not None:
        _check_int("frame", frame, 0, 2**31 - 1)
    if isinstance(window, str):
        _check_choice("window", window, ("auto", "percentile", "minmax", "full"))
    else:
        window = _check_pair("window", window, "'auto', 'percentile', 'minmax', 'full' or (center, width)")
        if not window[1] >= 1:
            raise ArgumentError(f"window={window}: accepted: a width of at least 1")
    percentiles = _check_pair("percentiles", percentiles, "(low, high) with 0 <= low < high <= 100")
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ArgumentError(f"percentiles={percentiles}: accepted: (low, high) with 0 <= low < high <= 100")
    return VoiOptions(window, int(window_index), prefer, percentiles)


def _check_pair(name: str, value: object, accepted: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name}={value!r}: accepted: {accepted}") from None
    if not np.isfinite([first, second]).all():
        raise ArgumentError(f"{name}={value!r}: accepted: finite numbers, {accepted}")
    return first, second
