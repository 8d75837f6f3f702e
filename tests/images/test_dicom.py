"""The pitfalls of DICOM radiographs, one by one; docs/canvas.md maps each to its test."""

from __future__ import annotations

import numpy as np
import pytest
from xray_makers import dicom, lut_item, ramp, thorax

import hdxray_fast as hx

pydicom = pytest.importorskip("pydicom")
SIZE = 64


def shown(path, **options) -> np.ndarray:
    """Brightness of a square DICOM file at its own size."""
    return hx.read_canvas(path, size=SIZE, **options).pixels


@pytest.fixture
def stored() -> np.ndarray:
    return ramp(SIZE, SIZE, np.uint16, 4095)


def window_of(path, **options) -> dict:
    return hx.read_canvas(path, size=SIZE, **options).provenance["window"]


# --- polarity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # both say the same thing: once, not twice
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_inverted_once(tmp_path, stored, photometric, shape, inverted):
    elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape, "BitsStored": 12}
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, **elements), size=SIZE, window="full")
    expected = np.floor((4095.0 - stored if inverted else stored) / 4095.0 * 255 + 0.5)
    assert np.array_equal(canvas.pixels, expected)
    assert canvas.provenance["inverted"] is inverted


def test_polarity_comes_after_the_window(tmp_path, stored):
    windowed = {"WindowCenter": 1000, "WindowWidth": 500, "BitsStored": 12}
    upright = shown(dicom(tmp_path / "2.dcm", stored, **windowed))
    negative = shown(dicom(tmp_path / "1.dcm", stored, PhotometricInterpretation="MONOCHROME1", **windowed))
    assert np.abs(upright.astype(int) + negative - 255).max() <= 1


def test_inverting_16_bits_does_not_overflow(tmp_path):
    pixels = ramp(SIZE, SIZE, np.uint16)
    path = dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(path, bits=16, window="full"), 65535 - pixels)
    signed = (pixels.astype(np.int32) - 32768).astype(np.int16)
    path = dicom(tmp_path / "s.dcm", signed, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(path, bits=16, window="full"), 65535 - pixels)


def test_wrong_polarity_tag_is_flagged_and_never_flipped(tmp_path):
    right = hx.read_canvas(dicom(tmp_path / "right.dcm", thorax()), size=256)
    wrong = hx.read_canvas(dicom(tmp_path / "wrong.dcm", 255 - thorax()), size=256)
    assert "polarity_suspect" not in right.provenance["flags"]
    assert "polarity_suspect" in wrong.provenance["flags"]
    assert wrong.provenance["inverted"] is False
    top, left, height, width = right.valid_box
    inside = np.s_[top : top + height, left : left + width]
    assert np.abs(wrong.pixels[inside] - (255.0 - right.pixels[inside])).max() <= 1  # rounding of the resize


# --- modality -------------------------------------------------------------------------------------------------------


def test_rescale_is_applied_before_the_window_in_float(tmp_path, stored):
    elements = {"RescaleSlope": "0.25", "RescaleIntercept": "-100.5", "WindowCenter": 200, "WindowWidth": 401}
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, VOILUTFunction="LINEAR_EXACT", **elements)
    modality = stored * 0.25 - 100.5
    expected = np.floor(np.clip((modality - 200) / 401 + 0.5, 0, 1) * 255 + 0.5)
    assert np.array_equal(shown(path), expected)


def test_modality_lut_sequence(tmp_path, stored):
    table = (np.arange(4096.0) ** 2 / 4095.0).astype(np.uint16)  # not linear, so that order matters
    elements = {"ModalityLUTSequence": [lut_item(0, table, 16)], "WindowCenter": 2048, "WindowWidth": 4096}
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, VOILUTFunction="LINEAR_EXACT", **elements)
    expected = np.floor(np.clip((table[stored] - 2048.0) / 4096 + 0.5, 0, 1) * 255 + 0.5)
    assert np.array_equal(shown(path), expected)


def test_modality_lut_of_a_shared_test_file():
    from xray_makers import pydicom_file

    canvas = hx.read_canvas(pydicom_file("mlut_18.dcm"), size=512, window="percentile")
    dataset = pydicom.dcmread(pydicom_file("mlut_18.dcm"))
    rival = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset).astype(float)
    low, high = np.percentile(rival, [0.5, 99.5])
    expected = np.clip((rival - low) / (high - low), 0, 1) * 255
    assert np.abs(canvas.pixels - expected).max() <= 1


def test_zero_slope_is_ignored_and_flagged(tmp_path, stored):
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, BitsStored=12, RescaleSlope="0"), size=SIZE)
    assert "rescale_slope_unusable" in canvas.provenance["flags"]
    assert np.ptp(canvas.pixels) == 255


