"""DICOM files to grey stored pixels and what their header says about them; pydicom is imported only when needed.

Only the elements named in ``_TAGS`` are ever parsed: names, ids and dates of patients are skipped in the file, so that
they can reach neither the provenance nor an error's text.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib

import numpy as np

from .errors import HDXrayError, ImageReadError, ImageTooLargeError, MissingDependencyError, UnsupportedImageError
from .raster import check_caps, check_frame
from .tone import WINDOW_FUNCTIONS, Grey, Table, Window

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
NATIVE_LITTLE = (IMPLICIT_LITTLE, "1.2.840.10008.1.2.1", DEFLATED)
RADIOGRAPHY = ("CR", "DX", "DR", "RG", "XR", "RX")  # read as they are
UNCERTAIN = ("", "OT", "SC", "HC", "RF", "DF")  # secondary captures, scanned film, missing: read and flagged
CHEST = ("CHEST", "THORAX", "LUNG", "TORAX", "RIB", "STERNUM", "CLAVICLE", "BREAST", "HEART", "TSPINE")
LATERAL = ("LL", "RL", "LAT", "LATERAL", "LLD", "RLD")
FRONTAL = ("AP", "PA", "FRONTAL", "AP AXIAL", "PA AXIAL", "AP_SUPINE", "AP SUPINE")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")

_TAGS = (
    "Modality SOPClassUID PresentationIntentType BodyPartExamined ViewPosition Laterality ImageLaterality "
    "PatientOrientation SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit PixelSpacing "
    "ImagerPixelSpacing PixelAspectRatio PixelIntensityRelationship PixelIntensityRelationshipSign RescaleSlope "
    "RescaleIntercept ModalityLUTSequence VOILUTSequence WindowCenter WindowWidth VOILUTFunction PresentationLUTShape "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData PixelData "
    "FloatPixelData DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths "
    "BurnedInAnnotation SmallestImagePixelValue"
).split()


def _pydicom():
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        pydicom = None
    if pydicom is None:
        raise MissingDependencyError('reading DICOM needs pydicom 3 or later: pip install "hdxray_fast[dicom]"')
    return pydicom


def decode_dicom(
    path: str, data: bytes, frame: int | None, limits, any_modality: bool, for_processing: str, force: bool
) -> Grey:
    """A DICOM file's bytes to grey stored pixels with their modality, VOI, polarity and padding."""
    pydicom = _pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values from the file
        try:
            return _decode(pydicom, path, data, frame, limits, any_modality, for_processing, force)
        except HDXrayError:
            raise
        except Exception as error:  # pydicom and its plugins raise anything, and their texts may quote the file
            failure = type(error).__name__
    raise ImageReadError(path, f"the DICOM data are damaged or truncated (decoding stopped with {failure})")


def _decode(pydicom, path, data, frame, limits, any_modality, for_processing, force) -> Grey:
    syntax = meta_syntax(data)
    if syntax == "" and not force:
        raise UnsupportedImageError(
            path, "the DICOM file names no transfer syntax; pass force=True to try it as implicit little endian"
        )
    dataset = _read_dataset(pydicom, path, data, syntax, limits, force)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) or IMPLICIT_LITTLE
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    flags: list[str] = []
    about = _check_modality(path, dataset, any_modality, flags)
    rows, columns, samples, allocated, stored, high_bit, signed, frames = _image_pixel(path, dataset)
    check_caps(path, columns, rows, samples, allocated, frames, limits)
    chosen = check_frame(path, frames, frame)
    raw_processing = _text(dataset, "PresentationIntentType") == "FOR PROCESSING"
    if raw_processing and for_processing == "refuse":
        raise UnsupportedImageError(
            path,
            "holds raw detector data (FOR PROCESSING); give the FOR PRESENTATION image, or pass for_processing='log'",
        )
    pixels, precision = _pixels(pydicom, path, dataset, data, syntax, chosen, frames, limits)
    photometric = _text(dataset, "PhotometricInterpretation")
    if samples > 1 or photometric == "PALETTE COLOR":
        flags.append("colour_to_luma")
        grey = Grey(pixels, 8 * pixels.dtype.itemsize, display=True)
    else:
        if precision and precision > stored:  # the codestream is what was measured; the header lags behind it
            flags.append("codestream_bits_differ")
            stored, high_bit = precision, precision - 1
        elif precision and precision != stored:
            flags.append("codestream_bits_differ")
        grey = Grey(pixels, stored, high_bit, signed)
        _set_tone(grey, dataset, raw_processing, flags)
    grey.spacing = _spacing(dataset, flags)
    grey.flags[:0] = flags
    grey.provenance = {
        "format": "dicom",
        "decoder": f"pydicom {pydicom.__version__}",
        "transfer_syntax": pydicom.uid.UID(syntax).name if pydicom.uid.UID(syntax).is_transfer_syntax else "unknown",
        **about,
        "photometric": photometric if photometric in ("MONOCHROME1", "MONOCHROME2", *_COLOUR) else "unknown",
        "stored": {"samples": samples, "bits": stored, "signed": signed, "frames": frames, "frame": chosen},
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


def _read_dataset(pydicom, path, data, syntax, limits, force):
    if syntax == DEFLATED:
        return _inflate(pydicom, path, data, limits)
    stream = io.BytesIO(data)
    if syntax is None and not force:
        raise UnsupportedImageError(path, "has no DICOM preamble; pass force=True to try it")
    return pydicom.dcmread(stream, force=force, specific_tags=list(_TAGS))


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
        io.BytesIO(plain), is_implicit_VR=False, is_little_endian=True, specific_tags=_tag_numbers(pydicom)
    )
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DEFLATED
    return dataset


