"""LUT sequences whose descriptor, byte order or packing is not what one would expect."""

from __future__ import annotations

import numpy as np
import pytest
from xray_makers import dicom, lut_item, ramp

import hdxray_fast as hx

pydicom = pytest.importorskip("pydicom")
SIZE = 64
BIG = "1.2.840.10008.1.2.2"
CURVE = (np.arange(4096.0) ** 1.5 / 4095**0.5).astype(np.uint16)  # 12 bits; not linear, and 0 to 4095


@pytest.fixture
def stored() -> np.ndarray:
    return ramp(SIZE, SIZE, np.uint16, 4095)


@pytest.mark.parametrize(
    ("declared", "used"),
    [(0, 12), (8, 12), (10, 12), (11, 12), (12, 12), (13, 13), (14, 12), (16, 12), (20, 12)],
)
def test_entries_that_contradict_the_depth_in_the_descriptor(tmp_path, stored, declared, used):
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, VOILUTSequence=[lut_item(0, CURVE, declared)])
    canvas = hx.read_canvas(path, size=SIZE)
    assert np.array_equal(canvas.pixels, np.floor(CURVE[stored] / (2.0**used - 1) * 255 + 0.5))
    assert canvas.provenance["window"]["bits"] == used
    assert ("voi_lut_depth_differs" in canvas.provenance["flags"]) == (declared != used)


def test_a_table_of_one_value_is_still_of_no_use(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, VOILUTSequence=[lut_item(0, CURVE * 0 + 7, 16)])
    canvas = hx.read_canvas(path, size=SIZE)
    assert canvas.provenance["window"]["kind"] == "percentile"
    assert "window_unusable" in canvas.provenance["flags"]
    assert "voi_lut_depth_differs" not in canvas.provenance["flags"]


@pytest.mark.parametrize("packed", [False, True], ids=["words", "bytes"])
@pytest.mark.parametrize("count", [4096, 4095])
def test_words_of_a_table_have_the_byte_order_of_the_data_set(tmp_path, stored, packed, count):
    entries, depth = (CURVE[:count] >> 4, 8) if packed else (CURVE[:count], 12)
    expected = np.floor(entries[stored.clip(0, count - 1)] / (2.0**depth - 1) * 255 + 0.5)
    for name, syntax, order in (("little", "1.2.840.10008.1.2.1", "<"), ("big", BIG, ">")):
        item = lut_item(0, entries, depth, order, packed)
        path = dicom(tmp_path / f"{name}.dcm", stored, syntax, BitsStored=12, VOILUTSequence=[item])
        assert np.array_equal(hx.read_canvas(path, size=SIZE).pixels, expected), name


def test_modality_table_in_big_endian(tmp_path, stored):
    for name, syntax, order in (("little", "1.2.840.10008.1.2.1", "<"), ("big", BIG, ">")):
        elements = {"ModalityLUTSequence": [lut_item(0, CURVE, 12, order)], "BitsStored": 12}
        windowed = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
        path = dicom(tmp_path / f"{name}.dcm", stored, syntax, **elements, **windowed)
        expected = np.floor(np.clip((CURVE[stored] - 2048.0) / 4096 + 0.5, 0, 1) * 255 + 0.5)
        assert np.array_equal(hx.read_canvas(path, size=SIZE).pixels, expected), name


def test_palette_in_big_endian(tmp_path):
    index, levels = ramp(SIZE, SIZE), np.linspace(65535, 0, 256).astype(np.uint16)
    canvases = []
    for name, syntax, order in (("little", "1.2.840.10008.1.2.1", "<u2"), ("big", BIG, ">u2")):
        tables = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
        tables |= {key.replace("Descriptor", "Data"): levels.astype(order).tobytes() for key in tables}
        path = dicom(tmp_path / f"{name}.dcm", index, syntax, PhotometricInterpretation="PALETTE COLOR", **tables)
        canvases.append(hx.read_canvas(path, size=SIZE).pixels)
    assert np.array_equal(*canvases)
    assert np.abs(canvases[0] - (255.0 - index)).max() <= 1
