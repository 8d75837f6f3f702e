"""Studies from every layout with its quirks; what is left out is counted, what would spoil results is refused."""

from __future__ import annotations

import gzip
import json

import pytest
from report_makers import MIMIC, mimic_place, write_annotation, write_csv, write_iu_xml, write_mimic

import hdxray_fast as hx
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.mimic_cxr import extract_sections
from hdxray_fast.reports.predictions import read_predictions
from hdxray_fast.reports.studies import Study, StudyTable, finish_table


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def entry(number: int, images: list[str] | str, **more) -> dict:
    return {"id": f"CXR{number}", "report": f"Report {number}.", "image_path": images, **more}


# R2Gen's annotation.json ----------------------------------------------------------------------------------------------


def test_annotation_with_one_and_two_images(tmp_path):
    touch(tmp_path / "images", "CXR1/0.png", "CXR1/1.png", "CXR3/0.png")
    touch(tmp_path, "CXR2.png")  # beside the annotation, not below images
    path = write_annotation(
        tmp_path,
        train=[entry(1, ["CXR1/0.png", "CXR1/1.png"]), entry(2, "CXR2.png", subject_id=7)],
        val=[],
        test=[entry(3, ["CXR3/0.png"])],
    )
    table = read_studies(path)
    assert table.notes == []
    assert [study.id for study in table.studies] == ["CXR1", "CXR2", "CXR3"]
    first, second, third = table.studies
    assert first.images == tuple(str(tmp_path / "images" / "CXR1" / f"{i}.png") for i in (0, 1))
    assert (second.images, second.patient) == ((str(tmp_path / "CXR2.png"),), "7")
    assert (third.split, third.report, third.language) == ("test", "Report 3.", "en")
    assert table.split("train") == [first, second]
    assert read_studies(path, layout="r2gen", images=tmp_path / "images", need_images=False).studies[0] == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no 'train', 'val' or 'test'"),
        ("{", "not a readable JSON"),
        ("[" * 100_000, "not a readable JSON"),
        ('{"train": 3}', "train is no list"),
        ('{"train": [5]}', r"train\[0\] is no object"),
        ('{"train": [{"id": "a", "report": "x"}]}', r"train\[0\] has no 'image_path'"),
        ('{"train": [{"id": "a", "report": 4, "image_path": "x"}]}', "report is a int"),
        ('{"train": [{"id": "a", "report": "x", "image_path": [4]}]}', "image_path is"),
        (
            '{"train": [{"id": "a", "report": "x", "image_path": "x", "language": "fr"}]}',
            r"train\[0\]: language is none of 'en', 'zh'",
        ),
    ],
)
def test_annotation_that_is_none(tmp_path, content, message):
    (tmp_path / "annotation.json").write_text(content)
    with pytest.raises(hx.ConfigError, match=message):
        read_studies(tmp_path / "annotation.json")


# CSV ------------------------------------------------------------------------------------------------------------------