# --- VOI ------------------------------------------------------------------------------------------------------------


def test_voi_lut_first_or_window_first(tmp_path, stored):
    table = np.linspace(1023, 0, 4096).astype(np.uint16)  # falls, so that the choice is seen
    elements = {"VOILUTSequence": [lut_item(0, table, 10)], "WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
    path = dicom(tmp_path / "a.dcm", stored, **elements)
    by_lut = np.floor(table[stored] / 1023.0 * 255 + 0.5)
    assert np.array_equal(shown(path), by_lut)
    assert window_of(path)["kind"] == "voi_lut"
    assert window_of(path, prefer="window")["kind"] == "window"
    assert shown(path, prefer="window")[-1, -1] == 255


def test_voi_lut_of_a_shared_test_file():
    from xray_makers import pydicom_file

    canvas = hx.read_canvas(pydicom_file("vlut_04.dcm"), size=512)
    dataset = pydicom.dcmread(pydicom_file("vlut_04.dcm"))
    rival = pydicom.pixels.apply_voi(dataset.pixel_array, dataset) / 65535.0 * 255
    assert np.abs(canvas.pixels - rival).max() <= 1


def test_voi_lut_beyond_its_ends(tmp_path):
    pixels = ramp(SIZE, SIZE, np.int16, 1000) - np.int16(500)
    table = np.arange(0, 256, dtype=np.uint16)
    path = dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=[lut_item(-128, table, 8)])
    assert np.array_equal(shown(path), np.clip(pixels.astype(int) + 128, 0, 255))


def test_several_windows_by_index(tmp_path, stored):
    windows = {"WindowCenter": [1000, 3000], "WindowWidth": [200, 400], "BitsStored": 12}
    path = dicom(tmp_path / "a.dcm", stored, **windows)
    assert (window_of(path)["center"], window_of(path, window_index=1)["center"]) == (1000, 3000)
    assert window_of(path)["of"] == 2
    with pytest.raises(hx.ArgumentError, match=r"window_index=2.*0 to 1"):
        shown(path, window_index=2)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions(tmp_path, stored, function):
    center, width = 2000.0, 1500.0
    windowed = {"WindowCenter": center, "WindowWidth": width, "BitsStored": 12, "VOILUTFunction": function}
    x = stored.astype(float)
    expected = {  # PS3.3 C.11.2.1.2.1, C.11.2.1.3.2, C.11.2.1.3.1
        "LINEAR": np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - center) / width + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - center) / width)),
    }[function]
    path = dicom(tmp_path / "a.dcm", stored, **windowed)
    assert np.array_equal(shown(path, bits=16), np.floor(expected * 65535 + 0.5))
    assert window_of(path)["function"] == function


@pytest.mark.parametrize(
    ("center", "width"),
    [(2000, 0), (2000, -5), (50000, 100), (-9000, 50), (2000, 0.5), (0, 4_000_000)],
    ids=["zero", "negative", "above-the-data", "below-the-data", "linear-below-1", "no-contrast-left"],
)
def test_unusable_window_becomes_a_percentile_window(tmp_path, stored, center, width):
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, WindowCenter=center, WindowWidth=width)
    canvas = hx.read_canvas(path, size=SIZE)
    assert canvas.provenance["window"]["kind"] == "percentile"
    assert "window_unusable" in canvas.provenance["flags"]
    assert np.ptp(canvas.pixels) == 255


def test_no_window_becomes_a_percentile_window(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=16)  # 12 bits of values in a 16-bit file
    canvas = hx.read_canvas(path, size=SIZE, percentiles=(1, 99))
    assert canvas.provenance["window"]["kind"] == "percentile"
    assert np.ptp(canvas.pixels) == 255
    assert "window_unusable" not in canvas.provenance["flags"]


# --- FOR PROCESSING -------------------------------------------------------------------------------------------------


def test_for_processing_gets_a_logarithm_and_a_flag(tmp_path, stored):
    elements = {
        "PresentationIntentType": "FOR PROCESSING",
        "PhotometricInterpretation": "MONOCHROME1",
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "BitsStored": 12,
        "WindowCenter": 1,
        "WindowWidth": 1,
    }
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, **elements), size=SIZE)
    flags = canvas.provenance["flags"]
    assert "for_processing" in flags
    assert "polarity_contradiction" not in flags
    low, high = np.log1p(np.percentile(stored, [0.5, 99.5]))
    expected = 1 - np.clip((np.log1p(stored.astype(float)) - low) / (high - low), 0, 1)
    assert np.abs(canvas.pixels - expected * 255).max() < 4  # percentiles of all pixels against those of a sample
    elements["PhotometricInterpretation"] = "MONOCHROME2"
    contradicting = hx.read_canvas(dicom(tmp_path / "b.dcm", stored, **elements), size=SIZE)
    assert "polarity_contradiction" in contradicting.provenance["flags"]
    with pytest.raises(hx.UnsupportedImageError, match="FOR PROCESSING"):
        shown(tmp_path / "a.dcm", for_processing="refuse")


