"""JPEG 2000 and HTJ2K streams as their decoder walks them: boxes, main header, tile-parts, up to the end marker.

A decoder follows lengths, not the first bytes that look like a header, and what it allocates is decided in several
places: the size, the number of tiles, code-blocks and precincts, and a palette in the file around the stream. Each is
read where the decoder reads it, may be said once, and has a cap. Sources: ITU-T T.800 annexes A (codestream), B (tiles,
precincts, code-blocks), I (boxes); T.814 for HTJ2K.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from .header import DamagedFile

MAX_TILES = 1 << 12  # OpenJPEG sets aside some 7 KB for each; 64 million pixels in tiles of 128 x 128 are 3,907
MAX_PRECINCTS = 1 << 17  # over all tiles, resolutions and samples
MAX_BLOCKS = 1 << 20  # code-blocks, likewise
MAX_STYLES = 64  # coding styles: one is usual, one for each sample or tile is possible
MAX_PARTS = 1 << 16  # tile-parts, and boxes of the file around them
SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"  # of a JP2 file
START = b"\xff\x4f\xff\x51"  # of a codestream: its SIZ segment is the first
_PADDING = b"\0\xff"  # behind the end
_END, _SOT, _SOD = 0xFFD9, 0xFF90, 0xFF93
_COD, _COC, _QCD, _POC = 0xFF52, 0xFF53, 0xFF5C, 0xFF5F
_CAP, _CPF, _TLM, _PLM, _PLT, _QCC, _RGN, _PPM, _PPT, _CRG, _COM = (
    0xFF50, 0xFF59, 0xFF55, 0xFF57, 0xFF58, 0xFF5D, 0xFF5E, 0xFF60, 0xFF61, 0xFF63, 0xFF64
)  # fmt: skip
_MAIN = {_COD, _COC, _QCD, _POC, _CAP, _CPF, _TLM, _PLM, _QCC, _RGN, _PPM, _CRG, _COM}
_TILE = {_COD, _COC, _QCD, _POC, _PLT, _QCC, _RGN, _PPT, _COM}
_ONCE = {_COD, _QCD, _POC, _CAP, _CPF, _CRG}


@dataclass(frozen=True)
class Size:
    """The SIZ segment: the picture and its tiles on the reference grid, all in pixels."""

    right: int
    bottom: int
    left: int
    top: int
    tile_width: int
    tile_height: int
    tile_left: int
    tile_top: int
    samples: int
    bits: int
    signed: bool

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def tiles(self) -> int:
        across = -(-(self.right - self.tile_left) // self.tile_width)
        return across * -(-(self.bottom - self.tile_top) // self.tile_height)

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the tiles of a row, and those of a column, begin and the last one ends: int64."""
        across = np.arange(self.tile_left, self.right + self.tile_width, self.tile_width, dtype=np.int64)
        down = np.arange(self.tile_top, self.bottom + self.tile_height, self.tile_height, dtype=np.int64)
        return np.clip(across, self.left, self.right), np.clip(down, self.top, self.bottom)


@dataclass(frozen=True)
class Coding:
    """What a COD or COC segment says of precincts and code-blocks; sizes are exponents of 2."""

    levels: int
    block: tuple[int, int]  # width, height
    precincts: tuple[tuple[int, int], ...]  # of each resolution, the lowest first


@dataclass(frozen=True)
class Stream:
    """What a JPEG 2000 stream says of itself."""

    size: Size
    transform: bool  # of three samples, undone by the decoder: they come out as RGB


def read_jpeg_2000(data: bytes) -> Stream:
    """Walk a codestream, bare or in a JP2 file, up to its end marker; what follows is not looked at.

    Raises:
        DamagedFile: it is truncated, contradicts itself, says twice what may be said once, or asks for more tiles,
            precincts or code-blocks than the caps above.
    """
    try:
        start = _in_boxes(data) if data.startswith(SIGNATURE) else 0
        if data[start : start + 4] != START:
            raise DamagedFile("the JPEG 2000 codestream does not begin with its size: the file is damaged")
        return _codestream(data, start)
    except (struct.error, IndexError):
        raise DamagedFile("the JPEG 2000 codestream ends inside its header: it is truncated") from None