def test_csv_with_two_images_and_sections(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png")
    rows = [
        {"uid": "1", "image": "a.png; b.png", "lateral": "", "findings": 'Says "a, b".\nAnd.', "impression": "Well."},
        {"uid": "2", "image": "c.png", "lateral": "d.png", "findings": "", "impression": "Only this."},
        {"uid": "", "image": "e.png", "lateral": "", "findings": "X.", "impression": ""},
    ]
    rows = [{**row, "split": split} for row, split in zip(rows, ("train", "valid", "test"), strict=True)]
    path = write_csv(tmp_path / "studies.csv", rows)
    both = read_studies(path, sections="both")
    assert [study.id for study in both.studies] == ["1", "2", "row-4"]  # as a spreadsheet counts
    assert both.studies[0].report == 'Says "a, b".\nAnd. Well.'
    assert [len(study.images) for study in both.studies] == [2, 2, 1]
    assert [study.split for study in both.studies] == ["train", "val", "test"]
    findings = read_studies(path)
    assert [study.id for study in findings.studies] == ["1", "row-4"]
    assert findings.notes == ["1 study left out: the report, or the section asked for, is empty (row 3)"]
    assert read_studies(path, report_column="impression").studies[0].report == "Well."
    named = [{"Foto": row["image"], "Fall": f"p{row['uid']}", "report": "R."} for row in rows]
    named = read_studies(write_csv(path, named), image_column="foto", patient_column="Fall", val_share=0, test_share=0)
    assert [(len(study.images), study.patient) for study in named.studies] == [(2, "p1"), (1, "p2"), (1, "p")]
    with pytest.raises(hx.ConfigError, match=r"^image_column: .* has no column 'Bilder'; its first line"):
        read_studies(path, image_column="Bilder")
    with pytest.raises(hx.ConfigError, match=r"^image_column: names a column of a CSV, which .* is not"):
        read_studies(tmp_path, layout="iu-xray", image_column="Foto")


def test_csv_columns_by_any_case_and_every_numbered_view(tmp_path):
    touch(tmp_path, *(f"{row}{view}.png" for row in "abc" for view in range(4)))
    rows = [
        {"Image_10": f"{row}3.png", "Image_1": f"{row}0.png;{row}1.png", "IMAGE_2": f"{row}2.png", "Findings": "F.",
         "IMPRESSION": "I.", "Split": split, "Language": "zh" if row == "c" else ""}
        for row, split in zip("abc", ("Train", "val", "TEST"), strict=True)
    ]  # fmt: skip
    path = write_csv(tmp_path / "studies.csv", rows)
    table = read_studies(path, sections="both")
    assert [study.split for study in table.studies] == ["train", "val", "test"]
    assert [study.language for study in table.studies] == ["en", "en", "zh"]
    assert {study.report for study in table.studies} == {"F. I."}
    assert table.studies[1].images == tuple(str(tmp_path / f"b{view}.png") for view in range(4))
    assert table.notes == []
    path = write_csv(tmp_path / "whole.csv", [{"image": "a0.png", "report": "All of it.", "split": "train"}])
    (note,) = read_studies(path, sections="both", val_share=0, test_share=0).notes
    assert note == "sections=both says nothing here: the column 'report' is read as it is"


def test_csv_in_chinese_and_by_patient(tmp_path):
    names = [f"{i}.png" for i in range(40)]
    touch(tmp_path, *names)
    rows = [{"image": n, "patient": f"p{i // 2}", "report": f"双肺清晰{i}。"} for i, n in enumerate(names)]
    path = write_csv(tmp_path / "studies.csv", rows)
    table = read_studies(path, language="zh", val_share=0.2, test_share=0.3)
    assert {study.language for study in table.studies} == {"zh"}
    splits = [study.split for study in table.studies]
    assert splits[::2] == splits[1::2]  # both studies of a patient are together
    assert set(splits) == {"train", "val", "test"}
    assert [s.split for s in read_studies(path, language="zh", val_share=0.2, test_share=0.3).studies] == splits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"no column of images and none of reports: .*needed are 'image' \(or image_column\)"),
        ("image,b\n1,2\n", r"no column of reports: .*needed are 'image'"),
        ("image,report\na.png,clear, and dry\n", "line 2: more fields"),
        ("image,report,split\na.png,clear\n", "line 2: fewer fields"),
        ('image,report\na.png,"never closed\n', "not a readable CSV"),
        ("image,report,language\na.png,klar,de\n", "row 2: language is none of"),
        ("image,report,split\na.png,clear,train\nb.png,clear,\n", "some rows have a split and some have none"),
        ("image,report,split\na.png,clear,holdout\n", "row 2: its split is none of train"),
        ("image,report\na.png,\nb.png, \n", r"no study can be used \(2 studies left out: the report"),
        ("image,report\n", "no study can be used|needed are"),
        ("image,report, image \na.png,clear,b.png\n", "its columns 1 and 3 have one name; rename or remove one"),
        ("\nimage,report,language\n\na.png,klar,en\n\nb.png,klar,de\n", "row 6: language is none of"),
        ("image,report\na.png,.\nb.png,。\n", r"2 studies left out: the report.* is empty \(row 2, row 3\)"),
        ("image,report,patient,split\na.png,x,P1,train\nb.png,y,P1 ,test\n", "one patient is in two splits"),
        ("id,image,report\n1,a.png,x\n1,b.png,y\n", "row 2 and row 3 have one id: a study is listed more than once"),
    ],
)
def test_csv_that_is_refused(tmp_path, text, message):
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "studies.csv").write_text(text)
    with pytest.raises(hx.ConfigError, match=message):
        read_studies(tmp_path / "studies.csv")


