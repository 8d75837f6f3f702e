"""What a DICOM header says about a radiograph: fitness, geometry, tone. Pydicom itself is not imported here.

Only the elements named in ``TAGS`` are ever parsed: names, ids and dates of patients are skipped in the file, so that
they can reach neither the provenance nor an error's text. What is recorded in words comes from closed lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ImageReadError, OtherModalityError, UnsupportedImageError
from . import view
from .tone import Grey, padding_range
from .voi_lut import read_tables, read_windows

RADIOGRAPHY = ("CR", "DX", "DR", "RG", "XR", "RX")  # read as they are
UNCERTAIN = ("", "OT", "SC", "HC", "RF", "DF")  # secondary captures, scanned film, missing: read and flagged
OTHER = ("CT", "MR", "US", "NM", "PT", "MG", "XA", "IO", "PX", "ES", "XC", "GM", "SM", "OP", "ECG", "SR", "SEG", "DOC")
OTHER += ("RTIMAGE", "RTDOSE", "RTPLAN", "RTSTRUCT", "IVUS", "OCT", "OPT", "BMD", "PR", "KO")
RADIOGRAPHY_CLASSES = ("Computed Radiography", "Digital X-Ray", "Secondary Capture", "Radiofluoroscopic")
FLUOROSCOPY = ("RF", "XA")
LEAST_SLOPE = 1e-9  # and its reciprocal the greatest: beyond them the values of an image are not told apart
VIEW_POSITIONS = ("AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "LATERAL", "LAT")
VIEW_POSITIONS += ("AP AXIAL", "PA AXIAL", "XTABLE LATERAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD", "AP SUPINE")
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR")
PHOTOMETRIC += ("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

TAGS = [
    "Modality",
    "SOPClassUID",
    "PresentationIntentType",
    *view.TAGS,
    "Laterality",
    "ImageLaterality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "BurnedInAnnotation",
]


def text(dataset, name: str) -> str:
    value = dataset.get(name)
    if value is None or isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        return ""
    return str(value).strip().upper()


def number(dataset, name: str, default: float | None = None) -> float | None:
    value = dataset.get(name)
    if type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return default
    return found if math.isfinite(found) else default


def check_modality(path: str, dataset, any_modality: bool, flags: list[str]) -> dict:
    """Refuse what is no radiograph, and describe the rest; free text from the file never gets through.

    Args:
        path: for the error's text.
        dataset: pydicom Dataset.
        any_modality: describe and flag instead of refusing.
        flags: what is found unusual is appended.
    """
    modality = text(dataset, "Modality")
    known = modality in RADIOGRAPHY + UNCERTAIN + OTHER
    kind = modality if known else "of no known kind"
    sop_class = getattr(dataset.get("SOPClassUID"), "name", "")  # the dictionary's name, or the number itself
    if modality == "" and "Image Storage" in sop_class and not any(word in sop_class for word in RADIOGRAPHY_CLASSES):
        known, modality, kind = False, "other", sop_class
    if modality not in RADIOGRAPHY:
        if modality not in UNCERTAIN and not any_modality:
            raise OtherModalityError(
                path,
                f"has modality {kind}; accepted: projection radiographs ({', '.join(RADIOGRAPHY)}), or anything with "
                "any_modality=True",
            )
        flags.append("modality_uncertain" if modality in UNCERTAIN else "modality_not_radiography")
    shown, position = view.header_view(dataset), text(dataset, "ViewPosition")
    if shown.part in ("other", "unknown"):
        flags.append("body_part_not_chest" if shown.part == "other" else "body_part_unknown")
    if shown.view in ("lateral", "other"):
        flags.append("lateral_view" if shown.view == "lateral" else "other_view")
    if shown.contradiction:
        flags.append("view_contradiction")
    if text(dataset, "BurnedInAnnotation") == "YES":
        flags.append("burned_in_annotation")
    orientation = dataset.get("PatientOrientation")
    axes = [str(axis).upper() for axis in orientation] if type(orientation).__name__ == "MultiValue" else []
    side = text(dataset, "ImageLaterality") or text(dataset, "Laterality")
    if axes and axes[0][:1] == "R":
        flags.append("patient_right_is_image_right")
    return {
        "modality": modality if known else "",
        "body_part": shown.part_word or shown.part,
        "body_part_element": shown.part_element,
        "view": shown.view,
        "view_evidence": "header" if shown.view else "",
        "view_element": shown.view_element,
        "view_position": position if position in VIEW_POSITIONS else "",
        "laterality": side if side in ("L", "R", "U", "B") else "",
        "patient_orientation": axes if len(axes) == 2 and all(set(axis) <= set("ALPRHF") for axis in axes) else [],
    }


@dataclass(frozen=True)
class ImagePixel:
    """The image pixel module's numbers."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    frames: int


