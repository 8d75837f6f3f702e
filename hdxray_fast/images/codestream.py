"""Compressed DICOM frames: size, precision and completeness, read before a decoder sees them.

Decoders fill in for missing data (OpenJPEG returns a blurred picture, libjpeg a grey one), and they allocate what the
codestream asks for rather than what the DICOM header says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from .header import DamagedFile
from .jpeg_2000 import SIGNATURE, START, read_jpeg_2000
from .sniff import read_header

GREY = 8  # grey levels by which the samples of a grey picture may differ in the mean
_SOF_DCT = {0xC0, 0xC1, 0xC2, 0xC5, 0xC6, 0xC9, 0xCA, 0xCD, 0xCE}
_SOF = _SOF_DCT | {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}


@dataclass(frozen=True)
class Codestream:
    """What a compressed frame says of itself."""

    width: int
    height: int
    samples: int
    bits: int  # per sample
    signed: bool | None = None  # None: only JPEG 2000 says it
    colour: str = ""  # what the samples are, "rgb" or "ycbcr"; "": it does not say
    colour_open: bool = False  # the colour is a convention of decoders for streams that name none, and may be wrong


def inspect_codestream(frame: bytes, planes: int, rle: bool) -> Codestream | None:
    """Size, precision and colour of a JPEG, JPEG-LS or JPEG 2000 frame; None for RLE, which has none of these.

    Args:
        frame: one encoded frame.
        planes: bytes per pixel, which is the number of RLE segments.
        rle: the frame is in DICOM's run-length encoding (PS3.5 annex G).

    Raises:
        DamagedFile: the frame is truncated or damaged, or asks a decoder for more than its picture can need.
    """
    if rle:
        _check_rle(frame, planes)
        return None
    if frame[:2] == b"\xff\xd8":
        header = read_header("jpeg", frame)
        if header.no_pixels:  # JPEG XT: libjpeg decodes what is in them too
            raise DamagedFile("the JPEG has a picture within the picture (JPEG XT), which is not read")
        return Codestream(header.width, header.height, header.samples, header.bits, None, *_jpeg_colour(frame))
    if not frame.startswith((START, SIGNATURE)):  # some writers wrap the codestream into a JP2 file
        raise DamagedFile("its compressed pixels begin neither as JPEG nor as JPEG 2000: the file is damaged")
    stream = read_jpeg_2000(frame)
    size = stream.size
    colour = "rgb" if size.samples == 3 and stream.transform else ""
    return Codestream(size.width, size.height, size.samples, size.bits, size.signed, colour)


def _jpeg_colour(frame: bytes) -> tuple[str, bool]:
    """Colour of a JPEG's samples and whether it is left open: RGB by its components' names, else JFIF, else Adobe.

    A DCT stream without any of these is YCbCr to libjpeg and all that are built on it where its components are numbered
    1, 2, 3; there are RGB streams of that kind. Lossless processes transform no colours: there the header has its say.
    """
    offset, marked = 2, ""
    while True:
        while frame[offset + 1] == 0xFF:
            offset += 1
        marker = frame[offset + 1]
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without a length
            offset += 2
            continue
        length = struct.unpack_from(">H", frame, offset + 2)[0]
        segment = frame[offset + 4 : offset + 2 + length]
        if marker == 0xE0 and segment[:5] == b"JFIF\0":
            marked = "ycbcr"
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) > 11 and not marked:
            marked = "ycbcr" if segment[11] else "rgb"
        elif marker in _SOF:
            names = segment[6::3]
            if len(names) != 3:
                return "", False
            if names in (b"RGB", b"rgb"):
                return "rgb", False
            if marked or marker not in _SOF_DCT:
                return marked, False
            return ("ycbcr" if names == b"\1\2\3" else ""), True
        offset += 2 + length


def looks_ycbcr(samples: np.ndarray, otherwise: bool) -> bool:
    """Whether three samples a pixel ([H, W, 3] uint8) are YCbCr rather than RGB: a radiograph is grey, read rightly.

    ``otherwise`` is the answer for pictures that are coloured in either reading.
    """
    every = max(1, len(samples) // 256)
    first, second, third = np.moveaxis(samples[::every].astype(np.int16), -1, 0)
    as_ycbcr = np.abs(second - 128).mean() + np.abs(third - 128).mean()
    as_rgb = np.abs(first - second).mean() + np.abs(second - third).mean()
    return bool(as_ycbcr < as_rgb) if min(as_ycbcr, as_rgb) < GREY else otherwise


def _check_rle(frame: bytes, planes: int) -> None:
    """The segment table: decoders trust it."""
    if len(frame) < 64:
        raise DamagedFile("the RLE frame is shorter than its header: it is truncated")
    count, *offsets = struct.unpack_from("<16I", frame)
    offsets = offsets[: min(count, 15)]
    ordered = offsets == sorted(set(offsets)) and offsets[:1] == [64] and offsets[-1] < len(frame)
    if count != planes or not ordered:
        raise DamagedFile("the RLE frame's segment table makes no sense: it is damaged")
