"""PNG, JPEG, TIFF, BMP, WebP, .npy and NumPy arrays to grey stored pixels."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np

from ..errors import ArgumentError, ImageReadError, ImageTooLargeError, UnsupportedImageError
from .header import DamagedFile, Header
from .quiet import no_warnings
from .sniff import read_header
from .tone import Grey

ARRAY_SHAPES = "[H, W], [1, H, W], [H, W, 1], [H, W, 3] (RGB), [H, W, 4] (RGBA) or [N, H, W] with frame="


def check_caps(path: str, width: int, height: int, samples: int, bits: int, frames: int, limits) -> None:
    """Refuse what the header declares before anything is allocated for it."""
    if width < 1 or height < 1:
        raise ImageReadError(path, f"the file declares an empty image ({width} x {height})")
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            path,
            f"the file declares {width} x {height} = {width * height} pixels; accepted: up to {limits.max_pixels}. "
            "If this is expected, pass a larger limits=Limits(max_pixels=...)",
        )
    if frames > limits.max_frames:
        raise ImageTooLargeError(
            path,
            f"the file declares {frames} frames; accepted: up to {limits.max_frames}. If this is expected, pass a "
            "larger limits=Limits(max_frames=...)",
        )
    size = width * height * samples * ((bits + 7) // 8)
    if size > limits.max_bytes:
        raise ImageTooLargeError(
            path,
            f"one frame would decode to {size} bytes; accepted: up to {limits.max_bytes}. If this is expected, pass "
            "a larger limits=Limits(max_bytes=...)",
        )


def check_frame(path: str, frames: int, frame: int | None) -> int:
    """The frame to decode; several frames need an explicit choice."""
    if frame is None:
        if frames > 1:
            raise UnsupportedImageError(
                path, f"holds {frames} frames; choose one with frame=0 to frame={frames - 1}: frames are never mixed"
            )
        return 0
    if frame >= frames:
        raise ArgumentError(f"frame={frame}: {path} holds {frames} frame(s); accepted: 0 to {frames - 1}")
    return frame


def decode_raster(path: str, kind: str, data: bytes, frame: int | None, limits) -> Grey:
    """A PNG, JPEG, TIFF, BMP or WebP file's bytes to grey stored pixels."""
    try:
        header = read_header(kind, data)
    except DamagedFile as damage:
        raise ImageReadError(path, str(damage)) from None
    check_caps(path, header.width, header.height, header.samples, header.bits, header.frames, limits)
    if header.frames > 1 and kind != "tiff":
        raise UnsupportedImageError(
            path, f"is an animated {kind.upper()} of {header.frames} frames; accepted: still pictures"
        )
    frame = check_frame(path, header.frames, frame)
    if frame and header.pages:  # a page has a size of its own
        header = header.pages[frame]
        check_caps(path, header.width, header.height, header.samples, header.bits, header.frames, limits)
    reason = _unsupported(header)
    if reason:
        raise UnsupportedImageError(path, reason)
    pixels = _decode(path, header, data, frame)
    flags: list[str] = []
    grey = _to_luma(pixels, flags, rgb=False)
    # OpenCV turns min-is-white 8-bit TIFFs itself (through RGBA), but hands out other depths as they are stored
    invert = header.min_is_white and not (kind == "tiff" and grey.dtype == np.uint8)
    if kind != "tiff":  # which OpenCV turns itself
        grey = _orient(grey, header.orientation)
    if header.orientation != 1:
        flags.append("orientation_applied")
    provenance = {
        "format": kind,
        "decoder": f"opencv {cv2.__version__}",
        "stored": {"samples": header.samples, "bits": header.bits, "orientation": header.orientation},
    }
    return _describe(grey, path, provenance, flags, invert)