# --- bit depth ------------------------------------------------------------------------------------------------------


def test_bits_above_bits_stored_are_ignored(tmp_path, stored):
    clean = shown(dicom(tmp_path / "clean.dcm", stored, BitsStored=12), window="full")
    overlay = stored | (np.indices(stored.shape).sum(0) % 16 << 12).astype(np.uint16)
    assert np.array_equal(shown(dicom(tmp_path / "dirty.dcm", overlay, BitsStored=12), window="full"), clean)


def test_high_bit_shifts_the_value(tmp_path, stored):
    clean = shown(dicom(tmp_path / "clean.dcm", stored, BitsStored=12), window="full")
    shifted = (stored << 4) | 7
    path = dicom(tmp_path / "shifted.dcm", shifted, BitsStored=12, HighBit=15)
    assert np.array_equal(shown(path, window="full"), clean)


def test_signed_values_of_few_bits_are_sign_extended(tmp_path):
    values = ramp(SIZE, SIZE, np.int16, 4095) - np.int16(2048)
    full = shown(dicom(tmp_path / "extended.dcm", values, BitsStored=12), window="full")
    masked = (values.view(np.uint16) & 0x0FFF).view(np.int16)  # a writer that leaves the upper bits zero
    assert np.array_equal(shown(dicom(tmp_path / "masked.dcm", masked, BitsStored=12), window="full"), full)
    assert np.array_equal(full, np.floor((values + 2048.0) / 4095 * 255 + 0.5))


def test_bit_depth_that_contradicts_itself(tmp_path, stored):
    with pytest.raises(hx.ImageReadError, match=r"contradicts itself.*BitsStored 17"):
        shown(dicom(tmp_path / "a.dcm", stored, BitsStored=17, HighBit=15))
    with pytest.raises(hx.ImageReadError, match="HighBit 9"):
        shown(dicom(tmp_path / "b.dcm", stored, BitsStored=12, HighBit=9))
    with pytest.raises(hx.UnsupportedImageError, match="BitsAllocated 32"):
        shown(dicom(tmp_path / "c.dcm", stored.astype(np.uint32)))


@pytest.mark.parametrize("value", [0, 1234])
def test_constant_image_is_an_error(tmp_path, value):
    path = dicom(tmp_path / "a.dcm", np.full((SIZE, SIZE), value, np.uint16), BitsStored=12)
    with pytest.raises(hx.ImageReadError, match="same value"):
        shown(path)


# --- padding and overlays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 4095])
def test_padding_is_black_and_left_out_of_the_statistics(tmp_path, photometric, limit):
    pixels = ramp(SIZE, SIZE, np.uint16, 1000)
    bare = shown(dicom(tmp_path / "bare.dcm", pixels[:, 16:], BitsStored=12), fit="stretch")
    assert bare.max() == 255
    padded = pixels.copy()
    padded[:, :16] = 4000
    elements = {"PhotometricInterpretation": photometric, "BitsStored": 12, "PixelPaddingValue": 4000}
    path = dicom(tmp_path / "a.dcm", padded, PixelPaddingRangeLimit=limit, **elements)
    canvas = hx.read_canvas(path, size=SIZE)
    assert (canvas.pixels[:, :16] == 0).all()
    low, high = np.percentile(pixels[:, 16:], [0.5, 99.5])
    assert canvas.provenance["window"]["low"] == pytest.approx(low, abs=12)
    assert canvas.provenance["window"]["high"] == pytest.approx(high, abs=12)


def test_nothing_but_padding_is_an_error(tmp_path):
    pixels = np.full((SIZE, SIZE), 7, np.uint16)
    with pytest.raises(hx.ImageReadError, match="not padding"):
        shown(dicom(tmp_path / "a.dcm", pixels, BitsStored=12, PixelPaddingValue=7))


def test_signed_padding_value(tmp_path):
    pixels = ramp(SIZE, SIZE, np.int16, 2000)
    pixels[:8] = -2000
    path = dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=-2000)
    canvas = hx.read_canvas(path, size=SIZE)
    assert (canvas.pixels[:8] == 0).all()
    assert canvas.provenance["window"]["low"] >= 0


