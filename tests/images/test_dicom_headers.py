"""Headers that break the standard: another encoding than they name, numbers that are none, elements missing."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from xray_makers import dicom, lut_item, ramp

import hdxray_fast as hx
from hdxray_fast.images.canvas import read_canvas
from hdxray_fast.images.dicom_dataset import found_encoding, stream_syntax

pydicom = pytest.importorskip("pydicom")
SIZE = 64
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_LOSSLESS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{end}" for end in (50, 70, 90))
WINDOW = {"BitsStored": 12, "WindowCenter": 1800, "WindowWidth": 2400}


@pytest.fixture
def stored() -> np.ndarray:
    return ramp(SIZE, SIZE, np.uint16, 4095)


def renamed(path, syntax: str):
    """The same data set under another transfer syntax in the meta group."""
    whole = path.read_bytes()
    length = struct.unpack_from("<I", whole, 140)[0]
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    meta = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element)) + element
    path.write_bytes(whole[:132] + meta + whole[144 + length :])
    return path


def compressed(path, stored, syntax: str):
    """[H, W] in RLE or JPEG 2000."""
    dataset = pydicom.dcmread(dicom(path, stored, EXPLICIT, **WINDOW))
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return path


# --- the encoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "padding", [b"", struct.pack("<HH", 0xFFFC, 0xFFFC) + b"OB\0\0" + struct.pack("<I", 32) + bytes(32)]
)
@pytest.mark.parametrize(
    ("data", "declared"),
    [
        (IMPLICIT, EXPLICIT),
        (EXPLICIT, IMPLICIT),
        (BIG, EXPLICIT),
        (EXPLICIT, BIG),
        (EXPLICIT, DEFLATED),
        (IMPLICIT, BIG),
    ],
)
def test_the_data_tell_their_encoding(tmp_path, stored, data, declared, padding):
    elements = {
        **WINDOW,
        "WindowWidth": None,
        "WindowCenter": None,
        "VOILUTSequence": [lut_item(0, np.arange(4096), 12)],
    }
    elements = elements if data != BIG else WINDOW
    right = dicom(tmp_path / "right.dcm", stored, data, **elements)
    wrong = renamed(dicom(tmp_path / "wrong.dcm", stored, data, **elements), declared)
    wrong.write_bytes(wrong.read_bytes() + padding)
    expected, canvas = hx.read_canvas(right, size=SIZE), hx.read_canvas(wrong, size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert "transfer_syntax_differs" in canvas.provenance["flags"]
    assert "transfer_syntax_differs" not in expected.provenance["flags"]
    assert canvas.provenance["transfer_syntax"] == expected.provenance["transfer_syntax"]


@pytest.mark.parametrize("syntax", [RLE, JPEG_2000])
@pytest.mark.parametrize("declared", [EXPLICIT, JPEG, JPEG_LOSSLESS])
def test_compressed_pixels_under_another_syntax(tmp_path, stored, syntax, declared):
    plain = hx.read_canvas(dicom(tmp_path / "plain.dcm", stored, **WINDOW), size=SIZE)
    canvas = hx.read_canvas(renamed(compressed(tmp_path / "a.dcm", stored, syntax), declared), size=SIZE)
    assert np.array_equal(canvas.pixels, plain.pixels)
    assert "transfer_syntax_differs" in canvas.provenance["flags"]


def test_uncompressed_pixels_under_a_compressed_syntax(tmp_path, stored):
    plain = hx.read_canvas(dicom(tmp_path / "plain.dcm", stored, **WINDOW), size=SIZE)
    canvas = hx.read_canvas(renamed(dicom(tmp_path / "a.dcm", stored, **WINDOW), JPEG_2000), size=SIZE)
    assert np.array_equal(canvas.pixels, plain.pixels)
    assert "transfer_syntax_differs" in canvas.provenance["flags"]


def test_a_makers_own_syntax_is_refused(tmp_path, stored):
    path = renamed(dicom(tmp_path / "a.dcm", stored, **WINDOW), "1.2.840.113619.5.2")
    with pytest.raises(hx.UnsupportedImageError, match="transfer syntax"):
        hx.read_canvas(path, size=SIZE)


def test_encodings_and_streams_by_their_first_bytes():
    assert found_encoding(b"\x08\0\x05\0CS", True, True) == (False, True)
    assert found_encoding(b"\0\x08\0\x05CS", False, True) == (False, False)
    assert found_encoding(b"\x08\0\x05\0\x0a\0", False, True) == (True, True)
    assert found_encoding(b"\x08\0", False, True) == (False, True)
    jpeg = cv2.imencode(".jpg", ramp(16, 16))[1].tobytes()
    assert stream_syntax(jpeg, IMPLICIT) == JPEG
    assert stream_syntax(jpeg, JPEG_LOSSLESS) == JPEG_LOSSLESS  # the same decoder
    assert stream_syntax(b"\xff\x4f\xff\x51", JPEG) == "1.2.840.10008.1.2.4.91"
    assert stream_syntax(b"what is this", JPEG) == JPEG


# --- numbers ----------------------------------------------------------------------------------------------------------


def written(path, stored, raw: dict[str, tuple[str, bytes]], syntax: str = EXPLICIT, **elements):
    """A file some of whose elements hold any bytes under any VR."""
    dataset = pydicom.dcmread(dicom(path, stored, syntax, **elements))
    for name, (vr, value) in raw.items():
        tag = pydicom.tag.Tag(name)
        dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, syntax == IMPLICIT, syntax != BIG)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        ("WindowWidth", b"2400,0", 2400),
        ("WindowWidth", b"2400\\", 2400),
        ("RescaleSlope", b"0,5 ", 0.5),
        ("RescaleSlope", b"0.5\\0.5 ", 0.5),
    ],
)
def test_numbers_that_can_only_mean_one_thing(tmp_path, stored, syntax, name, value, means):
    elements = {**WINDOW, "RescaleSlope": 1, "RescaleIntercept": 0}
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, syntax, **{**elements, name: means}), size=SIZE)
    path = written(tmp_path / "b.dcm", stored, {name: ("DS", value)}, syntax, **elements)
    canvas = hx.read_canvas(path, size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert "element_repaired" in canvas.provenance["flags"]
    assert canvas.provenance["elements"] == {"repaired": [name]}
    assert "element_repaired" not in expected.provenance["flags"]


@pytest.mark.parametrize("value", [b"wide", b"1,024 ", b"1.024,5 ", b"NaN ", b"1e999 ", b"0x10", b"1_0 "])
def test_a_width_that_is_no_number_becomes_a_percentile_window(tmp_path, stored, value):
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, BitsStored=12), size=SIZE)
    canvas = hx.read_canvas(written(tmp_path / "b.dcm", stored, {"WindowWidth": ("DS", value)}, **WINDOW), size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert {"element_unusable", "window_unusable"} <= set(canvas.provenance["flags"])
    assert canvas.provenance["elements"] == {"unusable": ["WindowWidth"]}


def test_one_window_of_two_that_is_no_number_leaves_the_other(tmp_path, stored):
    window = {**WINDOW, "WindowCenter": [900, 1800], "WindowWidth": [100, 2400]}
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, **window), size=SIZE, window_index=1)
    path = written(tmp_path / "b.dcm", stored, {"WindowWidth": ("DS", b"broad\\2400")}, **window)
    assert np.array_equal(hx.read_canvas(path, size=SIZE, window_index=1).pixels, expected.pixels)
    assert "window_unusable" in hx.read_canvas(path, size=SIZE).provenance["flags"]


@pytest.mark.parametrize("value", [b"half", b"0 ", b"1e300 ", b"1\\2 "])
def test_a_slope_that_cannot_be_used_is_one(tmp_path, stored, value):
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, **WINDOW), size=SIZE)
    canvas = hx.read_canvas(written(tmp_path / "b.dcm", stored, {"RescaleSlope": ("DS", value)}, **WINDOW), size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert "rescale_slope_unusable" in canvas.provenance["flags"]


@pytest.mark.parametrize(
    "raw",
    [
        {"Rows": ("DS", b"64")},
        {"Columns": ("UL", struct.pack("<I", 64))},
        {"HighBit": ("US", struct.pack("<HH", 11, 11))},
        {"WindowCenter": ("FD", struct.pack("<d", 1800)), "WindowWidth": ("US", struct.pack("<H", 2400))},
        {"PhotometricInterpretation": ("LO", b"MONOCHROME2 ")},
        {"Modality": ("UN", b"DX")},
    ],
)
def test_another_vr_than_the_dictionarys(tmp_path, stored, raw):
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, **WINDOW), size=SIZE)
    canvas = hx.read_canvas(written(tmp_path / "b.dcm", stored, raw, **WINDOW), size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert canvas.provenance["elements"] == {"repaired": sorted(raw)}


def test_a_vr_that_nobody_knows(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, **WINDOW)
    expected = hx.read_canvas(path, size=SIZE)
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x01\x01US", b"\x28\0\x01\x01ZZ"))
    canvas = hx.read_canvas(path, size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert canvas.provenance["elements"] == {"repaired": ["BitsStored"]}


# --- what is missing --------------------------------------------------------------------------------------------------


MODULE = ("PhotometricInterpretation", "PixelRepresentation", "SamplesPerPixel")


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        *((syntax, name) for syntax in (IMPLICIT, EXPLICIT, BIG, RLE, JPEG_2000) for name in MODULE),
        *((syntax, "BitsStored") for syntax in (IMPLICIT, EXPLICIT, BIG)),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_missing_elements_of_the_image_pixel_module(tmp_path, stored, syntax, name, empty):
    deep, elements = (stored * 16, {"BitsStored": 16}) if name == "BitsStored" else (stored, WINDOW)
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", deep, **elements), size=SIZE)
    if syntax in (RLE, JPEG_2000):
        path = compressed(tmp_path / "b.dcm", deep, syntax)
    else:
        path = dicom(tmp_path / "b.dcm", deep, syntax, **elements)
    dataset = pydicom.dcmread(path)
    if empty:
        dataset[name].value = None
    else:
        del dataset[name]
    dataset.save_as(path)
    canvas = hx.read_canvas(path, size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert "image_pixel_assumed" in canvas.provenance["flags"]
    assert canvas.provenance["elements"] == {"assumed": [name]}


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_an_empty_descriptor_inside_of_a_sequence(tmp_path, stored, syntax):
    good, bad = lut_item(0, np.arange(4096)[::-1], 12), lut_item(0, np.arange(4096), 12)
    bad.LUTDescriptor = None
    expected = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, BitsStored=12), size=SIZE)
    canvas = hx.read_canvas(dicom(tmp_path / "b.dcm", stored, syntax, BitsStored=12, VOILUTSequence=[bad]), size=SIZE)
    assert np.array_equal(canvas.pixels, expected.pixels)
    assert canvas.provenance["elements"] == {"unusable": ["LUTDescriptor"]}
    both = dicom(tmp_path / "c.dcm", stored, syntax, BitsStored=12, VOILUTSequence=[bad, good])
    assert hx.read_canvas(both, size=SIZE).provenance["window"]["kind"] == "voi_lut"


@pytest.mark.parametrize(
    ("modality", "relation", "used"), [("RF", "LOG", False), ("RF", "LIN", True), ("DX", "LOG", True)]
)
def test_modality_lut_of_logarithmic_fluoroscopy_is_not_for_display(tmp_path, stored, modality, relation, used):
    table = {"ModalityLUTSequence": [lut_item(0, np.arange(4096) ** 2 // 4096, 12)]}
    about = {"Modality": modality, "PixelIntensityRelationship": relation, **WINDOW}
    plain = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, **about), size=SIZE)
    canvas = hx.read_canvas(dicom(tmp_path / "b.dcm", stored, **about, **table), size=SIZE)
    assert np.array_equal(canvas.pixels, plain.pixels) != used
    assert ("modality_lut_not_for_display" in canvas.provenance["flags"]) != used
    assert "modality_lut_not_for_display" not in plain.provenance["flags"]


# --- what nobody foresaw ----------------------------------------------------------------------------------------------


def test_what_a_library_raises_ends_as_an_error_that_names_file_and_class(tmp_path, stored, monkeypatch):
    path = dicom(tmp_path / "a.dcm", stored, **WINDOW)

    class Panic(BaseException):
        pass

    def fail(*_, **__):
        raise Panic("PatientName")

    monkeypatch.setattr("hdxray_fast.images.dicom.set_tone", fail)
    with pytest.raises(hx.ImageReadError, match=r"a\.dcm.*Panic in") as error:
        read_canvas(path)
    assert type(error.value).__name__ == "UnforeseenReadError"
    assert "PatientName" not in f"{error.value} {error.value.__cause__} {error.value.__context__}"
    with pytest.raises(TypeError, match="no_such_option"):
        read_canvas(path, no_such_option=1)