def _unsupported(header: Header) -> str:
    """Why a picture is refused although its file is whole; empty for those that are read."""
    if header.format == "jpeg" and (header.bits != 8 or header.colour == "jpeg-ls"):
        return f"is a {header.bits}-bit JPEG or a JPEG-LS outside DICOM; accepted: 8-bit JPEG (or the DICOM file)"
    if header.colour == "cmyk_plain":
        return "is a four-channel JPEG without an Adobe marker: are its inks inverted? Convert it to grey first"
    if header.format == "tiff" and header.colour in ("cmyk", "unknown"):
        return "is a TIFF in CMYK or of samples that are not numbers; convert it to 8- or 16-bit grey first"
    return ""


def _decode(path: str, header: Header, data: bytes, frame: int) -> np.ndarray:
    buffer = np.frombuffer(_without(data, header.no_pixels), np.uint8)
    mode = cv2.IMREAD_UNCHANGED
    if header.format == "jpeg" and header.samples != 4:
        # luminance straight from the codec: the same weights as RGB to luma, a third of the memory
        mode = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        if frame:
            done, pages = cv2.imdecodemulti(buffer, mode, None, (frame, frame + 1))  # no other page is decoded
            pixels = pages[0] if done and len(pages) == 1 else None
        else:
            pixels = cv2.imdecode(buffer, mode)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None:
        raise ImageReadError(path, f"the {header.format.upper()} cannot be decoded: its data are damaged")
    if header.format == "bmp" and pixels.ndim == 3:
        pixels = pixels[..., :3]  # the fourth byte of a BMP pixel is filler, and mostly 0
    if {pixels.shape[0], pixels.shape[1]} != {header.height, header.width}:
        raise ImageReadError(path, f"the {header.format.upper()} decodes to another size than its header declares")
    return pixels


def _without(data: bytes, parts: list[tuple[int, int]]) -> bytes:
    """The bytes outside ``parts``, (start, end) in ascending order."""
    if not parts:
        return data
    starts, ends = [0] + [end for _, end in parts], [start for start, _ in parts] + [len(data)]
    view = memoryview(data)
    return b"".join(view[start:end] for start, end in zip(starts, ends, strict=True))


def _to_luma(pixels: np.ndarray, flags: list[str], rgb: bool) -> np.ndarray:
    """Colour to grey by Rec. 601 luma, transparency over black; [H, W] or [H, W, 1..4] in, [H, W] out."""
    if pixels.ndim == 2:
        return pixels
    samples = pixels.shape[2]
    if samples == 1:
        return pixels[..., 0]
    dtype = pixels.dtype
    if dtype not in (np.uint8, np.uint16, np.float32):
        pixels = pixels.astype(np.float32)
    alpha = pixels[..., samples - 1] if samples in (2, 4) else None
    if samples == 2:
        grey = np.ascontiguousarray(pixels[..., 0])
    else:
        colour = np.ascontiguousarray(pixels[..., :3])
        grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY if rgb else cv2.COLOR_BGR2GRAY)
        flags.append("colour_to_luma")
    if alpha is not None:
        opaque = 1.0
        if np.issubdtype(dtype, np.integer):  # wider ones mostly hold 8 or 16 bits, and signed ones what they are
            opaque = np.iinfo(dtype).max if dtype in (np.uint8, np.uint16) else max(1.0, float(alpha.max()))
        if (alpha < opaque).any():
            flags.append("transparency_over_black")
            grey = np.rint(grey * (alpha / opaque)).astype(grey.dtype) if opaque != 1.0 else grey * alpha
    return grey