def test_csv_gzipped_and_not_utf8(tmp_path):
    touch(tmp_path, "a.png")
    path = tmp_path / "studies.csv.gz"
    path.write_bytes(gzip.compress("\ufeffimage,report\na.png,klar\n".encode()))
    assert read_studies(path, layout="csv").studies[0].report == "klar"
    path.write_bytes(gzip.compress(b"image,report\na.png,klar\n")[:20])
    with pytest.raises(hx.ConfigError, match="not a readable CSV"):
        read_studies(path, layout="csv")
    (tmp_path / "gbk.csv").write_bytes("image,report\na.png,双肺清晰\n".encode("gbk"))
    with pytest.raises(hx.ConfigError, match="not UTF-8"):
        read_studies(tmp_path / "gbk.csv")


def test_columns_without_a_name_are_passed_over(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "studies.csv").write_text("image,report,,\na.png,clear,,\n")
    assert read_studies(tmp_path / "studies.csv").studies[0].report == "clear"


def test_ids_are_read_without_spaces_around_them_and_null_is_none(tmp_path):
    touch(tmp_path, "1.png", "2.png", "3.png")
    train = [entry(1, "1.png", subject_id=None), entry(2, "2.png", subject_id=float("nan"))]
    path = write_annotation(tmp_path, train=train, val=[], test=[entry(3, "3.png", subject_id=None)])
    assert read_studies(path).studies.column("patient") == ["", "", ""]
    path = write_annotation(tmp_path, train=[entry(1, "1.png", subject_id="7 ")], val=[], test=[entry("2 ", "2.png")])
    table = read_studies(path)
    assert (table.studies.column("id"), table.studies.column("patient")) == (["CXR1", "CXR2"], ["7", ""])
    path = write_csv(tmp_path / "studies.csv", [{"id": " s1", "image": "1.png", "report": "x", "patient": "P1 "}])
    assert read_studies(path).patients == ["P1"]
    made = write_csv(tmp_path / "made.csv", [{"id": "s1 ", "generated": "x"}])
    assert read_predictions(made)[0].id == read_studies(path).studies[0].id == "s1"


# IU X-ray -------------------------------------------------------------------------------------------------------------


