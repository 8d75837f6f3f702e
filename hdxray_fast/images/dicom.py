"""DICOM files to grey stored pixels; pydicom is imported only when needed.

What the header means lives in ``dicom_header.py``, compressed frames in ``codestream.py``.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np

from ..errors import HDXrayError, ImageReadError, ImageTooLargeError, MissingDependencyError, UnsupportedImageError
from .codestream import inspect_codestream
from .dicom_header import PHOTOMETRIC, TAGS, ImagePixel, check_modality, image_pixel, set_tone, spacing, text
from .raster import check_caps, check_frame
from .sniff import DamagedFile
from .tone import Grey, scratch

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
RLE = "1.2.840.10008.1.2.5"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE_LITTLE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED)


def _pydicom():
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        pydicom = None
    if pydicom is None:
        raise MissingDependencyError('reading DICOM needs pydicom 3 or later: pip install "hdxray-fast[dicom]"')
    return pydicom


_QUIET = threading.local()


def _quiet(record: logging.LogRecord) -> bool:
    return not getattr(_QUIET, "active", False)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep pydicom's log and warnings silent while this thread decodes: they quote values from the file."""
    logger = logging.getLogger("pydicom")
    if _quiet not in logger.filters:
        logger.addFilter(_quiet)
    _QUIET.active = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _QUIET.active = False