def _orient(grey: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1..8."""
    if orientation in (5, 6, 7, 8):
        grey = grey.T
    flip = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(grey, flip)) if flip or orientation == 5 else grey


def decode_npy(path: str, data: bytes, frame: int | None, limits) -> Grey:
    """A .npy file's bytes; the header is checked before the array exists, and pickles are never loaded."""
    stream = io.BytesIO(data)
    try:
        reader = _NPY_HEADERS[np.lib.format.read_magic(stream)]
        with no_warnings():
            shape, fortran, dtype = reader(stream)
    except Exception:
        raise ImageReadError(path, "the .npy header is damaged or truncated") from None
    _check_dtype(path, dtype)
    if any(type(length) is not int or not 0 < length < 1 << 63 for length in shape):  # NumPy takes True and -1
        raise ImageReadError(
            path, "the .npy header declares a shape that no array has; accepted: whole numbers of at least 1"
        )
    size, stored = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if size > limits.max_bytes:
        raise ImageTooLargeError(
            path,
            f"the .npy file declares {min(size, 1 << 63)} bytes or more; accepted: up to {limits.max_bytes}. If this "
            "is expected, pass a larger limits=Limits(max_bytes=...)",
        )
    if stored < size:
        raise ImageReadError(path, "the .npy file ends before its last value: it is truncated")
    if stored > size:
        raise ImageReadError(
            path,
            f"the .npy header declares {size} bytes of values, and {stored} follow: it is damaged, or holds more than "
            "one array",
        )
    array = np.frombuffer(data, dtype, offset=stream.tell())
    grey = decode_array(path, array.reshape(shape, order="F" if fortran else "C"), frame, limits)
    grey.provenance["format"] = "npy"
    return grey


# By version; 3.0 is 2.0 in UTF-8, for names of fields, which no picture has
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


def _check_dtype(path: str, dtype: np.dtype) -> None:
    if dtype.kind not in "uif" or dtype.itemsize > 8 or dtype.hasobject:
        raise UnsupportedImageError(
            path, f"has dtype {dtype}; accepted: unsigned or signed integers and floats of up to 64 bits"
        )


def decode_array(path: str, array: np.ndarray, frame: int | None, limits) -> Grey:
    """A NumPy array to grey stored pixels (never modified)."""
    if isinstance(array, np.ma.MaskedArray):
        raise UnsupportedImageError(path, "is a masked array; fill the masked pixels first: array.filled(value)")
    array = np.asarray(array)
    _check_dtype(path, array.dtype)
    if array.ndim not in (2, 3) or array.size == 0:
        raise UnsupportedImageError(path, f"has shape {list(array.shape)}; accepted: non-empty {ARRAY_SHAPES}")
    frames_first = array.ndim == 3 and array.shape[2] not in (1, 3, 4)
    frames = array.shape[0] if frames_first else 1
    height, width = array.shape[1:] if frames_first else array.shape[:2]
    samples = 1 if frames_first or array.ndim == 2 else array.shape[2]
    check_caps(path, width, height, samples, 8 * array.dtype.itemsize, frames, limits)
    chosen = check_frame(path, frames, frame)
    if frames_first:
        array = array[chosen]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageReadError(path, "has values that are NaN or infinite; accepted: finite values only")
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    flags: list[str] = []
    grey = _to_luma(array, flags, rgb=True)
    return _describe(grey, path, {"format": "array", "decoder": f"numpy {np.__version__}"}, flags, False)


def _describe(grey: np.ndarray, path: str, provenance: dict, flags: list[str], invert: bool) -> Grey:
    """Stored pixels of any dtype with the meaning that their dtype has outside DICOM."""
    provenance.setdefault("stored", {})["dtype"] = str(grey.dtype)
    signed, display, bits = grey.dtype.kind == "i", grey.dtype == np.uint8, 8 * grey.dtype.itemsize
    grey = np.ascontiguousarray(grey)
    if grey.dtype.kind == "f":
        if not np.isfinite(grey).all():
            raise ImageReadError(path, "has values that are NaN or infinite; accepted: finite values only")
        display = bool(grey.min() >= 0.0 and grey.max() <= 1.0)
    elif bits <= 16:
        grey = grey.view(f"u{bits // 8}")
    return Grey(grey, bits, signed=signed, display=display, invert=invert, provenance=provenance, flags=flags)
