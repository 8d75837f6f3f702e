"""A DICOM file's data set, read in the encoding it is found to have, which is not always the one its meta group names.

PACS and converters change one and forget the other: explicit and implicit VR, byte order, compressed pixels under an
uncompressed syntax and the other way round. Bytes do not lie about it, so they are looked at before anything is parsed.
Sources: DICOM PS3.5 7.1 (explicit and implicit VR), A.4 (encapsulated pixels), PS3.10 7.1 (meta group).
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import ImageReadError, ImageTooLargeError, UnsupportedImageError
from .dicom_header import TAGS, ImagePixel
from .jpeg_2000 import SIGNATURE, START

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED)
JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LOSSLESS_1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_LS_LOSSY = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
_FAMILIES = (  # syntaxes whose streams the same decoders read: the declared one stands if it is of the stream's family
    (JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_1),
    (JPEG_LS, JPEG_LS_LOSSY),
    (JPEG_2000, *(f"1.2.840.10008.1.2.4.{end}" for end in (90, 92, 93, 201, 202, 203))),
    (RLE,),
)
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
PIXEL_DATA = 0x7FE00010


@dataclass
class DataSet:
    """What was read of a file.

    Attributes:
        elements: pydicom Dataset, only the elements this package reads. Its PixelData is there if it is encapsulated or
            big endian.
        stream: what ``pixels`` lie in.
        pixels: (start, length) in bytes of uncompressed little-endian pixels, which are still in the stream.
        syntax: UID of the transfer syntax that the data were found to have.
        declared: UID in the meta group; empty where there is none.
        differs: the meta group names another encoding than the data have.
    """

    elements: object
    stream: BinaryIO
    pixels: tuple[int, int] | None
    syntax: str
    declared: str
    differs: bool = False


def meta_group(data: bytes) -> tuple[str | None, int]:
    """The file meta group of a file's first bytes.

    Returns:
        (transfer syntax UID, "" where the group has none, None where there is no preamble either; where the data set
        begins).
    """
    preamble = data[128:132] == b"DICM"
    offset, syntax = (132 if preamble else 0), ""
    while data[offset : offset + 2] == b"\x02\0" and offset + 8 <= len(data):
        element, vr = struct.unpack_from("<H2s", data, offset + 2)
        if vr in _LONG and offset + 12 > len(data):
            break
        if vr in _LONG:
            start, length = offset + 12, struct.unpack_from("<I", data, offset + 8)[0]
        elif _is_vr(vr):
            start, length = offset + 8, struct.unpack_from("<H", data, offset + 6)[0]
        else:  # some writers encode the meta group as they do the data set
            start, length = offset + 8, struct.unpack_from("<I", data, offset + 4)[0]
        if element == 0x0010:
            syntax = data[start : start + length].decode("ascii", "replace").strip(" \0")
        offset = start + length
    return syntax or ("" if preamble else None), offset


def _is_vr(two: bytes) -> bool:
    return len(two) == 2 and all(65 <= letter <= 90 for letter in two)


def found_encoding(first: bytes, implicit: bool, little: bool) -> tuple[bool, bool]:
    """Whether a data set is in implicit VR, and in little endian, by its first 6 bytes.

    Args:
        first: tag, then the VR, or the two low bytes of a length (which would have to be some 16 KiB to look like one).
        implicit, little: what to believe of a data set that is too short.
    """
    if len(first) < 6:
        return implicit, little
    # the first group of a data set is low (0008 nearly always): its zero byte tells the order
    return not _is_vr(first[4:6]), struct.unpack("<H", first[:2])[0] <= struct.unpack(">H", first[:2])[0]


@functools.cache
def _tags() -> list:
    from pydicom.tag import Tag  # by number: pydicom would look the names up again for every file

    return [Tag(name) for name in TAGS]


def read_dataset(pydicom, path: str, stream: BinaryIO, head: bytes, limits, force: bool) -> DataSet:
    """Parse a file (open, and its first bytes).

    Raises:
        UnsupportedImageError: no transfer syntax (without ``force``), or floating-point pixels.
        ImageTooLargeError: a deflated data set is larger than the caps allow.
        ImageReadError: the file is truncated.
    """
    declared, start = meta_group(head)
    if not declared and not force:
        raise UnsupportedImageError(
            path,
            "names no transfer syntax" + (" and has no DICOM preamble" if declared is None else "") + "; pass "
            "force=True to try it as little endian",
        )
    declared = declared or ""
    stream.seek(start)
    first = stream.read(6)
    stream.seek(start)
    deflated = declared == DEFLATED and not (_is_vr(first[4:6]) and first[:1] == b"\x08")
    if deflated:
        stream = io.BytesIO(_inflate(path, stream.read(), limits))
        first = stream.getvalue()[:6]
    implicit, little = found_encoding(first, declared == IMPLICIT_LITTLE, declared != EXPLICIT_BIG)
    native = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    _pass_character_set(stream, implicit, "<" if little else ">")
    with _parsing(path):
        elements = pydicom.filereader.read_dataset(
            stream, implicit, little, stop_when=_at_pixels, specific_tags=_tags()
        )
    plain = DEFLATED if deflated and native == EXPLICIT_LITTLE else native
    found = DataSet(elements, stream, None, plain, declared)
    element = _pixel_element(path, stream, implicit, little)
    if element is not None:
        _place_pixels(path, found, little, *element)
    expected = declared if declared in (IMPLICIT_LITTLE, EXPLICIT_BIG) else EXPLICIT_LITTLE
    found.differs = declared != "" and (native != expected or found.syntax != declared)
    elements.file_meta = pydicom.dataset.FileMetaDataset()
    elements.file_meta.TransferSyntaxUID = pydicom.uid.UID(found.syntax)
    return found


@contextmanager
def _parsing(path: str) -> Iterator[None]:
    """Name the file where pydicom stumbles over the structure of its header."""
    try:
        yield
    except struct.error:  # no EOFError: where the four bytes of a long length belong
        raise ImageReadError(path, "ends within an element of its header: it is truncated or damaged") from None
    except RecursionError:
        raise ImageReadError(path, "the sequences of its header lie in each other without end: it is damaged") from None
    except OSError as error:
        if error.errno is not None:  # of the disk; pydicom says by one without that a sequence has no items
            raise
        raise ImageReadError(path, "a sequence of its header is damaged, or cut off") from None


def _pass_character_set(stream: BinaryIO, implicit: bool, order: str) -> None:
    """Go past a Specific Character Set that is none: pydicom looks it up while it parses, and stumbles."""
    start = stream.tell()
    while len(header := stream.read(8)) == 8:
        group, element, vr, length = struct.unpack(order + "HH2sH", header)
        if implicit:
            length = struct.unpack(order + "I", header[4:])[0]
        elif vr in _LONG:
            length = struct.unpack(order + "I", stream.read(4).ljust(4, b"\0"))[0]
        if (group, element) > (0x0008, 0x0005):
            break
        if (group, element) == (0x0008, 0x0005):
            value = stream.read(min(length, 1024)).rstrip(b" \0")
            if (implicit or vr == b"CS") and value.isascii() and b"\0" not in value:
                break
            stream.seek(length - min(length, 1024), io.SEEK_CUR)
            return
        stream.seek(length, io.SEEK_CUR)
    stream.seek(start)


def _place_pixels(path: str, found: DataSet, little: bool, at: int, length: int, vr: str) -> None:
    """Uncompressed little-endian pixels stay in the stream, all others go into the data set."""
    stream, declared = found.stream, found.declared
    stream.seek(at)
    compressed = declared not in (*NATIVE, "")
    if length == _UNDEFINED or (compressed and stream.read(4) == _ITEM):
        stream.seek(at)
        value, first = _fragments(path, stream.read())
        found.syntax = stream_syntax(first, declared)
        found.elements.add_new(PIXEL_DATA, "OB", value)
        found.elements[PIXEL_DATA].is_undefined_length = True
        return
    length = min(length, max(0, stream.seek(0, io.SEEK_END) - at))
    known = not compressed or any(declared in family for family in _FAMILIES)
    if little and known:
        found.pixels = (at, length)
        return
    stream.seek(at)
    found.elements.add_new(PIXEL_DATA, vr, stream.read(length))
    if not known:  # of a maker's own syntax nobody can say how its pixels lie
        found.syntax = declared


def _at_pixels(tag, vr: str | None, length: int) -> bool:
    return tag >= 0x7FE00008  # float, double float and integer pixels, and what may come after them


def _pixel_element(path: str, stream: BinaryIO, implicit: bool, little: bool) -> tuple[int, int, str] | None:
    """(start, length, VR) of the pixel data element at which the stream stands, if it is one."""
    order = "<" if little else ">"
    header = stream.read(8)
    if len(header) < 8:
        return None
    group, element = struct.unpack(order + "HH", header[:4])
    if group != 0x7FE0 or element > 0x0010:
        return None
    if element != 0x0010:
        raise UnsupportedImageError(path, "holds floating-point DICOM pixels; accepted: integers of 8 or 16 bits")
    if implicit:
        length = struct.unpack(order + "I", header[4:])[0]
    elif header[4:6] in _LONG or not _is_vr(header[4:6]):
        rest = stream.read(4)
        if len(rest) < 4:
            return None
        length = struct.unpack(order + "I", rest)[0]
    else:
        length = struct.unpack(order + "H", header[6:])[0]
    # bytes in words of big endian are swapped, bytes in bytes are not
    return stream.tell(), length, "OB" if header[4:6] == b"OB" and not implicit else "OW"


def _items(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each item of encapsulated pixels; the first is the table of offsets (PS3.5 A.4)."""
    end = 0
    while data[end : end + 4] == _ITEM and end + 8 <= len(data):
        start = end + 8
        end = start + struct.unpack_from("<I", data, start - 4)[0]
        yield start, end