def decode_dicom(
    path: str,
    stream: BinaryIO,
    head: bytes,
    frame: int | None,
    limits,
    any_modality: bool,
    for_processing: str,
    force: bool,
) -> Grey:
    """A DICOM file (open, and its first bytes) to grey stored pixels with their modality, VOI, polarity and padding.

    The pixels may lie in this thread's buffer: use them up before the next call.
    """
    pydicom = _pydicom()
    try:
        with _silence():
            return _decode(pydicom, path, stream, head, frame, limits, any_modality, for_processing, force)
    except (HDXrayError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # pydicom and its plugins raise anything (Rust panics are no Exception), and their
        failure = type(error).__name__  # texts may quote the file
    raise ImageReadError(path, f"the DICOM data are damaged or truncated (decoding stopped with {failure})")


def read_patient_id(path: str) -> str:
    """PatientID of a DICOM file; empty where there is none that can be read. To be hashed, never to be shown."""
    try:
        with _silence():
            header = _pydicom().dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(header.get("PatientID") or "")
    except Exception:  # pydicom raises anything
        return ""


def read_body_part(path: str) -> str:
    """BodyPartExamined of a DICOM file as it stands there, upper case: to be counted, shown only if many share it."""
    try:
        with _silence():
            header = _pydicom().dcmread(path, stop_before_pixels=True, specific_tags=["BodyPartExamined"])
            return text(header, "BodyPartExamined")[:16]
    except Exception:  # pydicom raises anything
        return ""


def _decode(pydicom, path, stream, head, frame, limits, any_modality, for_processing, force) -> Grey:
    dataset, syntax, native = _read_dataset(pydicom, path, stream, head, limits, force)
    flags: list[str] = []
    about = check_modality(path, dataset, any_modality, flags)
    declared = image_pixel(path, dataset)
    check_caps(path, declared.columns, declared.rows, declared.samples, declared.allocated, declared.frames, limits)
    chosen = check_frame(path, declared.frames, frame)
    raw_signal = text(dataset, "PresentationIntentType") == "FOR PROCESSING"
    if raw_signal and for_processing == "refuse":
        raise UnsupportedImageError(
            path,
            "holds raw detector data (FOR PROCESSING); give the FOR PRESENTATION image, or pass for_processing='log'",
        )
    pixels, precision = _pixels(pydicom, path, dataset, native, syntax, declared, chosen)
    if precision and precision != declared.stored:
        flags.append("codestream_bits_differ")
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        grey = Grey(pixels, 8 * pixels.dtype.itemsize, display=True)
    elif precision and precision > declared.stored:  # the codestream is what was measured; the header lags behind it
        grey = Grey(pixels, precision, signed=declared.signed, display=declared.samples > 1)
    else:
        grey = Grey(pixels, declared.stored, declared.high_bit, declared.signed, display=declared.samples > 1)
    if grey.display or photometric == "PALETTE COLOR":
        flags.append("colour_to_luma")
    else:
        set_tone(grey, dataset, raw_signal, flags)
    grey.spacing = spacing(dataset, flags)
    grey.flags = flags
    uid = pydicom.uid.UID(syntax)
    grey.provenance = {
        "format": "dicom",
        "decoder": f"pydicom {pydicom.__version__}",
        "transfer_syntax": uid.name if uid in pydicom.uid.UID_dictionary else "unknown",
        **about,
        "photometric": photometric if photometric in PHOTOMETRIC else "unknown",
        "presentation_intent": "FOR PROCESSING" if raw_signal else "FOR PRESENTATION",
        "stored": {
            "samples": declared.samples,
            "bits": grey.bits,
            "signed": declared.signed,
            "frames": declared.frames,
            "frame": chosen,
        },
        "pixel_spacing": list(grey.spacing) if grey.spacing else None,
    }
    return grey


def meta_syntax(data: bytes) -> str | None:
    """Transfer syntax UID from the file meta group; "" where the group has none, None where there is no preamble."""
    if data[128:132] != b"DICM":
        return None
    offset = 132
    while data[offset : offset + 2] == b"\x02\0" and offset + 8 <= len(data):
        element, vr = struct.unpack_from("<H2s", data, offset + 2)
        long = vr in (b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR")
        if long and offset + 12 > len(data):
            break
        start = offset + (12 if long else 8)
        length = struct.unpack_from("<I" if long else "<H", data, offset + (8 if long else 6))[0]
        if element == 0x0010:
            return data[start : start + length].decode("ascii", "replace").strip(" \0")
        offset = start + length
    return ""


@functools.cache
def _tags() -> list:
    from pydicom.tag import Tag  # by number: pydicom would look the names up again for every file

    return [Tag(name) for name in TAGS]


def _read_dataset(pydicom, path, stream, head, limits, force) -> tuple:
    """The data set (only the elements this package reads), its transfer syntax UID, and where native pixels lie."""
    syntax = meta_syntax(head)
    if not syntax and not force:
        raise UnsupportedImageError(
            path,
            "names no transfer syntax" + (" and has no DICOM preamble" if syntax is None else "") + "; pass "
            "force=True to try it as little endian",
        )
    stream.seek(0)
    if syntax == DEFLATED:
        return _inflate(pydicom, path, stream.read(), limits), syntax, None
    native = syntax in NATIVE_LITTLE
    dataset = pydicom.dcmread(stream, force=force, specific_tags=_tags(), stop_before_pixels=native)
    if native:
        return dataset, syntax, _pixel_element(path, stream, explicit=syntax == EXPLICIT_LITTLE)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax:  # forced: pydicom has guessed the encoding of the elements, the pixels follow it
        implicit, little = dataset.original_encoding
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return dataset, syntax, None


@dataclass
class _NativePixels:
    """Uncompressed little-endian pixel data that are still in the file."""

    stream: BinaryIO
    start: int
    length: int

    def frame(self, path: str, declared: ImagePixel, frame: int) -> np.ndarray:
        """[H, W] uint8 | uint16, read straight into this thread's buffer."""
        size = declared.rows * declared.columns * declared.allocated // 8
        if self.length < size * declared.frames:
            raise ImageReadError(
                path, f"holds {self.length} bytes of pixels where {size * declared.frames} belong: it is truncated"
            )
        pixels = scratch("stored", (declared.rows, declared.columns), np.dtype(f"<u{declared.allocated // 8}"))
        self.stream.seek(self.start + size * frame)
        if self.stream.readinto(memoryview(pixels).cast("B")) != size:
            raise ImageReadError(path, "ends before its last pixel: it is truncated")
        return pixels

    def all(self) -> bytes:
        self.stream.seek(self.start)
        return self.stream.read(self.length)


def _pixel_element(path: str, stream: BinaryIO, explicit: bool) -> _NativePixels | None:
    """The pixel data element at which the stream stands, if it is one."""
    tag = stream.read(4)
    if tag in (b"\xe0\x7f\x08\0", b"\xe0\x7f\x09\0"):
        raise UnsupportedImageError(path, "holds floating-point DICOM pixels; accepted: integers of 8 or 16 bits")
    header = stream.read(8 if explicit else 4)
    if tag != b"\xe0\x7f\x10\0" or len(header) < (8 if explicit else 4):
        return None
    start = stream.tell()
    held = max(0, stream.seek(0, io.SEEK_END) - start)
    return _NativePixels(stream, start, min(held, struct.unpack("<I", header[-4:])[0]))


def _inflate(pydicom, path, data, limits):
    """A deflated data set, inflated no further than the caps allow."""
    length = struct.unpack_from("<I", data, 140)[0]  # (0002,0000), always the first element of the meta group
    start = 144 + length
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data[start:], limits.max_bytes)
    if inflater.unconsumed_tail:
        raise ImageTooLargeError(
            path,
            f"the deflated data set has more than {limits.max_bytes} bytes; if this is expected, pass a larger "
            "limits=Limits(max_bytes=...)",
        )
    if not inflater.eof:
        raise ImageReadError(path, "the deflated data set ends too early: the file is truncated")
    dataset = pydicom.filereader.read_dataset(
        io.BytesIO(plain),
        is_implicit_VR=False,
        is_little_endian=True,
        specific_tags=_tags(),
    )
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DEFLATED
    return dataset


def _pixels(pydicom, path, dataset, native, syntax, declared: ImagePixel, frame: int) -> tuple[np.ndarray, int | None]:
    """One frame's stored grey pixels ([H, W] uint8 | uint16 patterns) and the codestream's precision if it has one."""
    if native is not None and declared.samples == 1:
        pixels, precision = native.frame(path, declared, frame), None
    else:
        if native is not None:
            dataset.add_new("PixelData", "OW" if declared.allocated > 8 else "OB", native.all())
        if not dataset.get("PixelData"):
            raise ImageReadError(path, "has no pixel data: the file is truncated, or holds no image")
        pixels, precision = _decoded_frame(pydicom, path, dataset, syntax, declared, frame)
    if text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, dataset)[..., :3]
    if pixels.dtype.itemsize > 2:
        raise UnsupportedImageError(path, f"decodes to {pixels.dtype} pixels; accepted: 8 or 16 bits")
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")).view(f"u{pixels.dtype.itemsize}")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return pixels, precision


