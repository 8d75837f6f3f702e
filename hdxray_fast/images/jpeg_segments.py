"""The segments of a JPEG or JPEG-LS: what it declares, and whether it is whole.

A decoder believes the last of several frame headers, or the first, or allocates for each; and it goes over the whole
picture for each scan, however few bytes the scan has. So a stream has one frame header, a sequential process codes a
component once (ITU-T T.81 B.2.1, G.1), and a progressive one has no more than ``MAX_SCANS`` scans, or fewer if it is
so large that these would go over more than ``MAX_SCANNED`` pixels.
"""

from __future__ import annotations

import re
import struct

import numpy as np

from .header import DamagedFile, Header, exif_orientation

MAX_SCANS = 64  # of a progressive JPEG; encoders write 6 to 25
MAX_SCANNED = 1 << 30  # pixels; at 64 million these are 16 scans
MAX_SEGMENTS = 1 << 16  # a colour profile and metadata need a few hundred at most
_LOSSLESS_LS = 0xF7
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB, _LOSSLESS_LS}
_PROGRESSIVE = {0xC2, 0xCA}
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF}  # differential frames, and the segments around them
_FILL = re.compile(rb"\xff+")


def read_jpeg(data: bytes) -> Header:
    """Parse and check a JPEG or JPEG-LS stream up to its end-of-image marker.

    Raises:
        DamagedFile: it is truncated, says its size twice, or has more scans than its process can need.
    """
    header, process, adobe, offset, orientation = None, 0, None, 2, 1
    coded, scans, extensions = set(), 0, []
    for _ in range(MAX_SEGMENTS):
        offset = _skip_fill(data, offset)
        marker = data[offset + 1]
        if marker == 0xD9:
            break
        offset += 2
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        if marker == 0xD8:
            raise DamagedFile("the JPEG has a second start-of-image marker: the file is damaged")
        length = struct.unpack_from(">H", data, offset)[0]
        if length < 2 or offset + length > len(data):
            raise DamagedFile("the JPEG ends inside a segment: the file is truncated")
        if marker in _HIERARCHICAL:
            raise DamagedFile("the JPEG is hierarchical, or damaged; accepted: JPEG of one frame")
        if marker in _FRAMES:
            if header is not None:
                raise DamagedFile("the JPEG declares its size twice (two frame headers): the file is damaged")
            bits, height, width, samples = struct.unpack_from(">BHHB", data, offset + 2)
            process = marker
            header = Header("jpeg", width, height, samples, bits, colour="jpeg-ls" if marker == _LOSSLESS_LS else "")
        elif marker == 0xDC or (marker == 0xF8 and data[offset + 2] == 4):  # number of lines; JPEG-LS's larger sizes
            raise DamagedFile("the JPEG declares its size outside its frame header, which is not read")
        elif marker == 0xEE and data[offset + 2 : offset + 7] == b"Adobe":
            adobe = data[offset + 13]
        elif marker == 0xEB and data[offset + 2 : offset + 4] == b"JP":  # boxes: more of the picture, or metadata
            extensions.append((offset - 2, offset + length))
        elif marker == 0xE1 and data[offset + 2 : offset + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[offset + 8 : offset + length])
        elif marker == 0xDA:
            scans += 1
            _check_scan(data[offset + 2 : offset + length], header, process, coded, scans)
        offset += length
        if marker == 0xDA:
            offset = _end_of_scan(data, offset, process == _LOSSLESS_LS)
    else:
        raise DamagedFile(f"the JPEG has more than {MAX_SEGMENTS} segments, the most that are read")
    if header is None or not scans:
        raise DamagedFile("the JPEG has no image data")
    header.orientation, header.no_pixels = orientation, extensions
    if header.samples == 4:
        header.colour = "cmyk_plain" if adobe is None else "cmyk"
    return header


def _check_scan(segment: bytes, header: Header | None, process: int, coded: set[int], scans: int) -> None:
    """Refuse a scan that its frame cannot need; ``coded`` are the components that earlier scans held."""
    if header is None:
        raise DamagedFile("the JPEG has a scan before its frame header: the file is damaged")
    components = list(segment[1 : 1 + 2 * segment[0] : 2])
    if len(components) != segment[0] or not components or len(set(components)) < len(components):
        raise DamagedFile("a scan header of the JPEG makes no sense: the file is damaged")
    if process in _PROGRESSIVE:
        most = max(1, min(MAX_SCANS, MAX_SCANNED // max(1, header.width * header.height)))
        if scans > most:
            raise DamagedFile(f"the JPEG has more than {most} scans, the most that are read of its size")
    elif not coded.isdisjoint(components):
        raise DamagedFile("the JPEG codes a component twice: the file is damaged")
    coded.update(components)


def _skip_fill(data: bytes, offset: int) -> int:
    if data[offset : offset + 1] != b"\xff":
        if offset >= len(data):
            raise DamagedFile("the JPEG ends before its end-of-image marker: the file is truncated")
        raise DamagedFile("the JPEG has rubbish where a marker belongs: the file is damaged")
    offset = _FILL.match(data, offset).end() - 1
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
