"""The directories of a TIFF: what each page declares, and whether its pixels lie in the file."""

from __future__ import annotations

import struct

from .header import DamagedFile, Header
from .jpeg_segments import read_jpeg

MAX_VALUES = 1 << 22  # of the tags below, in all pages: a page of 64 million pixels in strips of one row has 16,000
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
_TAGS = (256, 257, 258, 259, 262, 273, 274, 277, 279, 322, 323, 324, 325, 339)
_JPEG = 7


def read_tiff(data: bytes) -> Header:
    """Parse and check a classic TIFF; ``pages`` of the result are the headers of all pages, its own is the first.

    Raises:
        DamagedFile: it is truncated, says a tag twice, or is a BigTIFF.
    """
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "H", data, 2)[0] == 43:
        raise DamagedFile("BigTIFF is not read; accepted: classic TIFF")
    offset, pages = struct.unpack_from(order + "I", data, 4)[0], []
    seen, values = set(), 0
    while offset:
        if offset in seen or offset + 2 > len(data):
            raise DamagedFile("the TIFF's directory lies outside the file: it is truncated or damaged")
        seen.add(offset)
        count = struct.unpack_from(order + "H", data, offset)[0]
        tags = _page_tags(data, order, offset, count, MAX_VALUES - values)
        values += sum(map(len, tags.values()))
        _check_pixels(data, tags)
        pages.append(_page(tags))
        offset = struct.unpack_from(order + "I", data, offset + 2 + 12 * count)[0]
    if not pages:
        raise DamagedFile("the TIFF has no image")
    for page in pages:
        page.frames, page.pages = len(pages), pages
    return pages[0]


def _page(tags: dict[int, tuple]) -> Header:
    def one(tag: int, default: int) -> int:
        return (tags.get(tag) or (default,))[0]

    width, height = one(256, 0), one(257, 0)
    if one(322, 0):  # tiles: what a decoder allocates is whole tiles
        tile_w, tile_h = max(one(322, 1), 1), max(one(323, 1), 1)
        width_alloc, height_alloc = -(-width // tile_w) * tile_w, -(-height // tile_h) * tile_h
        if width_alloc > 2 * width + 4096 or height_alloc > 2 * height + 4096:
            raise DamagedFile("the TIFF declares tiles far larger than the picture: the file is damaged")
    photometric = one(262, 1)
    kind = {1: "", 2: "signed", 3: "float"}.get(one(339, 1), "unknown")
    colour = "palette" if photometric == 3 else "cmyk" if photometric == 5 else kind
    bits, turned = max(tags.get(258) or (1,)), one(274, 1)
    return Header(
        "tiff", width, height, one(277, 1), bits, min_is_white=photometric == 0, colour=colour,
        orientation=turned if 1 < turned <= 8 else 1,
    )  # fmt: skip


def _page_tags(data: bytes, order: str, offset: int, count: int, room: int) -> dict[int, tuple]:
    tags = {}
    for entry in range(count):
        at = offset + 2 + 12 * entry
        tag, kind, number = struct.unpack_from(order + "HHI", data, at)
        size = _SIZES.get(kind, 0) * number
        where = at + 8 if size <= 4 else struct.unpack_from(order + "I", data, at + 8)[0]
        if where + size > len(data):
            raise DamagedFile("a TIFF tag lies outside the file: it is truncated or damaged")
        if tag not in _TAGS:
            continue
        if tag in tags:  # libtiff believes the first one
            raise DamagedFile(f"the TIFF has its tag {tag} twice in one directory: the file is damaged")
        room -= number if kind in _CODES else 0
        if room < 0:
            raise DamagedFile(f"the TIFF lists more than {MAX_VALUES} strips or tiles, the most that are read")
        tags[tag] = struct.unpack_from(f"{order}{number}{_CODES[kind]}", data, where) if kind in _CODES else ()
    return tags


def _check_pixels(data: bytes, tags: dict[int, tuple]) -> None:
    offsets, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    if not offsets or len(offsets) != len(counts):
        raise DamagedFile("the TIFF does not say where its pixels are: the file is damaged")
    if min(offsets) < 0 or min(counts) < 0 or max(map(sum, zip(offsets, counts, strict=True))) > len(data):
        raise DamagedFile("the TIFF's pixels lie outside the file: it is truncated")
    if tags.get(259) == (_JPEG,):  # strips are streams of their own, with sizes of their own
        for start, length in zip(offsets, counts, strict=True):
            read_jpeg(data[start : start + length])