@pytest.mark.parametrize(
    ("vr", "value", "limit"),
    [("US", 63536, None), ("SS", -2000, None), ("US", 63536, 64536), ("US", 4096, 65535)],
    ids=["signed-as-unsigned", "signed", "range", "range-from-the-next-value"],
)
def test_padding_beyond_the_stored_bits_is_no_pixels(tmp_path, stored, vr, value, limit):
    bare = shown(dicom(tmp_path / "bare.dcm", stored, BitsStored=12))
    padding = {"PixelPaddingValue": pydicom.DataElement("PixelPaddingValue", vr, value)}
    if limit is not None:
        padding["PixelPaddingRangeLimit"] = pydicom.DataElement("PixelPaddingRangeLimit", vr, limit)
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, BitsStored=12, **padding), size=SIZE)
    assert np.array_equal(canvas.pixels, bare)
    assert "padding_unusable" in canvas.provenance["flags"]


def test_padding_range_that_reaches_beyond_the_stored_bits(tmp_path, stored):
    ends = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 65535}
    padding = {name: pydicom.DataElement(name, "US", end) for name, end in ends.items()}
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, BitsStored=12, **padding), size=SIZE)
    assert (canvas.pixels[stored >= 4000] == 0).all()
    assert canvas.pixels[stored < 4000].max() == 255
    assert "padding_unusable" not in canvas.provenance["flags"]


@pytest.mark.parametrize("value", [-2000, 63536], ids=["signed", "signed-as-unsigned"])
def test_padding_of_signed_pixels_in_either_writing(tmp_path, value):
    pixels = ramp(SIZE, SIZE, np.int16, 2000)
    pixels[:8] = -2000
    element = pydicom.DataElement("PixelPaddingValue", "SS" if value < 0 else "US", value)
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", pixels, BitsStored=12, PixelPaddingValue=element), size=SIZE)
    assert (canvas.pixels[:8] == 0).all()
    assert canvas.provenance["window"]["low"] >= 0


def test_overlays_and_burned_in_text_do_not_touch_pixels(tmp_path, stored):
    plain = dicom(tmp_path / "plain.dcm", stored, BitsStored=12)
    dataset = pydicom.dcmread(plain)
    dataset.add_new(0x60000010, "US", SIZE)
    dataset.add_new(0x60000011, "US", SIZE)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60003000, "OW", b"\xff" * (SIZE * SIZE // 8))
    dataset.BurnedInAnnotation = "YES"
    dataset.save_as(tmp_path / "overlay.dcm")
    with_overlay = hx.read_canvas(tmp_path / "overlay.dcm", size=SIZE)
    assert np.array_equal(with_overlay.pixels, shown(plain))
    assert "burned_in_annotation" in with_overlay.provenance["flags"]


# --- frames and colour ----------------------------------------------------------------------------------------------


def test_multi_frame_needs_a_choice(tmp_path, stored):
    frames = np.stack([stored, 4095 - stored, stored[::-1]])
    path = dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3, BitsStored=12)
    with pytest.raises(hx.UnsupportedImageError, match=r"3 frames.*frame=0 to frame=2"):
        shown(path)
    for number, frame in enumerate(frames):
        assert np.array_equal(shown(path, frame=number, window="full"), np.floor(frame / 4095 * 255 + 0.5))
    with pytest.raises(hx.ArgumentError, match=r"frame=3.*0 to 2"):
        shown(path, frame=3)


def test_rgb_palette_and_ybr_become_luma(tmp_path):
    grey = ramp(SIZE, SIZE)
    rgb = np.dstack([grey, 255 - grey, grey // 2])
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    path = dicom(tmp_path / "rgb.dcm", rgb, PhotometricInterpretation="RGB", **colour)
    assert np.abs(shown(path) - luma).max() <= 1
    assert "colour_to_luma" in hx.read_canvas(path, size=SIZE).provenance["flags"]
    planar = np.ascontiguousarray(rgb.transpose(2, 0, 1)).reshape(SIZE, SIZE, 3)
    path = dicom(
        tmp_path / "planar.dcm", planar, PhotometricInterpretation="RGB", **{**colour, "PlanarConfiguration": 1}
    )
    assert np.abs(shown(path) - luma).max() <= 1
    ybr = np.dstack([grey, np.full_like(grey, 90), np.full_like(grey, 170)])
    path = dicom(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL", **colour)
    middle = (grey > 90) & (grey < 160)  # where RGB does not saturate, luma is Y
    assert np.abs(shown(path)[middle].astype(int) - grey[middle]).max() <= 2
    tables = {}
    for name, values in zip(("Red", "Green", "Blue"), rgb.reshape(-1, 3)[::16].T, strict=True):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (values[:256].astype("<u2") * 257).tobytes()
    index = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
    path = dicom(tmp_path / "palette.dcm", index, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert np.abs(shown(path) - luma.reshape(-1)[::16][:256][index]).max() <= 1.5
