"""Whole files of every kind, and ways to damage them."""

from __future__ import annotations

import cv2
import numpy as np
from xray_makers import CMYK_JPEG, encode, png, png_chunk, ramp, scanlines, tiff


def mutate(whole: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    kind = rng.integers(6)
    if kind == 0:  # truncate
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:  # flip bits anywhere
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 2:  # rubbish in the header
        for place in rng.integers(min(len(data), 600), size=rng.integers(1, 6)):
            data[place] = rng.integers(256)
    elif kind == 3:  # a length or size becomes extreme
        place = rng.integers(max(1, min(len(data), 600) - 4))
        data[place : place + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"][
            rng.integers(4)
        ]
    elif kind == 4:  # a piece is lost
        start = rng.integers(len(data))
        del data[start : start + rng.integers(1, 200)]
    else:  # a piece is doubled
        start = rng.integers(len(data))
        data[start:start] = data[start : start + rng.integers(1, 200)]
    return bytes(data)


def rasters() -> dict[str, bytes]:
    grey, deep = ramp(40, 48), ramp(40, 48, np.uint16, 4095)
    colour = np.dstack([grey, 255 - grey, grey // 2])
    palette = png_chunk(b"PLTE", bytes(range(256)) * 3)
    return {
        "png": encode(".png", grey),
        "png16": encode(".png", deep),
        "png-palette": png(48, 40, scanlines(grey), colour=3, extra=palette),
        "jpeg": encode(".jpg", grey),
        "jpeg-colour-progressive": encode(".jpg", colour, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg-cmyk": CMYK_JPEG,
        "tiff": tiff([deep, deep]),
        "tiff-lzw": encode(".tiff", colour),
        "tiff-deflate": tiff(grey, compression=8, photometric=0),
        "bmp": encode(".bmp", grey),
        "webp": encode(".webp", colour),
        "webp-lossless": encode(".webp", colour, cv2.IMWRITE_WEBP_QUALITY, 101),
    }
