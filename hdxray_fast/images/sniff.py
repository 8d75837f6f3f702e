"""What a file is and how large it says it is, from its bytes alone and before anything is allocated for it.

Truncated files are found here too: OpenCV returns a half-grey picture for some of them (depending on its version), so
that the end markers and chunk sums are checked rather than hoped for.
"""

from __future__ import annotations

import struct
import zlib

from .header import DamagedFile, Header, exif_orientation
from .jpeg_segments import read_jpeg
from .png_chunks import read_png
from .tiff_directories import read_tiff

_OTHER = (
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "gzip-compressed data (unpack it first)"),
    (b"PK\x03\x04", "a zip archive (.npz included: load it and pass the array)"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture outside DICOM"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream outside DICOM"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
)


def sniff(data: bytes) -> str:
    """Format by magic bytes: png, jpeg, tiff, bmp, webp, npy, dicom, "dicom?" (no preamble), or what else it is."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[128:132] == b"DICM":
        return "dicom"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] == b"\x93NUMPY":
        return "npy"
    if (
        data[:2] == b"BM"
        and len(data) >= 26
        and struct.unpack_from("<I", data, 14)[0] in (12, 40, 52, 56, 64, 108, 124)
    ):
        return "bmp"
    if data[:2] in (b"\x08\0", b"\x02\0", b"\0\x08", b"\0\x02") and data[2:4].strip(b"\0") != data[:2].strip(b"\0"):
        return "dicom?"
    for magic, words in _OTHER:
        if data.startswith(magic):
            return words
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypavif", b"ftypmif1"):
        return "a HEIF or AVIF picture"
    head = data[:512]
    if head and all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head):
        return "text"
    return "bytes of no known format"


def read_header(kind: str, data: bytes) -> Header:
    """Parse and check ``data`` as format ``kind`` (one of the raster formats that :func:`sniff` names).

    Raises:
        DamagedFile: the file is truncated or contradicts itself.
    """
    try:
        return _PARSERS[kind](data)
    except (struct.error, IndexError, zlib.error):
        raise DamagedFile("the file ends inside its header: it is truncated or damaged") from None


def _bmp(data: bytes) -> Header:
    start, size = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<I", data, 14)[0]
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, stored = 0, 0
    else:
        width, height, _, bits, compression, stored = struct.unpack_from("<iiHHII", data, 18)
    height = abs(height)
    if width <= 0 or bits not in (1, 2, 4, 8, 16, 24, 32):
        raise DamagedFile("the BMP header makes no sense: the file is damaged")
    needed = stored if compression in (1, 2) else (width * bits + 31) // 32 * 4 * height
    if start + needed > len(data):
        raise DamagedFile("the BMP ends before its last row: the file is truncated")
    return Header("bmp", width, height, 4 if bits == 32 else 3, 8, colour="palette" if bits <= 8 else "")


def _webp(data: bytes) -> Header:
    end = struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise DamagedFile("the WebP ends before its declared size: the file is truncated")
    if data[12:16] != b"VP8X":
        return _webp_bitstream(data[12:16], data, 12)
    width = 1 + int.from_bytes(data[24:27], "little")
    height = 1 + int.from_bytes(data[27:30], "little")
    header = Header("webp", width, height, 4 if data[20] & 0x10 else 3)
    offset, frames, said = 12, 0, set()
    while offset + 8 <= end:
        chunk, length = struct.unpack_from("<4sI", data, offset)
        frames += chunk == b"ANMF"
        what = b"VP8" if chunk in (b"VP8 ", b"VP8L") else chunk
        if what in said and what in (b"VP8", b"VP8X", b"ALPH"):
            raise DamagedFile("the WebP has two pictures or headers where one belongs: the file is damaged")
        if chunk != b"ANMF":
            said.add(what)
        if chunk == b"EXIF":
            blob = data[offset + 8 : offset + 8 + length]
            header.orientation = exif_orientation(blob[6:] if blob[:6] == b"Exif\0\0" else blob)
        if what == b"VP8":
            inner = _webp_bitstream(chunk, data, offset)
            if (inner.width, inner.height) != (width, height):
                raise DamagedFile("the WebP declares two different sizes: the file is damaged")
        offset += 8 + length + (length & 1)
    header.frames = max(1, frames)
    return header


def _webp_bitstream(name: bytes, data: bytes, offset: int) -> Header:
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, offset + 14)
        return Header("webp", width & 0x3FFF, height & 0x3FFF, 3)
    if name == b"VP8L":
        packed = struct.unpack_from("<I", data, offset + 9)[0]
        return Header("webp", (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, 4)
    raise DamagedFile("the WebP has no image data")


_PARSERS = {"png": read_png, "jpeg": read_jpeg, "bmp": _bmp, "webp": _webp, "tiff": read_tiff}