def _tag_numbers(pydicom) -> list:
    return [pydicom.tag.Tag(name) for name in _TAGS]


def _text(dataset, name: str) -> str:
    value = dataset.get(name)
    if value is None or isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        return ""
    return str(value).strip().upper()


def _number(dataset, name: str, default: float | None = None) -> float | None:
    value = dataset.get(name)
    if type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if math.isfinite(number) else default


def _check_modality(path: str, dataset, any_modality: bool, flags: list[str]) -> dict:
    """Refuse what is no radiograph; describe the rest in words from closed lists, so that no free text gets through."""
    modality = _text(dataset, "Modality")
    known = len(modality) == 2 and modality.isalpha()
    if modality not in RADIOGRAPHY:
        if modality not in UNCERTAIN and not any_modality:
            raise UnsupportedImageError(
                path,
                f"has modality {modality if known else 'unknown'}; accepted: projection radiographs "
                f"({', '.join(RADIOGRAPHY)}), or anything with any_modality=True",
            )
        flags.append("modality_uncertain" if modality in UNCERTAIN else "modality_not_radiography")
    part, view = _text(dataset, "BodyPartExamined"), _text(dataset, "ViewPosition")
    if part and not any(word in part for word in CHEST):
        flags.append("body_part_not_chest")
    if view in LATERAL:
        flags.append("lateral_view")
    if _text(dataset, "BurnedInAnnotation") == "YES":
        flags.append("burned_in_annotation")
    orientation = dataset.get("PatientOrientation")
    axes = [str(axis).upper() for axis in orientation] if type(orientation).__name__ == "MultiValue" else []
    side = _text(dataset, "ImageLaterality") or _text(dataset, "Laterality")
    if axes and axes[0][:1] == "R":
        flags.append("patient_right_is_image_right")
    return {
        "modality": modality if known else "",
        "body_part": "" if not part else next((word for word in CHEST if word in part), "other"),
        "view": view if view in LATERAL + FRONTAL else "other" if view else "",
        "laterality": side if side in ("L", "R", "U", "B") else "",
        "patient_orientation": axes if len(axes) == 2 and all(set(axis) <= set("ALPRHF") for axis in axes) else [],
    }


