"""Damaged files by the hundred: a canvas or an error of this package, never anything else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from xray_makers import CMYK_JPEG, dicom, encode, lut_item, png, png_chunk, pydicom_file, ramp, scanlines, tiff

import hdxray_fast as hx
from hdxray_fast.canvas import Limits

LIMITS = Limits(max_pixels=1_000_000, max_bytes=8_000_000)
PER_FILE = 40


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


def survive(tmp_path, name: str, whole: bytes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "fuzzed.bin"
    for _ in range(PER_FILE):
        data = mutate(whole, rng)
        path.write_bytes(data)
        try:
            canvas = hx.read_canvas(
                path, size=32, any_modality=True, frame=0, limits=LIMITS, force=bool(rng.integers(2))
            )
        except hx.HDXrayError:
            continue  # said in words what is wrong; anything else fails the test
        assert canvas.pixels.shape == (32, 32), name


@pytest.mark.parametrize("name", rasters())
def test_mutated_pictures(tmp_path, name):
    survive(tmp_path, name, rasters()[name], seed=sum(name.encode()))


def test_mutated_npy(tmp_path):
    np.save(tmp_path / "a.npy", ramp(40, 48, np.uint16))
    survive(tmp_path, "npy", (tmp_path / "a.npy").read_bytes(), seed=5)


def test_mutated_dicom_header(tmp_path):
    pytest.importorskip("pydicom")
    elements = {
        "WindowCenter": [1000, 2000],
        "WindowWidth": [500, 900],
        "VOILUTSequence": [lut_item(0, np.arange(256), 8)],
        "PixelPaddingValue": 0,
        "PixelSpacing": [0.2, 0.2],
        "RescaleSlope": "1.5",
        "RescaleIntercept": "-5",
    }
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"):
        path = dicom(tmp_path / "a.dcm", ramp(24, 24, np.uint16, 4095), syntax, BitsStored=12, **elements)
        survive(tmp_path, syntax, path.read_bytes(), seed=len(syntax))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
    ],
)
def test_mutated_compressed_dicom(tmp_path, name):
    with open(pydicom_file(name), "rb") as stream:
        survive(tmp_path, name, stream.read(), seed=sum(name.encode()))
