"""What a file is and how large it says it is, from its bytes alone and before anything is allocated for it.

Truncated files are found here too: OpenCV returns a half-grey picture for some of them (depending on its version), so
that the end markers and chunk sums are checked rather than hoped for.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

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


class DamagedFile(ValueError):
    """The bytes contradict the format; the caller turns this into an ImageReadError with the path."""


@dataclass
class Header:
    """What the file declares."""

    format: str
    width: int
    height: int
    samples: int = 1
    bits: int = 8  # per sample
    frames: int = 1
    orientation: int = 1  # EXIF / TIFF orientation still to be applied
    min_is_white: bool = False
    colour: str = ""  # "", "cmyk", "cmyk_plain", "palette"...


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


def _png(data: bytes) -> Header:
    view = memoryview(data)
    offset, header, seen_data = 8, None, False
    while True:
        if offset + 12 > len(data):
            raise DamagedFile("the PNG ends before its IEND chunk: the file is truncated")
        length, name = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            raise DamagedFile("the PNG ends inside a chunk: the file is truncated")
        if header is None and (name != b"IHDR" or length != 13):
            raise DamagedFile("the PNG does not begin with an IHDR chunk")
        if name == b"IDAT":  # libpng checks the sums of these itself while it decodes
            seen_data, offset = True, end
            continue
        if zlib.crc32(view[offset + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise DamagedFile("a PNG chunk fails its checksum: the file is damaged")
        if name == b"IHDR":
            width, height, bits, colour = struct.unpack_from(">IIBB", data, offset + 8)
            samples = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
            if samples is None:
                raise DamagedFile("the PNG declares an unknown colour type")
            header = Header("png", width, height, samples, bits, colour="palette" if colour == 3 else "")
        elif name == b"acTL":
            header.frames = max(1, struct.unpack_from(">I", data, offset + 8)[0])
        elif name == b"tRNS":
            header.samples = 2 if header.samples == 1 else 4
        elif name == b"eXIf":
            header.orientation = _exif_orientation(data[offset + 8 : end - 4])
        elif name == b"IEND":
            break
        offset = end
    if not seen_data:
        raise DamagedFile("the PNG has no image data")
    return header


_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}


def _jpeg(data: bytes) -> Header:
    header, adobe, offset, orientation, scans = None, None, 2, 1, 0
    while True:
        offset = _skip_fill(data, offset)
        marker = data[offset + 1]
        if marker == 0xD9:
            break
        offset += 2
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        length = struct.unpack_from(">H", data, offset)[0]
        if length < 2 or offset + length > len(data):
            raise DamagedFile("the JPEG ends inside a segment: the file is truncated")
        if marker in _JPEG_FRAMES:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, offset + 2)
            header = Header("jpeg", width, height, samples, bits, colour="jpeg-ls" if marker == 0xF7 else "")
        elif marker == 0xEE and data[offset + 2 : offset + 7] == b"Adobe":
            adobe = data[offset + 13]
        elif marker == 0xE1 and data[offset + 2 : offset + 8] == b"Exif\0\0":
            orientation = _exif_orientation(data[offset + 8 : offset + length])
        offset += length
        if marker == 0xDA:
            scans += 1
            offset = _end_of_scan(data, offset, jpeg_ls=header is not None and header.colour == "jpeg-ls")
    if header is None or not scans:
        raise DamagedFile("the JPEG has no image data")
    header.orientation = orientation
    if header.samples == 4:
        header.colour = "cmyk_plain" if adobe is None else "cmyk"
    return header


def _skip_fill(data: bytes, offset: int) -> int:
    if data[offset : offset + 1] != b"\xff":
        if offset >= len(data):
            raise DamagedFile("the JPEG ends before its end-of-image marker: the file is truncated")
        raise DamagedFile("the JPEG has rubbish where a marker belongs: the file is damaged")
    while data[offset + 1 : offset + 2] == b"\xff":
        offset += 1
    if offset + 1 >= len(data):
        raise DamagedFile("the JPEG ends before its end-of-image marker: the file is truncated")
    return offset


def _end_of_scan(data: bytes, start: int, jpeg_ls: bool) -> int:
    """Offset of the first marker after entropy-coded data that is neither stuffing nor a restart."""
    stuffed = 0x7F if jpeg_ls else 0  # JPEG-LS stuffs one bit after 0xFF, the others a whole zero byte
    for block in range(start, len(data), 1 << 20):
        coded = np.frombuffer(data, np.uint8, count=min(len(data) - block, (1 << 20) + 1), offset=block)
        at = np.flatnonzero(coded[:-1] == 0xFF)
        follower = coded[at + 1]
        ends = at[(follower > stuffed) & (follower != 0xFF) & ((follower < 0xD0) | (follower > 0xD7))]
        if ends.size:
            return block + int(ends[0])
    raise DamagedFile("the JPEG ends before its end-of-image marker: the file is truncated")


def _exif_orientation(blob: bytes) -> int:
    """Tag 0x0112 of IFD 0; 1 where it is absent or makes no sense."""
    try:
        order = {b"II": "<", b"MM": ">"}[blob[:2]]
        offset = struct.unpack_from(order + "I", blob, 4)[0]
        for entry in range(struct.unpack_from(order + "H", blob, offset)[0]):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", blob, offset + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
                return value
    except (KeyError, struct.error):
        return 1
    return 1


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
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise DamagedFile("the WebP ends before its declared size: the file is truncated")
    name, frames, orientation, header = data[12:16], 1, 1, None
    if name == b"VP8X":
        flags = data[20]
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        header = Header("webp", width, height, 4 if flags & 0x10 else 3)
        offset = 12
        while offset + 8 <= len(data):
            chunk, length = struct.unpack_from("<4sI", data, offset)
            if chunk == b"EXIF":
                blob = data[offset + 8 : offset + 8 + length]
                orientation = _exif_orientation(blob[6:] if blob[:6] == b"Exif\0\0" else blob)
            frames += chunk == b"ANMF"
            if chunk in (b"VP8 ", b"VP8L"):
                inner = _webp_bitstream(chunk, data, offset)
                if (inner.width, inner.height) != (width, height):
                    raise DamagedFile("the WebP declares two different sizes: the file is damaged")
            offset += 8 + length + (length & 1)
        header.frames, header.orientation = max(1, frames - 1), orientation
        return header
    return _webp_bitstream(name, data, 12)


def _webp_bitstream(name: bytes, data: bytes, offset: int) -> Header:
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, offset + 14)
        return Header("webp", width & 0x3FFF, height & 0x3FFF, 3)
    if name == b"VP8L":
        packed = struct.unpack_from("<I", data, offset + 9)[0]
        return Header("webp", (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, 4)
    raise DamagedFile("the WebP has no image data")


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}


def _tiff(data: bytes) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "H", data, 2)[0] == 43:
        raise DamagedFile("BigTIFF is not read; accepted: classic TIFF")
    offset, pages, first = struct.unpack_from(order + "I", data, 4)[0], 0, None
    seen = set()
    while offset:
        if offset in seen or offset + 2 > len(data):
            raise DamagedFile("the TIFF's directory lies outside the file: it is truncated or damaged")
        seen.add(offset)
        count = struct.unpack_from(order + "H", data, offset)[0]
        tags = _tiff_tags(data, order, offset, count)
        _check_tiff_strips(tags, len(data))
        first = first or tags
        pages += 1
        offset = struct.unpack_from(order + "I", data, offset + 2 + 12 * count)[0]
    if first is None:
        raise DamagedFile("the TIFF has no image")
    one = lambda tag, default: (first.get(tag) or (default,))[0]  # noqa: E731
    width, height = one(256, 0), one(257, 0)
    if one(322, 0):  # tiles: what a decoder allocates is whole tiles
        tile_w, tile_h = one(322, 1), max(one(323, 1), 1)
        width_alloc, height_alloc = -(-width // tile_w) * tile_w, -(-height // tile_h) * tile_h
        if width_alloc > 2 * width + 4096 or height_alloc > 2 * height + 4096:
            raise DamagedFile("the TIFF declares tiles far larger than the picture: the file is damaged")
    samples = one(277, 1)
    photometric = one(262, 1)
    kind = {1: "", 2: "signed", 3: "float"}.get(one(339, 1), "unknown")
    colour = "palette" if photometric == 3 else "cmyk" if photometric == 5 else kind
    return Header(
        "tiff", width, height, samples, max(first.get(258) or (1,)), pages, min_is_white=photometric == 0, colour=colour
    )


def _tiff_tags(data: bytes, order: str, offset: int, count: int) -> dict[int, tuple]:
    tags = {}
    for entry in range(count):
        at = offset + 2 + 12 * entry
        tag, kind, number = struct.unpack_from(order + "HHI", data, at)
        size = _TIFF_SIZES.get(kind, 0) * number
        where = at + 8 if size <= 4 else struct.unpack_from(order + "I", data, at + 8)[0]
        if where + size > len(data):
            raise DamagedFile("a TIFF tag lies outside the file: it is truncated or damaged")
        if kind in _TIFF_CODES and tag in (256, 257, 258, 259, 262, 273, 274, 277, 279, 322, 323, 324, 325, 339):
            tags[tag] = struct.unpack_from(f"{order}{number}{_TIFF_CODES[kind]}", data, where)
    return tags


def _check_tiff_strips(tags: dict[int, tuple], size: int) -> None:
    offsets, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    if not offsets or len(offsets) != len(counts):
        raise DamagedFile("the TIFF does not say where its pixels are: the file is damaged")
    if any(start + length > size for start, length in zip(offsets, counts, strict=True)):
        raise DamagedFile("the TIFF's pixels lie outside the file: it is truncated")


_PARSERS = {"png": _png, "jpeg": _jpeg, "bmp": _bmp, "webp": _webp, "tiff": _tiff}
