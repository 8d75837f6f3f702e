"""What a raster file declares of itself, whatever its format, and how damage is told."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


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
    orientation: int = 1  # by EXIF, or by a TIFF, which OpenCV turns itself
    min_is_white: bool = False
    colour: str = ""  # "", "cmyk", "cmyk_plain", "palette"...
    pages: list[Header] = field(default_factory=list, repr=False)  # of a TIFF, where each has a size of its own
    no_pixels: list[tuple[int, int]] = field(default_factory=list)  # (start, end) in bytes, to be kept from a decoder


def exif_orientation(blob: bytes) -> int:
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