def _image_pixel(path: str, dataset) -> tuple:
    """The image pixel module's numbers, checked against each other."""
    integers = {}
    for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        default = {"SamplesPerPixel": 1, "PixelRepresentation": 0}.get(name)
        value = _number(dataset, name, default)
        integers[name] = None if value is None else int(value)
    if dataset.get("FloatPixelData") is not None or dataset.get("DoubleFloatPixelData") is not None:
        raise UnsupportedImageError(path, "holds floating-point DICOM pixels; accepted: integers of 8 or 16 bits")
    if integers["Rows"] is None or integers["Columns"] is None or integers["BitsAllocated"] is None:
        raise UnsupportedImageError(path, "is a DICOM file without an image (no Rows, Columns or BitsAllocated)")
    rows, columns, samples, allocated = (
        integers[name] for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    if allocated not in (8, 16):
        raise UnsupportedImageError(path, f"has BitsAllocated {allocated}; accepted: 8 or 16")
    if samples not in (1, 3):
        raise UnsupportedImageError(path, f"has SamplesPerPixel {samples}; accepted: 1 or 3")
    stored = allocated if integers["BitsStored"] is None else integers["BitsStored"]
    high_bit = stored - 1 if integers["HighBit"] is None else integers["HighBit"]
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise ImageReadError(
            path, f"contradicts itself: BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit}"
        )
    frames = _number(dataset, "NumberOfFrames", 1.0)
    return (
        rows,
        columns,
        samples,
        allocated,
        stored,
        high_bit,
        integers["PixelRepresentation"] == 1,
        max(1, int(frames)),
    )


def _pixels(pydicom, path, dataset, data, syntax, frame, frames, limits) -> tuple[np.ndarray, int | None]:
    """One frame's stored grey pixels ([H, W] uint8 | uint16 patterns) and the codestream's precision if it has one."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    samples, allocated = int(dataset.get("SamplesPerPixel", 1) or 1), int(dataset.BitsAllocated)
    if dataset.get("PixelData") is None:
        raise ImageReadError(path, "has no pixel data: the file is truncated, or holds no image")
    palette = _text(dataset, "PhotometricInterpretation") == "PALETTE COLOR"
    if syntax in NATIVE_LITTLE and samples == 1:
        size = rows * columns * allocated // 8
        if len(dataset.PixelData) < size * frames:
            raise ImageReadError(
                path, f"holds {len(dataset.PixelData)} bytes of pixels where {size * frames} belong: it is truncated"
            )
        pixels = np.frombuffer(dataset.PixelData, f"<u{allocated // 8}", count=rows * columns, offset=size * frame)
        pixels, precision = pixels.reshape(rows, columns), None
    else:
        try:
            decoder = pydicom.pixels.get_decoder(syntax)
        except NotImplementedError:
            decoder = None
        if decoder is None:
            raise UnsupportedImageError(path, "has a transfer syntax that pydicom does not decode")
        if not decoder.is_available:
            raise MissingDependencyError(
                f"{path}: the transfer syntax {decoder.UID.name} needs pylibjpeg's plugins: "
                'pip install "hdxray_fast[dicom]"'
            )
        pixels, _ = decoder.as_array(dataset, index=frame, correct_unused_bits=False)
        precision = None
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if palette:
        pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        import cv2

        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    if pixels.dtype.itemsize > 2:
        raise UnsupportedImageError(path, f"decodes to {pixels.dtype} pixels; accepted: 8 or 16 bits")
    return np.ascontiguousarray(pixels).view(f"u{pixels.dtype.itemsize}"), precision


def _set_tone(grey: Grey, dataset, raw_processing: bool, flags: list[str]) -> None:
    """Modality, VOI, polarity and padding from the header."""
    table = _table(dataset, "ModalityLUTSequence", grey.signed)
    if table:
        grey.modality_table = table[0]
    else:
        grey.slope, grey.intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
        if grey.slope == 0:
            grey.slope = 1.0
            flags.append("rescale_slope_unusable")
    grey.tables = _table(dataset, "VOILUTSequence", grey.signed or grey.intercept < 0)
    grey.windows = _windows(dataset)
    grey.invert = (
        _text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
        or _text(dataset, "PresentationLUTShape") == "INVERSE"
    )
    padding = _number(dataset, "PixelPaddingValue")
    if padding is not None:
        limit = _number(dataset, "PixelPaddingRangeLimit", padding)
        grey.padding = (_wrap(int(padding), grey), _wrap(int(limit), grey))
    if raw_processing:
        flags.append("for_processing")
        grey.use_voi = False
        grey.log = _text(dataset, "PixelIntensityRelationship") not in ("LOG", "DISP")
        sign = _number(dataset, "PixelIntensityRelationshipSign")
        # sign +1: values rise with the X-ray intensity, so that dense is low and the image must be inverted
        if sign in (1.0, -1.0) and (sign == 1.0) != grey.invert:
            flags.append("polarity_contradiction")


def _wrap(value: int, grey: Grey) -> int:
    """A padding value as the stored bits read it (files write signed padding as unsigned and the other way round)."""
    value &= 2**grey.bits - 1
    return value - 2**grey.bits if grey.signed and value >= 2 ** (grey.bits - 1) else value


def _windows(dataset) -> list[Window]:
    lists = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        if value is None or value == "":
            return []
        lists.append([float(v) for v in value] if type(value).__name__ == "MultiValue" else [float(value)])
    function = _text(dataset, "VOILUTFunction")
    function = function if function in WINDOW_FUNCTIONS else "LINEAR"
    return [Window(center, width, function) for center, width in zip(*lists, strict=False)]


def _table(dataset, name: str, signed: bool) -> list[Table]:
    tables = []
    for item in dataset.get(name) or []:
        descriptor, raw = item.get("LUTDescriptor"), item.get("LUTData")
        if descriptor is None or raw is None or len(descriptor) != 3:
            continue
        count, first, bits = (int(value) for value in descriptor)
        count = count & 0xFFFF or 65536  # 0 stands for 2**16; some writers store the count as signed
        if isinstance(raw, bytes):
            narrow = len(raw) < 2 * count  # 8-bit entries packed two to a word
            raw = np.frombuffer(raw, "u1" if narrow else "<u2", count=min(count, len(raw) // (1 if narrow else 2)))
        entries = (np.atleast_1d(np.asarray(raw, np.int64)) & 0xFFFF).astype(np.float64)[:count]
        first = first - 65536 if signed and first > 32767 else first
        if len(entries):
            tables.append(Table(first, entries, bits))
    return tables


def _spacing(dataset, flags: list[str]) -> tuple[float, float] | None:
    """Pixel size in millimetres (row step, column step); the detector's own spacing first."""
    for name in ("ImagerPixelSpacing", "PixelSpacing", "PixelAspectRatio"):
        value = dataset.get(name)
        if value is None or type(value).__name__ != "MultiValue" or len(value) != 2:
            continue
        try:
            row, column = float(value[0]), float(value[1])
        except (TypeError, ValueError):
            row = column = 0.0
        if row > 0 and column > 0 and math.isfinite(row) and math.isfinite(column) and 0.1 <= row / column <= 10:
            return (row, column)
        flags.append("pixel_spacing_unusable")
    return None
