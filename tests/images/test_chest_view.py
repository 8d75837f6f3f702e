"""View and body part by the header, every element and word that says so, and the view by the pixels."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from toy_radiographs import draw_radiograph
from xray_makers import dicom

import hdxray_fast as hx
from hdxray_fast.images.contour import _look
from hdxray_fast.images.overlay import describe_contour
from hdxray_fast.images.view import judge_view
from hdxray_fast.images.view_net import view_chances
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
        ("XTABLE", "lateral"), ("AP XTABLE", "frontal"), ("XTABLE DECUBITUS", ""), ("XTABLE OBL", "other"),
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
        ("CHEST CROSS-TABLE", "lateral"), ("PORT CHEST", ""), ("CHEST HORIZONTAL BEAM", ""),
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


# --- by the pixels ----------------------------------------------------------------------------------------------------


def test_header_and_pixels_together():
    sure = (0.6, 0.7, 0.6)
    assert judge_view("", (0.1, 0.85, 0.05), sure) == hx.ChestView("lateral", "pixels", 0.85)
    assert judge_view("", (0.33, 0.65, 0.02), sure) == hx.ChestView("", "", 0.65, ("view_unsure",))
    assert judge_view("frontal", (0.33, 0.65, 0.02), sure) == hx.ChestView("frontal", "header", 0.33)
    assert judge_view("frontal", (0.1, 0.85, 0.05), sure).flags == ("view_contradiction",)
    assert judge_view("lateral", None, sure) == hx.ChestView("lateral", "header")
    assert judge_view("", None, sure) == hx.ChestView()


def test_a_contour_tells_the_view_too():
    canvas = hx.read_canvas(draw_radiograph(0), size=320)
    chances = view_chances(_look(canvas, canvas.valid_box)[0].signs)
    assert chances.shape == (3,) and abs(chances.sum() - 1) < 1e-12
    contour = hx.find_contour(canvas)
    assert contour.view == hx.find_view(canvas) and contour.view.probability == round(float(chances.max()), 4)
    assert hx.find_contour(canvas, "rectangle").view == hx.ChestView()  # nobody has looked
    record = describe_contour(canvas, contour, "a", 16)
    assert (record["view"], record["view_evidence"]) == (contour.view.name, contour.view.evidence)


@pytest.mark.skipif("HDXRAY_TEST_DATA" not in os.environ, reason="HDXRAY_TEST_DATA names no folder of radiographs")
def test_views_of_real_pictures():
    """They were trained on: held-out counts are in docs/contour.md, this guards what is shipped."""
    root = Path(os.environ["HDXRAY_TEST_DATA"])
    found = {"lateral": [], "ct": [], "frontal": []}
    for row in csv.DictReader((root / "views" / "index.csv").open(encoding="utf-8")):
        found[row["view"]].append(hx.find_view(hx.read_canvas(root / "views" / row["image"], size=320)).name)
    for row in list(csv.DictReader((root / "recognition" / "index.csv").open()))[::5]:
        found["frontal"].append(hx.find_view(hx.read_canvas(root / "recognition" / row["image"], size=320)).name)
    assert found["lateral"].count("lateral") >= 0.9 * len(found["lateral"])
    assert found["ct"].count("other") >= 0.9 * len(found["ct"])
    assert sum(name in ("frontal", "") for name in found["frontal"]) >= 0.99 * len(found["frontal"])
