"""Containers taken apart at their segments and put together wrongly: what flipped bits seldom reach.

Bits that are flipped anywhere end mostly at a checksum or a length. Here the pieces are whole ones, in wrong places,
too often, too seldom, or with other numbers in them, and checksums are made right again.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from codestream_makers import jpeg_2000, jpeg_lossless, jpeg_ls, rle
from container_makers import box, jp2, siz, webp_chunk, webp_extended
from xray_makers import dicom, encode, png_chunk, ramp, tiff

_ENCAPSULATED = b"\xfe\xff\x00\xe0"
_NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\x10\0", b"\0\x10\0\0", b"\1\0\1\0", b"\x20\0\x20\0")
_DECOYS = (b"\0" * 5000, b"\xff\x4f\xff\x51", b"\xff\xd8\xff\xc0\0\x0b\x08\x40\0\x40\0\1\1\x11\0", b"\xff" * 300)


def pieces(data: bytes) -> list[bytes]:
    """A container cut at its segments, chunks, boxes or directory entries; joined they are ``data``."""
    if data.startswith(b"\x89PNG"):
        return _cut(data, 8, lambda at: 12 + struct.unpack_from(">I", data, at)[0])
    if data.startswith(b"RIFF"):
        return _cut(data, 12, lambda at: 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2)
    if data.startswith(b"\0\0\0\x0cjP"):
        return _cut(data, 12, lambda at: struct.unpack_from(">I", data, at)[0])
    if data[:2] in (b"\xff\xd8", b"\xff\x4f"):
        return _cut(data, 2, lambda at: _marker_segment(data, at))
    if data.startswith(b"II*\0"):
        at = struct.unpack_from("<I", data, 4)[0]
        entries = [at + 2 + 12 * number for number in range(struct.unpack_from("<H", data, at)[0] + 1)]
        return [data[begin:end] for begin, end in zip([0, *entries], [*entries, len(data)], strict=True)]
    return [data[begin : begin + 16] for begin in range(0, len(data), 16)]  # BMP, PNM, RLE: nothing to go by


def _cut(data: bytes, at: int, length) -> list[bytes]:
    found = [data[:at]]
    while at < len(data):
        step = max(2, length(at)) if at + 8 <= len(data) else len(data) - at
        found.append(data[at : at + step])
        at += step
    return found


def _marker_segment(data: bytes, at: int) -> int:
    marker, length = struct.unpack_from(">HH", data, at)
    if marker in (0xFFDA, 0xFF90):  # with all that is coded: up to the end
        return len(data) - 2 - at
    return 2 + length if marker != 0xFFD9 else 2


def restructured(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three pieces doubled, repeated, moved, dropped, filled with other numbers, or with a decoy before them."""
    parts = pieces(data)
    for _ in range(rng.integers(1, 4)):
        spared = int(rng.integers(10) > 0 and len(parts) > 1)  # mostly the first piece, by which a format is told
        place, other = (int(index) for index in rng.integers(spared, len(parts), size=2))
        part, kind = parts[place], rng.integers(6)
        if kind == 0:
            parts.insert(other, _renumbered(part, rng))
        elif kind == 1:
            parts[place:place] = [part] * int(rng.choice([1, 2, 70, 700]))
        elif kind == 2:
            parts[place], parts[other] = parts[other], part
        elif kind == 3 and len(parts) > 1:
            del parts[place]
        elif kind == 4:
            parts[place] = _renumbered(part, rng)
        else:
            decoy = _DECOYS[rng.integers(len(_DECOYS))]
            parts.insert(place, decoy if rng.integers(2) else _wrapped(data, decoy))
    return b"".join(parts)


def _renumbered(part: bytes, rng: np.random.Generator) -> bytes:
    """The piece with an extreme number, one to four bytes, behind its name and length; the sum of a PNG chunk holds."""
    changed, width = bytearray(part), int(rng.choice([1, 2, 4]))
    place = int(rng.integers(4, max(5, min(len(part), 60))))
    number = _NUMBERS[rng.integers(len(_NUMBERS))] if rng.integers(3) else rng.bytes(4)
    changed[place : place + width] = number[:width]
    if len(part) >= 12 and part[4:8].isalpha() and zlib.crc32(part[4:-4]) == struct.unpack(">I", part[-4:])[0]:
        changed = bytearray(png_chunk(part[4:8], bytes(changed[8 : len(part) - 4])))
    return bytes(changed)