def test_iu_xray_xml(tmp_path):
    reports, images = tmp_path / "ecgen-radiology", tmp_path / "png"
    sections = {"COMPARISON": "None.", "FINDINGS": "Heart is\n normal &amp; small.", "IMPRESSION": "Normal chest."}
    write_iu_xml(reports / "10.xml", "CXR10", sections, ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001"])
    write_iu_xml(reports / "2.xml", "CXR2", {**sections, "FINDINGS": ""}, ["CXR2_IM-1"])
    write_iu_xml(reports / "3.xml", "CXR3", sections, [])
    (reports / "4.xml").write_text("<eCitation><uId id='CXR4'/>")
    (reports / "5.xml").write_text('<!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>')
    (reports / "6.xml").write_text('<!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>', encoding="utf-16")
    touch(images, "CXR10_IM-0002-1001.png", "deeper/CXR10_IM-0002-2001.dcm", "CXR2_IM-1.png")
    table = read_studies(reports, images=images)
    assert [study.id for study in table.studies] == ["CXR10"]
    assert table.studies[0].report == "Heart is normal & small."
    assert [path.rsplit(".", 1)[1] for path in table.studies[0].images] == ["png", "dcm"]
    notes = " | ".join(table.notes)
    assert "3 XML files left out: unreadable (4.xml" in notes
    assert all(f"{number}.xml: declares XML entities" in notes for number in (5, 6))
    assert "is empty (2.xml)" in notes and "no image is named (3.xml)" in notes
    impressions = read_studies(reports, images=images, sections="impression", need_images=False)
    assert [study.id for study in impressions.studies] == ["CXR2", "CXR3", "CXR10"]  # in the order of their numbers
    assert impressions.studies[0].report == "Normal chest."
    touch(images, "CXR10_IM-0002-1001.dcm")  # the same picture in its other form
    assert read_studies(reports, images=images).studies[0].images[0].endswith("CXR10_IM-0002-1001.png")
    touch(images, "smaller/CXR10_IM-0002-1001.png")
    with pytest.raises(hx.ConfigError, match=r"^images: .*IM-0002-1001.* and .*smaller.* have one name"):
        read_studies(reports, images=images)


# MIMIC-CXR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        (MIMIC, "There is no focal consolidation, pleural effusion or pneumothorax. Bilateral nodular opacities that "
         "most likely represent nipple shadows.", "No acute cardiopulmonary process."),
        (" FINAL REPORT\n HISTORY: Cough.\n\n CHEST, TWO VIEWS:  The lungs\n are clear.\n\n CONCLUSION: Normal.\n",
         "The lungs are clear.", "Normal."),
        (" PA AND LATERAL CHEST RADIOGRAPHS: Old.\n FINDINGS: New.\n", "New.", ""),
        (" FINDINGS AND IMPRESSION:  Stable.\n\n NOTIFICATION: Called at 10:30.\n", "Stable.", ""),
        (" Findings : Clear at 9:00.\n Impression:\n  1. Normal.\n  2. Dry.\n", "Clear at 9:00.", "1. Normal. 2. Dry."),
        (" FINDINGS:\n LUNGS: Clear.\n HEART AND AORTA: Normal.\n OTHER: None.\n IMPRESSIONS: Fine.\n WET READ: x\n",
         "LUNGS: Clear. HEART AND AORTA: Normal. OTHER: None.", "Fine."),
        (" REASON FOR EXAMINATION: Cough.\n EXAMINATION: CHEST RADIOGRAPH\n TYPE OF VIEW: AP\n", "", ""),
        (" FINAL REPORT\n The lungs are clear.\n", "", ""),
        (" RIGHT RIB VIEWS: No fracture.\n", "No fracture.", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_sections_of_mimic_reports(text, findings, impression):
    assert extract_sections(text) == {"findings": findings, "impression": impression}
    windows = text.replace("\n", "\r\n")
    assert extract_sections(windows) == {"findings": findings, "impression": impression}


def test_long_lines_take_no_time():
    for text in ("FINDINGS" + " " * 300_000, "A " * 300_000, "FINDINGS: " + " \n" * 300_000):
        assert extract_sections(text) == {"findings": "", "impression": ""}


def mimic_row(dicom: str, study: str, subject: str, split: str, view: str) -> dict:
    return {"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": split, "ViewPosition": view}


def test_mimic_cxr_layout(tmp_path):
    rows = [
        mimic_row("aa", "50000001", "10000032", "train", "LATERAL"),
        mimic_row("bb", "50000001", "10000032", "train", "PA"),
        mimic_row("cc", "50000002", "10000032", "train", ""),
        mimic_row("dd", "50000003", "11000033", "validate", "AP"),
        mimic_row("ee", "50000004", "12000034", "test", "AP"),
    ]
    no_sections = " FINAL REPORT\n The lungs are clear.\n"
    texts = {("10000032", "50000001"): MIMIC, ("11000033", "50000003"): MIMIC, ("12000034", "50000004"): no_sections}
    folder = write_mimic(tmp_path / "mimic", rows, texts)
    table = read_studies(folder)
    assert [(study.id, study.split, study.patient) for study in table.studies] == [
        ("s50000001", "train", "10000032"),
        ("s50000003", "val", "11000033"),
    ]
    assert [path.rsplit("/", 1)[1] for path in table.studies[0].images] == ["bb.jpg", "aa.jpg"]  # frontal first
    assert table.notes == [
        "1 study left out: their text file is missing (row 4)",
        "1 study left out: the report, or the section asked for, is empty (row 6)",
    ]
    assert (
        read_studies(folder, sections="both").studies[0].report.endswith("shadows. No acute cardiopulmonary process.")
    )
    (folder / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,study_id\na,b\n")
    with pytest.raises(hx.ConfigError, match="no column 'split'"):
        read_studies(folder)


def test_mimic_reports_in_a_folder_of_their_own(tmp_path):
    folder = write_mimic(tmp_path / "mimic", [mimic_row("aa", "5", "10000032", "train", "PA")], {})
    text = mimic_place(folder / "mimic-cxr-reports", "10000032") / "s5.txt"
    text.parent.mkdir(parents=True)
    text.write_bytes(MIMIC.encode() + b"\n ADDENDUM: caf\xe9\n")  # not UTF-8: read all the same
    assert read_studies(folder).studies[0].report.startswith("There is no focal")


# What goes for all of them --------------------------------------------------------------------------------------------


def test_a_study_goes_on_without_the_image_that_is_missing(tmp_path):
    touch(tmp_path, "1.png")
    path = write_annotation(
        tmp_path, train=[entry(1, ["1.png", "gone.png"]), entry(2, ["gone.png", "away.png"]), entry(3, [])]
    )
    table = read_studies(path, val_share=0, test_share=0)
    assert [(study.id, study.images) for study in table.studies] == [("CXR1", (str(tmp_path / "1.png"),))]
    notes = " | ".join(table.notes)
    assert "1 study left out: no image is named (train[2])" in notes
    assert "2 image files not found" in notes
    assert "1 study read without an image that is missing" in notes
    assert "1 study left out: none of the images exists (train[1])" in notes
    (tmp_path / "1.png").unlink()
    with pytest.raises(hx.ConfigError, match=r"^images: .*nowhere does not exist; it is the folder"):
        read_studies(path, val_share=0, test_share=0, images=tmp_path / "nowhere")
    with pytest.raises(hx.ConfigError, match=r"none of the 3 images exists.*\(--images\)"):
        read_studies(path)
    assert len(read_studies(path, need_images=False, val_share=0, test_share=0)) == 3


def test_leaks_between_splits_are_refused(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    leaks = {
        r"one patient is in two splits \(train\[0\] is in train, test": (
            [entry(1, "1.png", subject_id=7)],
            [entry(2, "2.png", subject_id=7)],
        ),
        "one image is in two splits": ([entry(1, "1.png")], [entry(2, "1.png")]),
    }
    for message, (train, test) in leaks.items():
        path = write_annotation(tmp_path, train=train, val=[], test=test)
        with pytest.raises(hx.ConfigError, match=message):
            read_studies(path)


def test_what_is_asked_for_is_checked(tmp_path):
    touch(tmp_path, "1.png")
    path = write_annotation(tmp_path, train=[entry(1, "1.png")])
    for options, message in [
        ({"sections": "all"}, "sections: got 'all'"),
        ({"language": "fr"}, "language: got 'fr'"),
        ({"layout": "coco"}, "layout: got 'coco'"),
        ({"val_share": 1.5}, "val_share"),
    ]:
        with pytest.raises(hx.ConfigError, match=message):
            read_studies(path, **options)
    with pytest.raises(hx.ConfigError, match="does not exist"):
        read_studies(tmp_path / "nothing.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(hx.ConfigError, match="none of the layouts"):
        read_studies(tmp_path / "empty")
    (tmp_path / "reports.txt").touch()
    with pytest.raises(hx.ConfigError, match="none of the layouts"):
        read_studies(tmp_path / "reports.txt")


def test_raw_reports_are_kept(test_data):
    """All 3,425 real reports pass through as they were written."""
    source = json.loads((test_data / "reports" / "iu_xray_reports.json").read_text())
    table = StudyTable([Study(id=e["id"], images=tuple(e["images"]), report=e["findings"]) for e in source])
    table = finish_table(table, "IU X-ray", 0.1, 0.2, 0, need_images=False)
    assert len(table) == 3425
    assert table.notes == ["no study is given as val or test: drawn by patient, split_seed 0"]
    assert [study.report for study in table.studies] == [e["findings"] for e in source]
    assert 0.05 < len(table.split("val")) / 3425 < 0.15
