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
    bits: int


def inspect_codestream(frame: bytes) -> Codestream | None:
    """Size and precision of a JPEG, JPEG-LS or JPEG 2000 frame; None for what has no header of its own (RLE).

    Raises:
        DamagedFile: the frame is truncated.
    """
    if frame[:2] == b"\xff\xd8":
        header = read_header("jpeg", frame)
        return Codestream(header.width, header.height, header.bits)
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers wrap the codestream into a JP2 file
    if start < 0:
        return None
    try:
        x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
        precision = struct.unpack_from(">B", frame, start + 42)[0]
    except struct.error:
        raise DamagedFile("the JPEG 2000 codestream ends inside its header: it is truncated") from None
    if b"\xff\xd9" not in frame[-16:]:  # the end marker and a little padding
        raise DamagedFile("the JPEG 2000 codestream has no end marker: it is truncated")
    return Codestream(x1 - x0, y1 - y0, (precision & 0x7F) + 1)