def image_pixel(path: str, dataset, assumed: list[str]) -> ImagePixel:
    """Read the image pixel module and check its numbers against each other.

    Args:
        path: for the error's text.
        dataset: pydicom Dataset, repaired. What is missing of the module is put there, as decoders ask for it.
        assumed: names of the elements that were missing are appended.
    """

    def integer(name: str, default: int | None = None) -> int | None:
        value = number(dataset, name)
        return default if value is None else int(value)

    rows, columns, allocated = integer("Rows"), integer("Columns"), integer("BitsAllocated")
    if rows is None or columns is None or allocated is None:
        raise UnsupportedImageError(path, "is a DICOM file without an image (no Rows, Columns or BitsAllocated)")
    photometric = text(dataset, "PhotometricInterpretation")
    colour = photometric in PHOTOMETRIC and not photometric.startswith(("MONOCHROME", "PALETTE"))
    samples = integer("SamplesPerPixel")
    if samples is None:
        samples = 3 if colour else 1
        assumed.append("SamplesPerPixel")
    if allocated not in (8, 16):
        raise UnsupportedImageError(path, f"has BitsAllocated {allocated}; accepted: 8 or 16")
    if samples not in (1, 3):
        raise UnsupportedImageError(path, f"has SamplesPerPixel {samples}; accepted: 1 or 3")
    if photometric not in PHOTOMETRIC or colour != (samples == 3):
        photometric = "RGB" if samples == 3 else "MONOCHROME2"
        assumed.append("PhotometricInterpretation")
    stored = integer("BitsStored")
    if stored is None:
        stored = allocated
        assumed.append("BitsStored")
    high_bit = integer("HighBit", stored - 1)
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise ImageReadError(
            path, f"contradicts itself: BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit}"
        )
    signed = integer("PixelRepresentation")
    if signed is None or (samples == 3 and signed):  # colours have no sign
        signed = 0
        assumed.append("PixelRepresentation")
    frames = max(1, integer("NumberOfFrames", 1))
    module = {
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": photometric,
        "BitsStored": stored,
        "PixelRepresentation": signed,
    }
    if samples == 3 and integer("PlanarConfiguration") is None:
        module["PlanarConfiguration"] = 0
    for name, value in module.items():
        if name in assumed or name == "PlanarConfiguration":
            if name in dataset:  # with a word that is none
                del dataset[name]
            setattr(dataset, name, value)
    return ImagePixel(rows, columns, samples, allocated, stored, high_bit, signed == 1, frames)


def set_tone(grey: Grey, dataset, raw_processing: bool, flags: list[str]) -> None:
    """Modality, VOI, polarity and padding from the header."""
    table = read_tables(dataset, "ModalityLUTSequence", grey.signed)
    logarithmic = text(dataset, "PixelIntensityRelationship") in ("LOG", "DISP")
    if table and logarithmic and text(dataset, "Modality") in FLUOROSCOPY:
        table = []  # PS3.3 C.8.7.1.1.2: it leads back to the X-ray intensity, for measurements and not for display
        flags.append("modality_lut_not_for_display")
    if table:
        grey.modality_table = table[0]
    else:
        grey.slope, grey.intercept = number(dataset, "RescaleSlope", 1.0), number(dataset, "RescaleIntercept", 0.0)
        if abs(grey.slope) < LEAST_SLOPE or max(abs(grey.slope), abs(grey.intercept)) > 1 / LEAST_SLOPE:
            grey.slope, grey.intercept = 1.0, 0.0
            flags.append("rescale_slope_unusable")
    grey.tables = read_tables(dataset, "VOILUTSequence", grey.signed or grey.intercept < 0)
    grey.windows = read_windows(dataset, text(dataset, "VOILUTFunction"))
    grey.invert = (
        text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
        or text(dataset, "PresentationLUTShape") == "INVERSE"
    )
    padding = number(dataset, "PixelPaddingValue")
    if padding is not None:
        limit = number(dataset, "PixelPaddingRangeLimit", padding)
        grey.padding = padding_range(grey, int(padding), int(limit))
        if grey.padding is None:
            flags.append("padding_unusable")
    if raw_processing:
        flags.append("for_processing")
        grey.use_voi = False
        grey.log = not logarithmic
        sign = number(dataset, "PixelIntensityRelationshipSign")
        # sign +1: values rise with the X-ray intensity, so that dense is low and the image must be inverted
        if sign in (1.0, -1.0) and (sign == 1.0) != grey.invert:
            flags.append("polarity_contradiction")


def spacing(dataset, flags: list[str]) -> tuple[float, float] | None:
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
