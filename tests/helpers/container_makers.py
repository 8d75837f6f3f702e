"""Image containers that tell a quick reader one thing and a decoder another, or ask for much with few bytes."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from xray_makers import encode, png_chunk, ramp, scanlines

SIDE = 64
GREY = ramp(SIDE, SIDE)
_PNG = b"\x89PNG\r\n\x1a\n"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def ihdr(width: int, height: int) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def png_of(*before: bytes, after: bytes = b"") -> bytes:
    """A grey PNG with more chunks before and behind its pixels."""
    pixels = png_chunk(b"IDAT", zlib.compress(scanlines(GREY)))
    return _PNG + ihdr(SIDE, SIDE) + b"".join(before) + pixels + after + png_chunk(b"IEND", b"")


def text_chunk(number: int, size: int) -> bytes:
    """A few kilobytes that inflate to ``size``."""
    return png_chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes(size), 9))


def jpeg_frame(stream: bytes, width: int, height: int) -> bytes:
    """The frame header of a JPEG, with another size."""
    at = next(place for place in map(stream.find, (b"\xff\xc0", b"\xff\xc2", b"\xff\xc3", b"\xff\xf7")) if place > 0)
    segment = stream[at : at + 2 + struct.unpack_from(">H", stream, at + 2)[0]]
    return segment[:5] + struct.pack(">HH", height, width) + segment[9:]


def before_scan(stream: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments before its first scan."""
    at = stream.index(b"\xff\xda")
    return stream[:at] + b"".join(segments) + stream[at:]


def many_scans(count: int, side: int = 1024) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    stream = encode(".jpg", cv2.resize(GREY, (side, side)), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = stream[stream.rindex(b"\xff\xda") : -2]
    return stream[:-2] + scan * (count - stream.count(b"\xff\xda")) + b"\xff\xd9"


def box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def jp2(stream: bytes, *before: bytes, after: bytes = b"", header: bytes = b"") -> bytes:
    """A JP2 file around a codestream, with more boxes before, behind, or in its header."""
    width, height = struct.unpack_from(">II", stream, 8)
    about = box(b"ihdr", struct.pack(">IIHBBBB", height, width, 1, 7, 7, 0, 0))
    about += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17)) + header
    boxes = box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", about) + b"".join(before)
    return _JP2 + boxes + box(b"jp2c", stream) + after


def siz(stream: bytes) -> bytes:
    """Start and size segment of a codestream."""
    return stream[: 4 + struct.unpack_from(">H", stream, 4)[0]]


def resized(stream: bytes, width: int, height: int, tile: tuple[int, int] | None = None) -> bytes:
    """A codestream that declares another size, and tiles of that size or of ``tile``."""
    return stream[:8] + struct.pack(">6I", width, height, 0, 0, *(tile or (width, height))) + stream[32:]


def coded(stream: bytes, **fields) -> bytes:
    """A codestream with another coding style: ``layers``, ``levels``, ``block`` (exponents - 2), ``precincts``."""
    at = stream.index(b"\xff\x52")
    end = at + 2 + struct.unpack_from(">H", stream, at + 2)[0]
    segment = bytearray(stream[at:end])
    if "layers" in fields:
        segment[6:8] = struct.pack(">H", fields["layers"])
    if "levels" in fields:
        segment[9] = fields["levels"]
    if "block" in fields:
        segment[10], segment[11] = fields["block"]
    if "precincts" in fields:
        segment[4] |= 1
        segment = segment[:14] + bytes(fields["precincts"])
        segment[2:4] = struct.pack(">H", len(segment) - 2)
    return stream[:at] + bytes(segment) + stream[end:]


def webp_extended(width: int, height: int, *chunks: bytes) -> bytes:
    """An extended WebP of any chunks; ``webp_chunk`` takes one from a plain file."""
    about = struct.pack("<BBH", 0, 0, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + struct.pack("<4sI", b"VP8X", len(about)) + about + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(pixels: np.ndarray) -> bytes:
    return encode(".webp", pixels)[12:]
