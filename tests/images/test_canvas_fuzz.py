"""Damaged files by the hundred: a canvas or an error of this package, never anything else."""

from __future__ import annotations

import time

import numpy as np
import pytest
from container_fuzz import containers, pieces, restructured, with_head
from fuzz_makers import mutate, rasters
from xray_makers import dicom, lut_item, pydicom_file, ramp

import hdxray_fast as hx
from hdxray_fast.images.canvas import Limits

LIMITS = Limits(max_pixels=1_000_000, max_bytes=8_000_000)
PER_FILE = 40


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


def test_containers_put_together_wrongly(tmp_path):
    pytest.importorskip("openjpeg")
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, whole = tmp_path / "fuzzed.bin", containers(tmp_path)
    for name, (head, stream) in whole.items():
        assert b"".join(pieces(stream)) == stream, name
        for seed in range(PER_FILE):
            path.write_bytes(with_head(head, restructured(stream, np.random.default_rng([7, seed]))))
            began = time.monotonic()
            ending = None
            try:
                assert hx.read_canvas(path, size=32, frame=0, limits=LIMITS).pixels.shape == (32, 32), name
            except hx.HDXrayError as error:
                ending = error
            assert not isinstance(ending, hx.errors.UnforeseenReadError), (name, seed, ending)
            assert time.monotonic() - began < 10, (name, seed)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 256 << 10, f"{used} KiB for pictures of 1 megapixel at most"