def _in_boxes(data: bytes) -> int:
    """Where the codestream of a JP2 file begins."""
    offset, start, said, end = 0, 0, set(), len(data.rstrip(_PADDING))
    for _ in range(MAX_PARTS):
        if offset >= end:
            break
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"jp2c":
            length = length or len(data) - offset
            start = start or offset + 8
        if length < 8 or offset + length > len(data):  # 0 and 1, "to the end" and "64 bits", send decoders astray
            raise DamagedFile("a box of the JP2 file makes no sense, or ends outside the file: it is truncated")
        if kind in said and kind in (b"jP  ", b"ftyp", b"jp2h", b"ihdr", b"jp2c"):
            raise DamagedFile("the JP2 file has two headers or codestreams where one belongs: it is damaged")
        if kind in (b"pclr", b"cmap"):
            raise DamagedFile("the JP2 file has a palette of its own; accepted: plain samples")
        said.add(kind)
        offset += 8 if kind == b"jp2h" else length  # the boxes in this one are walked like the others
    else:
        raise DamagedFile(f"the JP2 file has more than {MAX_PARTS} boxes, the most that are read")
    if not start:
        raise DamagedFile("the JP2 file has no codestream: it is truncated")
    return start


def _codestream(data: bytes, start: int) -> Stream:
    size = _size(data, start + 4)
    tiles = size.tiles
    if tiles > MAX_TILES:
        raise DamagedFile(f"the JPEG 2000 codestream has {tiles} tiles; accepted: up to {MAX_TILES}")
    styles = _Styles(data, size.samples)
    offset = start + 4 + struct.unpack_from(">H", data, start + 4)[0]
    segments, offset = _segments(data, offset, _MAIN, _SOT)
    styles.add(segments)
    if not styles.layers:
        raise DamagedFile("the JPEG 2000 codestream does not say how it is coded: the file is damaged")
    transform = next(data[at + 6] for marker, at, _ in segments if marker == _COD)
    began = set()
    for _ in range(MAX_PARTS):
        marker = struct.unpack_from(">H", data, offset)[0] if offset + 2 <= len(data) else 0
        if marker == _END:
            break
        if marker != _SOT:
            raise DamagedFile("the JPEG 2000 codestream has no end marker: it is truncated")
        _, tile, length, part, _ = struct.unpack_from(">HHIBB", data, offset + 2)
        if tile >= tiles or (tile, part) in began:
            raise DamagedFile("the JPEG 2000 codestream has a tile-part twice, or outside the picture: it is damaged")
        began.add((tile, part))
        segments, body = _segments(data, offset + 12, _TILE, _SOD)
        styles.add(segments)
        end = offset + length if length else len(data.rstrip(_PADDING)) - 2  # 0: the last one, up to the end marker
        if end < body:
            raise DamagedFile("a tile-part of the JPEG 2000 codestream makes no sense: the file is damaged")
        offset = end
    else:
        raise DamagedFile(f"the JPEG 2000 codestream has more than {MAX_PARTS} tile-parts, the most that are read")
    for style in styles.found:
        _check_work(size, style, styles.layers, len(data))
    return Stream(size, transform == 1)


def _size(data: bytes, at: int) -> Size:
    """The SIZ segment, ``at`` its length."""
    length, _, *numbers, samples = struct.unpack_from(">HH8IH", data, at)
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = numbers
    parts = data[at + 38 : at + length]
    if len(parts) != 3 * samples or not samples:
        raise DamagedFile("the size segment of the JPEG 2000 codestream makes no sense: the file is damaged")
    if any(parts[3 * sample : 3 * sample + 3] != bytes([parts[0], 1, 1]) for sample in range(samples)):
        raise DamagedFile("the JPEG 2000 codestream has samples of several sizes or depths; accepted: all alike")
    inside = tile_left <= left < right and tile_top <= top < bottom
    if not inside or tile_left + tile_width <= left or tile_top + tile_height <= top:
        raise DamagedFile("the JPEG 2000 codestream declares an empty picture or tile: the file is damaged")
    return Size(*numbers, samples, (parts[0] & 0x7F) + 1, parts[0] > 0x7F)


