"""The chunks of a PNG: what it declares, whether it is whole, and which of them a decoder need not see."""

from __future__ import annotations

import struct
import zlib

from .header import DamagedFile, Header, exif_orientation

MAX_CHUNKS = 1 << 17
_ONCE = {b"IHDR", b"PLTE", b"tRNS", b"acTL", b"eXIf"}
_COMPRESSED = {b"zTXt", b"iTXt", b"iCCP"}  # decoders inflate them: megabytes from a few kilobytes, each


def read_png(data: bytes) -> Header:
    """Parse and check a PNG; one that says its size, palette or transparency twice is refused.

    Raises:
        DamagedFile: it is truncated, contradicts itself, or fails a checksum outside its pixels.
    """
    view = memoryview(data)
    offset, header, said, last = 8, None, set(), b""
    for _ in range(MAX_CHUNKS):
        if offset + 12 > len(data):
            raise DamagedFile("the PNG ends before its IEND chunk: the file is truncated")
        length, name = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            raise DamagedFile("the PNG ends inside a chunk: the file is truncated")
        if header is None and (name != b"IHDR" or length != 13):
            raise DamagedFile("the PNG does not begin with an IHDR chunk")
        if name in said and (name in _ONCE or (name == b"IDAT" and last != b"IDAT")):
            raise DamagedFile(f"the PNG has two {name.decode()} chunks where one belongs: the file is damaged")
        said.add(name)
        last, start, offset = name, offset + 8, end
        if name == b"IDAT":  # libpng checks the sums of these itself while it decodes
            continue
        if zlib.crc32(view[start - 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise DamagedFile("a PNG chunk fails its checksum: the file is damaged")
        if name == b"IHDR":
            width, height, bits, colour = struct.unpack_from(">IIBB", data, start)
            samples = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
            if samples is None:
                raise DamagedFile("the PNG declares an unknown colour type")
            header = Header("png", width, height, samples, bits, colour="palette" if colour == 3 else "")
        elif name == b"acTL":
            header.frames = max(1, struct.unpack_from(">I", data, start)[0])
        elif name == b"fcTL":
            if struct.unpack_from(">4I", data, start + 4) != (header.width, header.height, 0, 0):
                raise DamagedFile("the PNG declares two different sizes: it is animated, or damaged")
        elif name == b"tRNS":
            header.samples = 2 if header.samples == 1 else 4
        elif name == b"eXIf":
            header.orientation = exif_orientation(data[start : end - 4])
        elif name in _COMPRESSED:
            header.no_pixels.append((start - 8, end))
        elif name == b"IEND":
            break
    else:
        raise DamagedFile(f"the PNG has more than {MAX_CHUNKS} chunks, the most that are read")
    if b"IDAT" not in said:
        raise DamagedFile("the PNG has no image data")
    if b"fdAT" in said:
        header.frames = max(2, header.frames)
    return header