def _decoded_frame(pydicom, path, dataset, syntax, declared: ImagePixel, frame: int) -> tuple[np.ndarray, int | None]:
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None:
        raise UnsupportedImageError(path, "has a transfer syntax that pydicom does not decode; convert the file first")
    if not decoder.is_available:
        raise MissingDependencyError(
            f'{path}: {decoder.UID.name} needs the plugins of pylibjpeg: pip install "hdxray-fast[dicom]"'
        )
    codestream = None
    if decoder.is_encapsulated:
        try:
            encoded = pydicom.encaps.get_frame(dataset.PixelData, frame, number_of_frames=declared.frames)
            planes = declared.samples * declared.allocated // 8
            codestream = inspect_codestream(encoded, planes, rle=syntax == RLE)
        except DamagedFile as damage:
            codestream, reason = None, str(damage)
        else:
            reason = ""
        if reason:
            raise ImageReadError(path, reason)
    size = (declared.columns, declared.rows, declared.samples)
    if codestream and (codestream.width, codestream.height, codestream.samples) != size:
        raise ImageReadError(
            path,
            "its header declares {} x {} pixels of {} samples and its codestream ".format(*size)
            + f"{codestream.width} x {codestream.height} of {codestream.samples}: the file is damaged",
        )
    # bits above BitsStored are masked later, by the same table for every encoding
    pixels, _ = decoder.as_array(dataset, index=frame, correct_unused_bits=False)
    return pixels, codestream.bits if codestream else None
