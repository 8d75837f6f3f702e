"""Palette colours of DICOM (PS3.3 C.7.6.3.1.5) to grey."""

from __future__ import annotations

import cv2
import numpy as np

from ..errors import UnsupportedImageError
from .tone import stored_values
from .voi_lut import Table, read_table

COLOURS = ("Red", "Green", "Blue")


def palette_to_luma(
    path: str, dataset, pixels: np.ndarray, bits: int, high_bit: int, signed: bool, flags: list[str]
) -> tuple[np.ndarray, int]:
    """Luma of the colours that pixels stand for.

    Args:
        path: for errors.
        dataset: pydicom Dataset, as read: its byte order is that of the palette.
        pixels: [H, W] uint8 | uint16 bit patterns.
        bits, high_bit, signed: where in them the index lies.
        flags: ``lut_depth_differs`` is appended where the palette's entries contradict their descriptor.

    Returns:
        ([H, W] uint8 | uint16, how many bits of them are used).

    Raises:
        UnsupportedImageError: a palette is missing, or segmented.
    """
    big_endian = dataset.original_encoding[1] is False
    tables = []
    for colour in COLOURS:
        element = f"{colour}PaletteColorLookupTable"
        table = read_table(dataset.get(f"{element}Descriptor"), dataset.get(f"{element}Data"), signed, big_endian)
        if table is None:
            raise UnsupportedImageError(
                path, f"has no {colour.lower()} palette; accepted: three that are not segmented"
            )
        tables.append(table)
    whole = Table(0, np.concatenate([table.entries for table in tables]), tables[0].bits)
    if whole.depth != whole.bits:
        flags.append("lut_depth_differs")
    index = np.arange(2**bits)  # every pattern of the stored bits
    values = np.where(index >= 2 ** (bits - 1), index - 2**bits, index) if signed else index
    colours = np.dstack([table.lookup(values) for table in tables]).astype(np.uint8 if whole.depth <= 8 else np.uint16)
    luma = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[0]
    return luma[stored_values(pixels, bits, high_bit, signed=False)], whole.depth
