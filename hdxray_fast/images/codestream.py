"""Compressed DICOM frames: size, precision and completeness, read before a decoder sees them.

Decoders fill in for missing data (OpenJPEG returns a blurred picture, libjpeg a grey one), and they allocate what the
codestream asks for rather than what the DICOM header says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .sniff import DamagedFile, read_header


@dataclass(frozen=True)
class Codestream:
    width: int
    height: int
    samples: int
    bits: int


def inspect_codestream(frame: bytes, planes: int, rle: bool) -> Codestream | None:
    """Size and precision of a JPEG, JPEG-LS or JPEG 2000 frame; None for RLE, which has neither.

    Args:
        frame: one encoded frame.
        planes: bytes per pixel, which is the number of RLE segments.
        rle: the frame is in DICOM's run-length encoding (PS3.5 annex G).

    Raises:
        DamagedFile: the frame is truncated.
    """
    if rle:
        _check_rle(frame, planes)
        return None
    if frame[:2] == b"\xff\xd8":
        header = read_header("jpeg", frame)
        return Codestream(header.width, header.height, header.samples, header.bits)
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers wrap the codestream into a JP2 file
    if start < 0:
        return None
    try:
        x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
        samples, precision = struct.unpack_from(">HB", frame, start + 40)
    except struct.error:
        raise DamagedFile("the JPEG 2000 codestream ends inside its header: it is truncated") from None
    if b"\xff\xd9" not in frame[-16:]:  # the end marker and a little padding
        raise DamagedFile("the JPEG 2000 codestream has no end marker: it is truncated")
    return Codestream(x1 - x0, y1 - y0, samples, (precision & 0x7F) + 1)


def _check_rle(frame: bytes, planes: int) -> None:
    """The segment table: decoders trust it."""
    if len(frame) < 64:
        raise DamagedFile("the RLE frame is shorter than its header: it is truncated")
    count, *offsets = struct.unpack_from("<16I", frame)
    offsets = offsets[: min(count, 15)]
    ordered = offsets == sorted(set(offsets)) and offsets[:1] == [64] and offsets[-1] < len(frame)
    if count != planes or not ordered:
        raise DamagedFile("the RLE frame's segment table makes no sense: it is damaged")
