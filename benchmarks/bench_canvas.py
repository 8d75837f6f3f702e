"""read_canvas against what no reader can avoid: the decoder and one cv2.resize to the same size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import hdxray_fast as hx

pydicom = pytest.importorskip("pydicom")

HEIGHT, WIDTH = 3056, 2544  # a common detector
BAR = 0.8  # rival / ours: at most 1.25 times the time


@pytest.fixture(scope="module")
def radiograph() -> np.ndarray:
    """[3056, 2544] float64 0..1: the public radiograph at full detail, with the noise that a detector adds."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file("RG1_UNCR.dcm", download=False)
    if path is None:
        pytest.skip("RG1_UNCR.dcm comes with the package pydicom-data, which is not installed")
    pixels = hx.read_canvas(path, size=WIDTH, bits=16, window="percentile", fit="stretch").pixels
    enlarged = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) / 65535.0
    return enlarged + np.random.default_rng(0).normal(scale=0.006, size=enlarged.shape)


def fitted(pixels: np.ndarray) -> np.ndarray:
    scale = 1280 / max(pixels.shape)
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def test_jpeg(compare, radiograph, tmp_path):
    path = str(tmp_path / "a.jpg")
    cv2.imwrite(path, np.clip(radiograph * 255, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
    compare(
        "read_canvas, grey JPEG 3056 × 2544 → 1280², 8 bits",
        lambda: hx.read_canvas(path),
        lambda: fitted(cv2.imread(path, cv2.IMREAD_UNCHANGED)),
        rival_name="cv2.imread + cv2.resize",
        bar=BAR,
        rounds=25,
        warmup=2,
    )


def test_png16(compare, radiograph, tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.clip(radiograph * 4095, 0, 4095).astype(np.uint16))
    compare(
        "read_canvas, 16-bit PNG 3056 × 2544 → 1280², 8 bits",
        lambda: hx.read_canvas(path),
        lambda: fitted(cv2.imread(path, cv2.IMREAD_UNCHANGED)),
        rival_name="cv2.imread + cv2.resize",
        bar=BAR,
        rounds=15,
        warmup=1,
    )


@pytest.mark.parametrize(("name", "rounds"), [("RG1_UNCI", 40), ("RG1_J2KI", 9)])
def test_dicom(compare, name, rounds):
    from pydicom.data import get_testdata_file

    path = get_testdata_file(f"{name}.dcm", download=False)
    if path is None:
        pytest.skip(f"{name}.dcm comes with the package pydicom-data, which is not installed")
    kind = "uncompressed" if name == "RG1_UNCI" else "JPEG 2000"
    compare(
        f"read_canvas, {kind} 15-bit DICOM 1955 × 1841 → 1280², 8 bits",
        lambda: hx.read_canvas(path),
        lambda: fitted(pydicom.dcmread(path).pixel_array),
        rival_name="pydicom pixel_array + cv2.resize",
        bar=BAR,
        rounds=rounds,
        warmup=2,
    )