def _fragments(path: str, data: bytes) -> tuple[bytes, bytes]:
    """Encapsulated pixels up to their end (PS3.5 A.4), and the beginning of the first fragment."""
    items = list(_items(data))
    end = items[-1][1] if items else 0
    if data[end : end + 4] != _END:
        raise ImageReadError(path, "its compressed pixels have no end: the file is truncated")
    return data[: end + 8], data[items[1][0] : min(items[1][1], items[1][0] + 4096)] if len(items) > 1 else b""


def stream_syntax(first: bytes, declared: str) -> str:
    """The transfer syntax of a compressed stream by its first bytes; the declared one where these do not contradict it.

    Args:
        first: the first fragment's beginning.
        declared: transfer syntax UID of the meta group.
    """
    if first[:2] == b"\xff\xd8":
        found = {0xC0: JPEG_BASELINE, 0xC3: JPEG_LOSSLESS, 0xF7: JPEG_LS}.get(_jpeg_frame(first), JPEG_EXTENDED)
    elif first.startswith((START, SIGNATURE)):  # bare, or in a JP2 file
        found = JPEG_2000
    elif len(first) >= 64 and 1 <= first[0] <= 15 and first[1:8] == b"\0\0\0\x40\0\0\0":
        found = RLE
    else:
        return declared
    if declared not in NATIVE and not any(declared in family for family in _FAMILIES):
        return declared
    return declared if any({declared, found} <= set(family) for family in _FAMILIES) else found


