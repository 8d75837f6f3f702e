"""One frame of a DICOM file through pydicom's decoders, as the frame itself says it is encoded.

The header describes the stored pixels; a codestream has its own size, depth, sign and colours, and decoders fill what
they are told to. Where the two disagree, the stream goes first (PS3.5 8.2.1) or the file is called damaged.
"""

from __future__ import annotations

import numpy as np

from ..errors import ImageReadError, MissingDependencyError, UnsupportedImageError
from ..extras import install
from .codestream import Codestream, inspect_codestream, looks_ycbcr
from .dicom_dataset import RLE
from .dicom_header import PHOTOMETRIC, ImagePixel, text
from .header import DamagedFile


def decoded_frame(
    pydicom, path, dataset, syntax, declared: ImagePixel, frame: int, flags: list[str]
) -> tuple[np.ndarray, Codestream | None]:
    """One frame, and what its codestream says of itself if it has one.

    Args:
        pydicom: the module.
        path: for errors.
        dataset: pydicom Dataset with its pixel data.
        syntax: transfer syntax UID.
        declared: the header's numbers.
        frame: which frame, from 0.
        flags: ``codestream_colour_differs`` is appended where it applies.

    Returns:
        ([H, W] integers of 8 or 16 bits, bit patterns that are still to be read as header or codestream say, or
        [H, W, 3] RGB; the codestream).

    Raises:
        UnsupportedImageError, MissingDependencyError: nothing here decodes this transfer syntax.
        ImageReadError: the frame is truncated, or contradicts the header in what a pixel is.
    """
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None:
        raise UnsupportedImageError(path, "has a transfer syntax that pydicom does not decode; convert the file first")
    if not decoder.is_available:
        raise MissingDependencyError(f"{path}: {decoder.UID.name} needs the plugins of pylibjpeg: {install('dicom')}")
    codestream = None
    if decoder.is_encapsulated:
        codestream = _codestream(pydicom, path, dataset, syntax, declared, frame)
    if declared.samples > 1:
        return _decoded_colour(pydicom, decoder, dataset, declared, codestream, frame, flags), codestream
    options = {"photometric_interpretation": "MONOCHROME2", "samples_per_pixel": 1, "pixel_representation": 0}
    if not decoder.is_encapsulated:
        # bits above BitsStored are masked later, by the same table for every encoding
        pixels, _ = decoder.as_array(dataset, index=frame, correct_unused_bits=False, **options)
        return pixels, None
    if codestream:  # decoded as what it says it is; how that is to be read is settled afterwards
        options["bits_allocated"], options["bits_stored"] = 8 if codestream.bits <= 8 else 16, codestream.bits
        options["pixel_representation"] = int(bool(codestream.signed))
    else:
        options["bits_stored"] = declared.stored
    decoded, _ = decoder.as_buffer(dataset, index=frame, **options)
    width = len(decoded) // (declared.rows * declared.columns)
    pixels = np.frombuffer(bytearray(decoded) if isinstance(decoded, bytes) else decoded, f"<u{width}")
    if width == 1 and declared.allocated == 16:
        signed = codestream is not None and codestream.signed
        pixels = pixels.view(np.int8).astype(np.int16).view(np.uint16) if signed else pixels.astype(np.uint16)
    return pixels.reshape(declared.rows, declared.columns), codestream


def _codestream(pydicom, path, dataset, syntax, declared: ImagePixel, frame: int) -> Codestream | None:
    """What a frame's codestream says of itself, held against the header; None where it says nothing."""
    try:
        encoded = pydicom.encaps.get_frame(dataset.PixelData, frame, number_of_frames=declared.frames)
        planes = declared.samples * declared.allocated // 8
        codestream, reason = inspect_codestream(encoded, planes, rle=syntax == RLE), ""
    except DamagedFile as damage:
        codestream, reason = None, str(damage)
    if reason:
        raise ImageReadError(path, reason)
    size = (declared.columns, declared.rows, declared.samples)
    if codestream and (codestream.width, codestream.height, codestream.samples) != size:
        raise ImageReadError(
            path,
            "its header declares {} x {} pixels of {} samples and its codestream ".format(*size)
            + f"{codestream.width} x {codestream.height} of {codestream.samples}: the file is damaged",
        )
    if codestream and codestream.bits > declared.allocated:
        raise ImageReadError(
            path,
            f"its header allocates {declared.allocated} bits to a sample and its codestream holds {codestream.bits}: "
            "the file is damaged",
        )
    return codestream


def _decoded_colour(
    pydicom, decoder, dataset, declared: ImagePixel, codestream: Codestream | None, frame: int, flags: list[str]
) -> np.ndarray:
    """One frame as RGB, [H, W, 3]; what a codestream says of its colours goes before the header (PS3.5 8.2.1)."""
    photometric = text(dataset, "PhotometricInterpretation")
    options = {"correct_unused_bits": False}
    if photometric not in PHOTOMETRIC:
        options["photometric_interpretation"] = "RGB"
    if codestream is None or not (codestream.colour or codestream.colour_open):
        return decoder.as_array(dataset, index=frame, **options)[0]
    samples, _ = decoder.as_array(dataset, index=frame, raw=True, **options)
    header = photometric.startswith("YBR_FULL")
    ycbcr = codestream.colour == "ycbcr"
    if codestream.colour_open:
        ycbcr = looks_ycbcr(samples, otherwise=ycbcr or header)
    if ycbcr != header and photometric in PHOTOMETRIC:
        flags.append("codestream_colour_differs")
    return pydicom.pixels.convert_color_space(samples, "YBR_FULL", "RGB") if ycbcr else samples
