"""View and body part by the header: every element and word that says so, and what is not believed."""

from __future__ import annotations

import pytest
from toy_radiographs import draw_radiograph
from xray_makers import dicom

import hdxray_fast as hx
from hdxray_fast.images.view_words import part_in_words, view_in_words

pydicom = pytest.importorskip("pydicom")


def about(path, **elements) -> dict:
    return hx.read_canvas(dicom(path, draw_radiograph(0), **elements), size=96).provenance


def coded(value: str, scheme: str, meaning: str = "") -> list:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("CHEST", "CHEST"), ("PORT CHEST", "CHEST"), ("2- TORAX", "TORAX"), ("T?RAX", "TORAX"), ("TÒRAX", "TORAX"),
        ("TÃ\x93RAX", "TORAX"), ("T\ufffdRAX", "TORAX"), ("Pecho", "PECHO"), ("TORACE", "TORACE"),
        ("BRUSTKORB", "BRUSTKORB"), ("PULMÕES", "PULMAO"), ("T-SPINE", "T SPINE"),
        ("CHESTABDOMEN", "CHEST"), ("胸部", "胸"), ("胸部".encode().decode("latin-1"), "胸"),
        ("ГРУДНАЯ КЛЕТКА", "ГРУД"), ("KLATKA PIERSIOWA", "KLATKA PIERS"),
    ],
)  # fmt: skip
def test_a_chest_in_any_language_and_damage(text, word):
    assert part_in_words(text) == ("chest", word)


def test_unknown_is_not_other():
    assert part_in_words("HANDS") == ("other", "HAND") and part_in_words("CRÂNIO") == ("other", "CRANIO")
    for text in ("COLLEGE", "WHOLEBODY", "BRUST", "SENTINELPART"):  # COLLEGE has no LEG; Brust is chest or breast
        assert part_in_words(text) == ("unknown", "")
    assert part_in_words(" 12 ") == part_in_words("") == ("", "")


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "frontal"), ("P.A.", "frontal"), ("AP AXIAL", "frontal"), ("ANTERO-POSTERIOR", "frontal"),
        ("LLD", "frontal"), ("RLD", "frontal"), ("AP LLD", "frontal"), ("RIGHT LATERAL DECUBITUS", "frontal"),
        ("LL", "lateral"), ("RL", "lateral"), ("LATERAL LEFT", "lateral"), ("XTABLE LATERAL", "lateral"),
        ("PERFIL", "lateral"), ("LATERO-LATERALE", "lateral"), ("側面", "lateral"), ("LAO", "other"),
        ("SWIMMERS", "other"), ("PA AND LATERAL", ""), ("COLLATERAL", ""), ("SENTINELVIEW", ""), ("", ""),
    ],
)  # fmt: skip
def test_views_by_name(text, view):
    assert view_in_words(text) == view


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("CHEST PA", "frontal"), ("W Thorax seitlich", "lateral"), ("Torace LL", "lateral"), ("TORACE PA/LL", ""),
        ("Chest 2 views, PA and Lateral", ""), ("LL extremity", ""), ("CHEST LAT XTABLE", "lateral"),
    ],
)  # fmt: skip
def test_descriptions_that_name_one_view(text, view):
    assert view_in_words(text, prose=True) == view


@pytest.mark.parametrize(
    ("elements", "view", "element"),
    [
        ({"ViewCodeSequence": ("R-10236", "SNM3", "lateral")}, "lateral", "ViewCodeSequence"),
        ({"ViewCodeSequence": ("399198007", "SCT")}, "lateral", "ViewCodeSequence"),
        ({"ViewCodeSequence": ("272479007", "SCT")}, "frontal", "ViewCodeSequence"),
        ({"ViewCodeSequence": ("X-1", "99LOCAL", "Thorax seitlich")}, "lateral", "ViewCodeSequence"),
        ({"PatientOrientation": ["A", "F"]}, "lateral", "PatientOrientation"),
        ({"PatientOrientation": ["PL", "F"]}, "lateral", "PatientOrientation"),
        ({"PatientOrientation": ["F", "A"]}, "lateral", "PatientOrientation"),
        ({"PatientOrientation": ["L", "F"]}, "frontal", "PatientOrientation"),
        ({"PatientOrientation": ["L", "P"]}, "", ""),
        ({"SeriesDescription": "Thorax lat."}, "lateral", "SeriesDescription"),
        ({"ProtocolName": "CHEST AP"}, "frontal", "ProtocolName"),
        ({"AcquisitionDeviceProcessingDescription": "CHEST,LAT"}, "lateral", "AcquisitionDeviceProcessingDescription"),
        ({"ViewPosition": "LATERAL LEFT", "ProtocolName": "CHEST PA"}, "lateral", "ViewPosition"),
        ({}, "", ""),
    ],
)
def test_every_element_that_tells_the_view(tmp_path, elements, view, element):
    if "ViewCodeSequence" in elements:
        elements = {"ViewCodeSequence": coded(*elements["ViewCodeSequence"])}
    found = about(tmp_path / "a.dcm", **{"ViewPosition": "", **elements})
    assert (found["view"], found["view_element"]) == (view, element)
    assert found["view_evidence"] == ("header" if view else "") and "view_contradiction" not in found["flags"]


def test_a_header_that_contradicts_itself_is_flagged(tmp_path):
    found = about(tmp_path / "a.dcm", ViewPosition="PA", PatientOrientation=["A", "F"])
    assert found["view"] == "frontal" and "view_contradiction" in found["flags"]


def test_body_part_elsewhere_in_the_header(tmp_path):
    found = about(tmp_path / "a.dcm", BodyPartExamined="", ProtocolName="RX TORAX PA")
    assert (found["body_part"], found["body_part_element"]) == ("TORAX", "ProtocolName")
    found = about(tmp_path / "b.dcm", BodyPartExamined="ROOM SEVEN", ProtocolName="CHEST PA")
    assert found["body_part"] == "CHEST" and "body_part_unknown" not in found["flags"]
    found = about(tmp_path / "c.dcm", BodyPartExamined="ROOM SEVEN", ProtocolName="KNEE")
    assert found["body_part"] == "unknown" and "body_part_unknown" in found["flags"]
    region = coded("51185008", "SCT", "Thorax")
    assert about(tmp_path / "d.dcm", BodyPartExamined="", AnatomicRegionSequence=region)["body_part"] == "THORAX"