def _jpeg_frame(first: bytes) -> int:
    """The marker that begins a JPEG stream's frame, which names its process; 0 if it is further on than ``first``."""
    offset = 2
    while offset + 4 <= len(first) and first[offset] == 0xFF:
        marker = first[offset + 1]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return marker
        offset += 2 + struct.unpack_from(">H", first, offset + 2)[0]
    return 0


def check_length(path: str, dataset, declared: ImagePixel) -> None:
    """Refuse PixelData that hold fewer frames, or fewer bytes, than the image pixel module declares."""
    element = dataset["PixelData"]
    frames, held = declared.frames, len(element.value)
    if element.is_undefined_length:
        held = sum(1 for _ in _items(element.value)) - 1
        if held < frames:
            raise ImageReadError(path, f"holds {held} compressed frame(s) where {frames} belong: it is truncated")
        return
    needed = declared.rows * declared.columns * declared.samples * declared.allocated // 8 * frames
    subsampled = dataset.PhotometricInterpretation == "YBR_FULL_422"
    if subsampled and held >= needed:
        raise ImageReadError(path, "says YBR_FULL_422 of pixels that are not subsampled: their colours are unknown")
    needed = needed * 2 // 3 if subsampled else needed
    if held < needed:
        raise ImageReadError(path, f"holds {held} bytes of pixels where {needed} belong: it is truncated")


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """Name the file where pydicom or a plugin cannot decode it; Rust's panics are among what they raise."""
    try:
        yield
    except BaseException as error:
        failure = type(error).__name__
        if type(error) not in (ValueError, RuntimeError) and failure != "PanicException":
            raise
    else:
        return
    raise ImageReadError(path, f"its pixels are damaged, or none that its header can be about (decoding: {failure})")


def _inflate(path: str, data: bytes, limits) -> bytes:
    """A deflated data set, inflated no further than the caps allow."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, limits.max_bytes)
    except zlib.error:
        raise ImageReadError(path, "the deflated data set is damaged") from None
    if inflater.unconsumed_tail:
        raise ImageTooLargeError(
            path,
            f"the deflated data set has more than {limits.max_bytes} bytes; if this is expected, pass a larger "
            "limits=Limits(max_bytes=...)",
        )
    if not inflater.eof:
        raise ImageReadError(path, "the deflated data set ends too early: the file is truncated")
    return plain
