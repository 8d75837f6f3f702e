"""LUT sequences whose descriptor, byte order or packing is not what one would expect."""

from __future__ import annotations

import numpy as np
import pytest
from xray_makers import dicom, lut_item, pydicom_file, ramp

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
    assert ("lut_depth_differs" in canvas.provenance["flags"]) == (declared != used)


def test_a_table_of_one_value_is_still_of_no_use(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, VOILUTSequence=[lut_item(0, CURVE * 0 + 7, 16)])
    canvas = hx.read_canvas(path, size=SIZE)
    assert canvas.provenance["window"]["kind"] == "percentile"
    assert "window_unusable" in canvas.provenance["flags"]
    assert "lut_depth_differs" not in canvas.provenance["flags"]


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


def palette(levels: np.ndarray, dtype: str, bits: int) -> dict:
    tables = {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, bits] for colour in ("Red", "Green", "Blue")}
    tables |= {name.replace("Descriptor", "Data"): levels.astype(dtype).tobytes() for name in tables}
    return {"PhotometricInterpretation": "PALETTE COLOR", **tables}


def test_palette_in_big_endian(tmp_path):
    index, levels = ramp(SIZE, SIZE), 65535 - 256 * np.arange(256)  # words that are others the other way round
    for name, syntax, dtype in (("little", "1.2.840.10008.1.2.1", "<u2"), ("big", BIG, ">u2")):
        path = dicom(tmp_path / f"{name}.dcm", index, syntax, **palette(levels, dtype, 16))
        assert np.abs(hx.read_canvas(path, size=SIZE).pixels - (255.0 - index)).max() <= 1, name


@pytest.mark.parametrize(
    ("top", "dtype", "declared", "differs"),
    [(255, "<u2", 8, False), (255, "u1", 8, False), (255, "<u2", 16, True), (65535, "<u2", 8, True)],
    ids=["8-bit words", "8-bit bytes", "8-bit words called 16", "16-bit words called 8"],
)
def test_depth_of_a_palette(tmp_path, top, dtype, declared, differs):
    index, levels = ramp(SIZE, SIZE), np.arange(256) * (top // 255)
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", index, **palette(levels, dtype, declared)), size=SIZE)
    assert np.array_equal(canvas.pixels, index)
    assert ("lut_depth_differs" in canvas.provenance["flags"]) == differs


def test_palette_index_under_overlay_bits(tmp_path):
    index, levels = ramp(SIZE, SIZE), np.arange(256)
    path = dicom(tmp_path / "a.dcm", index.astype(np.uint16) | 0x1000, BitsStored=8, **palette(levels, "<u2", 8))
    assert np.array_equal(hx.read_canvas(path, size=SIZE).pixels, index)


def test_palette_of_a_shared_file_in_either_byte_order():
    little, big = (hx.read_canvas(pydicom_file(f"OBXXXX1A{end}.dcm"), any_modality=True) for end in ("", "_expb"))
    assert np.array_equal(little.pixels, big.pixels)


def test_no_palette_is_an_error(tmp_path):
    elements = palette(np.arange(256), "<u2", 8) | {"GreenPaletteColorLookupTableData": None}
    with pytest.raises(hx.UnsupportedImageError, match="no green palette"):
        hx.read_canvas(dicom(tmp_path / "a.dcm", ramp(SIZE, SIZE), **elements))
