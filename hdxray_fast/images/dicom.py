"""DICOM files to grey stored pixels; pydicom is imported only when needed.

How a data set is encoded lives in ``dicom_dataset.py``, what of it has to be put right in ``dicom_elements.py``, what
the header means in ``dicom_header.py``, frames that need a decoder in ``dicom_frames.py``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import BinaryIO

import cv2
import numpy as np

from ..errors import ImageReadError, MissingDependencyError, UnsupportedImageError
from ..extras import install
from .codestream import Codestream
from .dicom_dataset import check_length, decoding, read_dataset
from .dicom_elements import repair
from .dicom_frames import decoded_frame
from .dicom_header import PHOTOMETRIC, ImagePixel, check_modality, image_pixel, set_tone, spacing, text
from .palette import palette_to_luma
from .quiet import no_warnings
from .raster import check_caps, check_frame
from .stored_bits import Reading, settle
from .tone import Grey, scratch


def _pydicom():
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        pydicom = None
    if pydicom is None:
        raise MissingDependencyError(f"reading DICOM needs pydicom 3 or later: {install('dicom')}")
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
        with no_warnings():
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
    with _silence():
        return _decode(pydicom, path, stream, head, frame, limits, any_modality, for_processing, force)


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
    found = read_dataset(pydicom, path, stream, head, limits, force)
    dataset, syntax = found.elements, found.syntax
    native = None if found.pixels is None else _NativePixels(found.stream, *found.pixels)
    repairs, assumed = repair(dataset), []
    flags = repairs.flags()
    if found.differs:
        flags.append("transfer_syntax_differs")
    about = check_modality(path, dataset, any_modality, flags)
    declared = image_pixel(path, dataset, assumed)
    if assumed:
        flags.append("image_pixel_assumed")
    check_caps(path, declared.columns, declared.rows, declared.samples, declared.allocated, declared.frames, limits)
    chosen = check_frame(path, declared.frames, frame)
    raw_signal = text(dataset, "PresentationIntentType") == "FOR PROCESSING"
    if raw_signal and for_processing == "refuse":
        raise UnsupportedImageError(
            path,
            "holds raw detector data (FOR PROCESSING); give the FOR PRESENTATION image, or pass for_processing='log'",
        )
    photometric = text(dataset, "PhotometricInterpretation")
    pixels, codestream = _pixels(pydicom, path, dataset, native, syntax, declared, chosen, flags)
    grey = _grey(path, dataset, photometric, pixels, codestream, declared, flags)
    if grey.display:
        flags.append("colour_to_luma")
    else:
        set_tone(grey, dataset, raw_signal, flags)
        if "RescaleSlope" in repairs.unusable:
            flags.append("rescale_slope_unusable")
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
            "signed": grey.signed,
            "frames": declared.frames,
            "frame": chosen,
        },
        "pixel_spacing": list(grey.spacing) if grey.spacing else None,
    }
    elements = {"repaired": repairs.read, "unusable": repairs.unusable, "assumed": assumed}
    if any(elements.values()):
        grey.provenance["elements"] = {what: sorted(set(names)) for what, names in elements.items() if names}
    return grey


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


def _pixels(
    pydicom, path, dataset, native, syntax, declared: ImagePixel, frame: int, flags: list[str]
) -> tuple[np.ndarray, Codestream | None]:
    """One frame ([H, W] patterns or [H, W, 3] RGB, uint8 | uint16), and what its codestream says if it has one."""
    if native is not None and declared.samples == 1:
        pixels, codestream = native.frame(path, declared, frame), None
    else:
        if native is not None:
            dataset.add_new("PixelData", "OW" if declared.allocated > 8 else "OB", native.all())
        if not dataset.get("PixelData"):
            raise ImageReadError(path, "has no pixel data: the file is truncated, or holds no image")
        check_length(path, dataset, declared)
        with decoding(path):
            pixels, codestream = decoded_frame(pydicom, path, dataset, syntax, declared, frame, flags)
    if pixels.dtype.itemsize > 2:
        raise UnsupportedImageError(path, f"decodes to {pixels.dtype} pixels; accepted: 8 or 16 bits")
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")).view(f"u{pixels.dtype.itemsize}"), codestream


def _grey(
    path, dataset, photometric: str, pixels, codestream: Codestream | None, declared: ImagePixel, flags: list[str]
) -> Grey:
    """Stored pixels ([H, W] patterns or [H, W, 3] RGB) and where in them their values lie; colours become luma."""
    if declared.samples > 1:
        differs = codestream is not None and codestream.bits != declared.stored
        flags += ["codestream_bits_differ"] if differs else []
        bits = max(declared.stored, codestream.bits) if codestream else declared.stored
        high_bit = declared.high_bit if bits == declared.stored else None
        return Grey(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), bits, high_bit, declared.signed, display=True)
    reading = Reading(declared.stored, declared.high_bit, declared.signed)
    if codestream:
        pixels, reading = settle(pixels, codestream, declared, flags)
    if photometric == "PALETTE COLOR":
        luma, bits = palette_to_luma(path, dataset, pixels, *astuple(reading), flags)
        return Grey(luma, bits, display=True)
    return Grey(pixels, reading.bits, reading.high_bit, reading.signed)