def _wrapped(data: bytes, decoy: bytes) -> bytes:
    """A decoy in a segment of the container's own kind, which a reader by lengths passes over."""
    if data.startswith(b"\x89PNG"):
        return png_chunk(b"tEXt", decoy)
    if data.startswith(b"\0\0\0\x0cjP"):
        return box(b"uuid", decoy)
    if data.startswith(b"RIFF"):
        return struct.pack("<4sI", b"XMP ", len(decoy)) + decoy
    return {b"\xff\x4f": b"\xff\x64", b"\xff\xd8": b"\xff\xfe"}.get(data[:2], b"") + struct.pack(
        ">H", len(decoy) + 2
    ) + decoy  # fmt: skip


def containers(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """(head, stream) of every container by name: a file is ``with_head(head, stream)``, in DICOM if it has a head."""
    grey = ramp(40, 48)
    colour = np.dstack([grey, 255 - grey, grey // 2])
    rasters = {
        "png": encode(".png", grey),
        "jpeg": encode(".jpg", grey),
        "jpeg-progressive": encode(".jpg", colour, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "tiff": tiff(grey),
        "tiff-pages": tiff([grey, grey], compression=8),
        "webp": encode(".webp", colour),
        "webp-extended": webp_extended(48, 40, webp_chunk(grey)),
        "webp-lossless": encode(".webp", colour, cv2.IMWRITE_WEBP_QUALITY, 101),
        "bmp": encode(".bmp", grey),
        "pnm": encode(".pgm", grey),  # not read: to be refused by name
    }
    done, data = cv2.imencode(".tiff", grey, [cv2.IMWRITE_TIFF_COMPRESSION, 7])
    if done:
        rasters["tiff-jpeg"] = data.tobytes()
    streams = {
        "dicom-jpeg": (50, rasters["jpeg"]),
        "dicom-jpeg-progressive": (50, encode(".jpg", grey, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        "dicom-jpeg-lossless": (70, jpeg_lossless(grey, 8)),
        "dicom-jpeg-ls": (80, jpeg_ls(grey, 8)),
        "dicom-jpeg-2000": (90, jpeg_2000(grey, 8, False)),
        "dicom-htj2k": (201, called_htj2k(jpeg_2000(grey, 8, False))),
        "dicom-jp2": (90, jp2(jpeg_2000(grey, 8, False))),
    }
    found = {name: (b"", data) for name, data in rasters.items()}
    for name, (syntax, data) in streams.items():
        found[name] = _headed(folder, grey, f"1.2.840.10008.1.2.4.{syntax}", data)
    found["dicom-rle"] = _headed(folder, grey, "1.2.840.10008.1.2.5", rle(grey))
    return found


def _headed(folder: Path, pixels: np.ndarray, syntax: str, stream: bytes) -> tuple[bytes, bytes]:
    whole = dicom(folder / "whole.dcm", pixels, syntax, stream).read_bytes()
    return whole[: whole.rindex(_ENCAPSULATED + struct.pack("<I", len(stream) + len(stream) % 2))], stream


def called_htj2k(stream: bytes) -> bytes:
    """A JPEG 2000 codestream that calls its blocks HTJ2K's (T.814), which they are not: no encoder is at hand."""
    size = siz(stream)
    about = size[:6] + b"\x40\0" + size[8:] + b"\xff\x50\0\x08\0\2\0\0\0\0"
    rest = bytearray(stream[len(size) :])
    rest[rest.index(b"\xff\x52") + 12] = 0x40
    return about + bytes(rest)


def with_head(head: bytes, stream: bytes) -> bytes:
    if not head:
        return stream
    stream += b"\0" * (len(stream) % 2)
    return head + _ENCAPSULATED + struct.pack("<I", len(stream)) + stream + b"\xfe\xff\xdd\xe0\0\0\0\0"