def _segments(data: bytes, offset: int, known: set[int], last: int) -> tuple[list[tuple[int, int, int]], int]:
    """(marker, offset of its length, end) of each segment of a header; and where the marker that ends it stands.

    For ``_SOD`` that is behind the marker. Unknown markers are refused: OpenJPEG looks for the next one inside them.
    """
    found, said = [], set()
    while True:
        marker, length = struct.unpack_from(">HH", data, offset)
        if marker == last:
            return found, offset + (2 if last == _SOD else 0)
        if marker not in known or length < 2 or offset + 2 + length > len(data):
            raise DamagedFile("a segment of the JPEG 2000 codestream makes no sense, or ends outside it: it is damaged")
        if marker in said and marker in _ONCE:
            raise DamagedFile("the JPEG 2000 codestream says twice how it is coded: the file is damaged")
        said.add(marker)
        found.append((marker, offset + 2, offset + 2 + length))
        offset += 2 + length
        if len(found) > MAX_PARTS:
            raise DamagedFile(f"the JPEG 2000 codestream has more than {MAX_PARTS} segments, the most that are read")


class _Styles:
    """The coding styles of a codestream, of all its tiles and samples together, and the most layers."""

    def __init__(self, data: bytes, samples: int):
        self.data, self.samples = data, samples
        self.found: set[Coding] = set()
        self.layers = 0

    def add(self, segments: list[tuple[int, int, int]]) -> None:
        for marker, at, end in segments:
            if marker == _COD:
                self.layers = max(self.layers, struct.unpack_from(">H", self.data, at + 4)[0])
                self.found.add(self._coding(self.data[at + 2], at + 7, end))
            elif marker == _COC:
                at += 3 if self.samples < 257 else 4
                self.found.add(self._coding(self.data[at], at + 1, end))
        if len(self.found) > MAX_STYLES:
            raise DamagedFile(f"the JPEG 2000 codestream has more than {MAX_STYLES} coding styles, the most accepted")

    def _coding(self, style: int, at: int, end: int) -> Coding:
        levels, wide, high = self.data[at], (self.data[at + 1] & 15) + 2, (self.data[at + 2] & 15) + 2
        sizes = self.data[at + 5 : end] if style & 1 else b"\xff" * (levels + 1)
        if levels > 32 or wide > 10 or high > 10 or wide + high > 12 or len(sizes) <= levels:
            raise DamagedFile("the JPEG 2000 codestream's coding style makes no sense: the file is damaged")
        return Coding(levels, (wide, high), tuple((byte & 15, byte >> 4) for byte in sizes[: levels + 1]))


def _check_work(size: Size, coding: Coding, layers: int, length: int) -> None:
    """Hold precincts, code-blocks and packets against the caps, as though this coding style were that of all tiles."""
    precincts = blocks = 0
    for resolution, exponents in enumerate(coding.precincts):
        level, split = coding.levels - resolution, int(resolution > 0)  # all but the lowest: three bands of half size
        precincts += _cells(size, level, exponents)
        cells = [min(side, max(0, exponent - split)) for side, exponent in zip(coding.block, exponents, strict=True)]
        blocks += _cells(size, level + split, cells) * (3 if split else 1)
    for count, most, what in ((precincts, MAX_PRECINCTS, "precincts"), (blocks, MAX_BLOCKS, "code-blocks")):
        if count > most:
            raise DamagedFile(f"the JPEG 2000 codestream has {count} {what}; accepted: up to {most}")
    if precincts * layers > length:  # a packet takes a byte, even if it is empty
        raise DamagedFile(
            f"the JPEG 2000 codestream declares {precincts * layers} packets and holds {length} bytes: it is "
            "truncated or damaged"
        )


def _cells(size: Size, level: int, exponents: tuple[int, int] | list[int]) -> int:
    """How many cells of 2**exponents all tiles of all samples have, at 2**-level of their resolution."""
    count = size.samples
    for edges, exponent in zip(size.edges(), exponents, strict=True):
        scaled = -(-edges >> level)
        begin, end = scaled[:-1], scaled[1:]
        count *= int(np.where(end > begin, -(-end >> exponent) - (begin >> exponent), 0).sum())
    return count
