"""Which DICOM files are read at all: fitness, geometry, broken headers, bombs; and that patient data stay inside."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from xray_makers import PLANTED, dicom, ramp

import hdxray_fast as hx
from hdxray_fast.images import dicom as dicom_module
from hdxray_fast.images.canvas import Limits

pytest.importorskip("pydicom")
SIZE = 64


def shown(path, **options) -> np.ndarray:
    """Brightness of a square DICOM file at its own size."""
    return hx.read_canvas(path, size=SIZE, **options).pixels


@pytest.fixture
def stored() -> np.ndarray:
    return ramp(SIZE, SIZE, np.uint16, 4095)


# --- what is (not) a chest radiograph -------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "PT", "RTIMAGE", "SENTINEL"])
def test_other_modalities_are_refused_unless_asked_for(tmp_path, stored, modality):
    path = dicom(tmp_path / "a.dcm", stored, Modality=modality, BitsStored=12)
    with pytest.raises(hx.UnsupportedImageError, match="any_modality=True") as refused:
        shown(path)
    assert "SENTINEL" not in str(refused.value)
    assert "modality_not_radiography" in hx.read_canvas(path, size=SIZE, any_modality=True).provenance["flags"]


def test_missing_modality_goes_by_the_sop_class(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", BitsStored=12)
    with pytest.raises(hx.UnsupportedImageError, match="CT Image Storage"):
        shown(path)
    path = dicom(tmp_path / "b.dcm", stored, Modality=None, BitsStored=12)
    assert "modality_uncertain" in hx.read_canvas(path, size=SIZE).provenance["flags"]


def test_body_part_view_and_laterality_are_recorded(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, PatientOrientation=["L", "F"], Laterality="L", BitsStored=12)
    about = hx.read_canvas(path, size=SIZE).provenance
    assert (about["body_part"], about["view"], about["laterality"]) == ("CHEST", "frontal", "L")
    assert about["patient_orientation"] == ["L", "F"]
    elements = {"BodyPartExamined": "KNEE", "ViewPosition": "LL", "PatientOrientation": ["R", "F"]}
    other = hx.read_canvas(dicom(tmp_path / "b.dcm", stored, BitsStored=12, **elements), size=SIZE).provenance
    assert {"body_part_not_chest", "lateral_view", "patient_right_is_image_right"} <= set(other["flags"])
    assert (other["body_part"], other["view"], other["view_position"]) == ("KNEE", "lateral", "LL")


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ImagerPixelSpacing", "PixelSpacing", "PixelAspectRatio"])
def test_anisotropic_pixels_keep_their_aspect_in_millimetres(tmp_path, name):
    pixels = ramp(100, 100, np.uint16, 4095)
    spacing = ["2", "1"] if name == "PixelAspectRatio" else [0.4, 0.2]  # rows twice as far apart as columns
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", pixels, BitsStored=12, **{name: spacing}), size=128)
    assert canvas.valid_box == (0, 32, 128, 64)
    stretched = hx.read_canvas(tmp_path / "a.dcm", size=128, fit="stretch")
    assert stretched.valid_box == (0, 0, 128, 128)


@pytest.mark.parametrize("spacing", [[0, 0], [-1, 1], [1, 1000]])
def test_impossible_pixel_spacing_is_flagged(tmp_path, stored, spacing):
    canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", stored, BitsStored=12, PixelSpacing=spacing), size=SIZE)
    assert canvas.valid_box == (0, 0, SIZE, SIZE)
    assert "pixel_spacing_unusable" in canvas.provenance["flags"]


# --- files that are not quite DICOM ---------------------------------------------------------------------------------


def test_no_preamble_only_when_asked(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, "1.2.840.10008.1.2", BitsStored=12)
    whole = path.read_bytes()
    meta = 132 + 12 + int.from_bytes(whole[140:144], "little")
    (tmp_path / "bare.dcm").write_bytes(whole[meta:])
    with pytest.raises(hx.UnsupportedImageError, match="force=True"):
        shown(tmp_path / "bare.dcm")
    assert np.array_equal(shown(tmp_path / "bare.dcm", force=True), shown(path))


def test_missing_transfer_syntax_only_when_asked(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, "1.2.840.10008.1.2", BitsStored=12)
    whole = path.read_bytes()
    meta = 132 + 12 + int.from_bytes(whole[140:144], "little")
    short = b"\x02\0\x02\0UI\x02\x001\0"
    patched = whole[:132] + b"\x02\0\0\0UL\x04\0" + len(short).to_bytes(4, "little") + short + whole[meta:]
    (tmp_path / "bare.dcm").write_bytes(patched)
    with pytest.raises(hx.UnsupportedImageError, match=r"no transfer syntax.*force=True"):
        shown(tmp_path / "bare.dcm")
    assert np.array_equal(shown(tmp_path / "bare.dcm", force=True), shown(path))


# --- bombs ----------------------------------------------------------------------------------------------------------


def test_declared_sizes_are_capped_before_allocation(tmp_path, stored):
    path = dicom(tmp_path / "a.dcm", stored, Rows=65000, Columns=65000, BitsStored=12)
    with pytest.raises(hx.ImageTooLargeError, match="65000 x 65000"):
        shown(path)
    path = dicom(tmp_path / "b.dcm", stored[None], NumberOfFrames=2_000_000, BitsStored=12)
    with pytest.raises(hx.ImageTooLargeError, match="2000000 frames"):
        shown(path, frame=0)


def test_deflated_bomb_is_not_inflated(tmp_path):
    path = dicom(tmp_path / "a.dcm", np.zeros((4000, 4000), np.uint16), "1.2.840.10008.1.2.1.99", BitsStored=12)
    assert path.stat().st_size < 100_000
    with pytest.raises(hx.ImageTooLargeError, match="deflated"):
        shown(path, limits=Limits(max_bytes=1_000_000))


# --- privacy --------------------------------------------------------------------------------------------------------


def test_no_patient_data_in_provenance_errors_or_logs(tmp_path, stored, capfd, caplog, recwarn):
    elements = {  # not allowed in these elements, so that pydicom complains, and quotes them
        "BodyPartExamined": "Sentinel's chest",
        "ViewPosition": "sentinel",
        "PatientOrientation": ["sentinel", "F"],
        "WindowCenterWidthExplanation": "sentinel",
    }
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, **elements)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    text = json.dumps(hx.read_canvas(path, size=SIZE).provenance)
    whole = path.read_bytes()
    for cut in range(140, len(whole) - 1, 97):  # through all of the header and into the pixels
        (tmp_path / "cut.dcm").write_bytes(whole[:cut])
        with pytest.raises(hx.HDXrayError) as error:
            shown(tmp_path / "cut.dcm")
        text += f"{error.value!r} {error.value.__cause__!r} {error.value.__context__!r}"
    (tmp_path / "broken.dcm").write_bytes(
        whole.replace(b"4095", b"x").replace(b"UI", b"ZZ").replace(b"\x10\x00\x10\x00PN", b"\x10\0\x10\0US")
    )
    text += json.dumps(hx.read_canvas(tmp_path / "broken.dcm", size=SIZE).provenance)
    captured = capfd.readouterr()
    text += f"{captured.out} {captured.err} {caplog.text} {[str(w.message) for w in recwarn]}"
    assert not [word for word in PLANTED if word in text.lower()]


def test_dicom_without_pydicom_says_what_to_install(tmp_path, stored, monkeypatch):
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(hx.MissingDependencyError, match=r"3 or later: .*pip install '\w"):
        shown(path)


def test_warnings_are_shown_again_after_files_that_were_read_at_once(tmp_path, stored, monkeypatch):
    """Whichever thread ends first."""
    path, before, decode = dicom(tmp_path / "a.dcm", stored), list(warnings.filters), dicom_module._decode
    inside, both, first_gone = (threading.Event() for _ in range(3))
    turns = iter([(inside, both), (both, first_gone)])

    def in_turn(*args):
        begun, ended = next(turns)
        begun.set()
        assert ended.wait(60)
        return decode(*args)

    monkeypatch.setattr(dicom_module, "_decode", in_turn)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hx.read_canvas, path, size=SIZE)
        assert inside.wait(60)
        second = pool.submit(hx.read_canvas, path, size=SIZE)
        first.result()
        first_gone.set()
        second.result()
    assert warnings.filters == before
