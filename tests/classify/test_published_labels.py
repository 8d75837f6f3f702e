"""Each preset on files written as their authors publish them, oddities included."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.classify.label_presets import CHEXPERT, PRESETS
from hdxray_fast.classify.labels import read_labels, read_manifest
from hdxray_fast.classify.padchest_tree import BROADER, with_broader
from hdxray_fast.data.seen import Seen

pytest.importorskip("pandas")

PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,Report,MethodLabel,Labels,Localizations,"
    "LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return path


# --- PadChest ---------------------------------------------------------------------------------------------------------
def padchest_row(number: int, labels: str, patient: str | None = None, projection: str = "PA") -> str:
    """A row as the published file has them: an index without a name, floats for years, lists as Python prints them."""
    patient = f"{1000 + number}" if patient is None else patient
    report = "nan" if labels == "nan" else "cardiomegal . sin cambi"
    return (
        f"{number},{number}_abc.png,{number % 54},20140915,{number}0,{patient},1930.0,F,POSTEROANTERIOR,{projection},"
        f"Manual review of DICOM fields,No,CR,Imaging Dynamics Company Ltd,{report},RNN_model,"
        f"{labels},\"['loc cardiac']\",\"[['cardiomegaly', 'loc cardiac']]\",['C0018800'],['C1522601']"
    )


def test_padchest_holds_the_text_nan(tmp_path):
    """Rows without a report have ``nan`` in Report and in Labels; some have it for a patient, too."""
    kinds = ["\"['cardiomegaly', ' pleural effusion ', '']\"", "\"['normal']\"", "nan", "\"['unchanged']\"", '"[]"']
    rows = [padchest_row(i, kinds[i % 5]) for i in range(300)]
    rows[5], rows[10] = padchest_row(5, kinds[0], patient="nan"), padchest_row(10, kinds[0], patient="nan")
    rows += [padchest_row(300, kinds[0], projection="L"), padchest_row(301, kinds[0], projection="nan")]
    table = PRESETS["padchest"](write(tmp_path / "PADCHEST_x_160K_01.02.19.csv.gz", [PADCHEST_HEADER, *rows]), None)
    assert table.classes == ["cardiomegaly", "pleural effusion"]
    assert len(table) == 180
    assert table.labels.sum(0).tolist() == [60, 60]
    assert table.notes == [
        "1 image of no frontal view",
        "1 image whose view is not told (Projection is empty)",
        "60 images without labels",
        "60 images marked as unusable, or as unchanged and no more",
        "2 images without PatientID: each a patient of its own",
    ]
    assert len(set(table.patients)) == 180
    assert table.paths[3].endswith("5/5_abc.png")
    assert read_labels(tmp_path, preset="padchest", classes=["cardiomegaly"]).classes == ["cardiomegaly"]


def test_a_generic_csv_still_refuses_the_text_nan(tmp_path):
    rows = [f"{i}.png,{'nan' if i == 3 else i % 2}" for i in range(20)]
    with pytest.raises(hx.ConfigError, match="row 5, column 'mass' holds 'nan'"):
        read_labels(write(tmp_path / "labels.csv", ["image,mass", *rows]))


# --- CheXpert ---------------------------------------------------------------------------------------------------------
def chexpert(path, root: str, split: str, first: int, count: int, views: bool = True, slash: str = "/"):
    header = ["Path", *(["Sex", "Age", "Frontal/Lateral", "AP/PA"] if views else []), *CHEXPERT]
    rows = []
    for number in range(count):
        name = f"{root}{split}/patient{first + number}/study1/view1_frontal.jpg".replace("/", slash)
        values = ["1.0", "0.0", "-1.0", ""] if split == "train" else ["1.0", "0.0"]
        rows.append([name, *(["Unknown", "0", "Frontal", "AP"] if views else []), *[values[number % len(values)]] * 14])
    rows.append([rows[0][0].replace("view1_frontal", "view2_lateral"), *rows[0][1:]])
    if views:
        rows[-1][3] = "Lateral"
    return write(path, [",".join(header), *map(",".join, rows)])


ROOTS = ["", "CheXpert-v1.0-small/", "CheXpert-v1.0/", "/data/test/CheXpert-v1.0/", "D:/x rays/CheXpert-v1.0/", "./"]


@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("root", ROOTS)
def test_chexpert_paths_from_anywhere(tmp_path, root, slash):
    """The lists of the valid and the test split, whatever stands above their folders; the files are found below."""
    folder = tmp_path / "CheXpert-v1.0"
    options = {"slash": slash}
    chexpert(folder / "train.csv", root, "train", 10001, 12, **options)
    chexpert(folder / "valid.csv", root, "valid", 64541, 6, **options)
    chexpert(folder / "test_labels.csv", root, "test", 64741, 5, views=False, **options)  # it has no views
    for split, patient in (("train", 10001), ("valid", 64542), ("test", 64743)):
        write(folder / split / f"patient{patient}" / "study1" / "view1_frontal.jpg", [""])
    table = read_manifest(folder, preset="chexpert")
    assert Counter(table.splits) == {"train": 12, "val": 6, "test": 5}
    assert table.splits == ["train"] * 12 + ["val"] * 6 + ["test"] * 5
    assert table.notes == ["3 images of no frontal view"]
    assert table.patients[12] == "patient64541"
    for row, name in ((0, "train/patient10001"), (13, "valid/patient64542"), (20, "test/patient64743")):
        assert table.paths[row] == str(folder / name / "study1" / "view1_frontal.jpg")
    for name, split, count in (("valid.csv", "test", 6), ("test_labels.csv", "test", 5)):
        assert read_manifest(folder / name, preset="chexpert").splits == [split] * count


def test_chexpert_lists_without_any_folder_go_by_their_names(tmp_path):
    for name, split in (("valid.csv", "test"), ("test_labels.csv", "test"), ("train.csv", "train")):
        path = chexpert(tmp_path / name, "", "valid", 64541, 4)
        path.write_text(path.read_text().replace("valid/", ""))
        assert read_manifest(path, preset="chexpert").splits == [split] * 4
    path.write_text(path.read_text().replace("patient64543/", ""))
    with pytest.raises(hx.ConfigError, match=r"train\.csv: row 4, column 'Path' names no patient"):
        read_manifest(path, preset="chexpert")
    path.write_text(path.read_text().replace("study1/view1_frontal.jpg,", ","))
    with pytest.raises(hx.ConfigError, match=r"names no patient"):
        read_manifest(path, preset="chexpert")


def test_a_bad_cell_is_named_by_its_row_and_file_whatever_was_left_out_before_it(tmp_path):
    chexpert(tmp_path / "train.csv", "", "train", 10001, 4)
    path = chexpert(tmp_path / "valid.csv", "", "valid", 64541, 6)
    head, *rows, lateral = path.read_text().splitlines()
    write(path, [head, lateral, "", *rows[:-1], rows[-1].rpartition(",")[0] + ",7"])
    with pytest.raises(hx.ConfigError, match=r"valid\.csv: row 9, column '.*' holds another number"):
        read_manifest(tmp_path, preset="chexpert")

    labels = ["subject_id,study_id,Edema", *(f"{i},{i},{i % 2}" for i in range(4)), "4,4,wet"]
    labels = write(tmp_path / "mimic-cxr-2.0.0-chexpert.csv", labels)
    splits = ["dicom_id,study_id,subject_id,split", *(f"d{i},{i // 2},{i // 2},train" for i in range(10))]
    splits = write(tmp_path / "mimic-cxr-2.0.0-split.csv", splits)
    views = ["dicom_id,ViewPosition", *(f"d{i},{'PA' if i % 2 else 'LATERAL'}" for i in range(10))]
    write(tmp_path / "mimic-cxr-2.0.0-metadata.csv", views)
    with pytest.raises(hx.ConfigError, match=r"chexpert\.csv: row 6, column 'Edema' holds a text"):
        read_manifest(tmp_path, preset="mimic-cxr", classes=["Edema"])
    write(splits, [*splits.read_text().splitlines(), "", "d10,5,,train"])
    with pytest.raises(hx.ConfigError, match=r"split\.csv: row 13 has nothing in the column 'subject_id'"):
        read_manifest(labels, preset="mimic-cxr", classes=["Edema"])


# --- the others -------------------------------------------------------------------------------------------------------
def test_mimic_views_that_nobody_told(tmp_path):
    """Compressed lists, more columns than are read, and images without ViewPosition, which are told by themselves."""
    labels = ["subject_id,study_id,Atelectasis,Edema"]
    labels += [f"1000{i:04d},5000{i:04d},{['1.0', '0.0', '-1.0', ''][i % 4]},{i % 2}.0" for i in range(12)]
    views = ["PA", "AP", "", "LATERAL", "LL", "AP AXIAL"]
    where = [f"d{i}-{v}" for i in range(12) for v in range(6)]
    write(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
    splits = [f"{name},5000{n // 6:04d},1000{n // 6:04d},train" for n, name in enumerate(where)]
    write(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id,study_id,subject_id,split", *splits])
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate"
    rows = [
        f'{name},1000{n // 6:04d},5000{n // 6:04d},"CHEST (PA AND LAT)",{views[n % 6]},3056,2544,21800506'
        for n, name in enumerate(where)
    ]
    write(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", [header, *rows])
    table = read_manifest(tmp_path, preset="mimic-cxr", classes=["Atelectasis", "Edema"])
    assert len(table) == 24
    assert table.notes == [
        "36 images of no frontal view",
        "12 images whose view is not told (ViewPosition is empty)",
    ]


@pytest.mark.parametrize("ends", [("", ""), (",", ","), ("", ",")])
def test_nih14_headers_with_commas_in_names(tmp_path, ends):
    """``OriginalImage[Width,Height]`` is two columns; some editions end header and rows, or rows alone, in a comma."""
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    rows = [
        f"{i // 2 + 1:08d}_{i % 2:03d}.png,{('No Finding', 'Hernia|Mass')[i % 2]},{i % 2},{i // 2 + 1},411,M,PA,2682,"
        f"2749,0.143,0.143{ends[1]}"
        for i in range(40)
    ]
    write(tmp_path / "Data_Entry_2017_v2020.csv", [header + ends[0], *rows])
    table = PRESETS["nih14"](tmp_path, None)
    assert table.paths[0] == str(tmp_path / "images" / "00000001_000.png")
    assert table.patients[:3] == ["1", "1", "2"]
    assert [table.classes[c] for c in np.flatnonzero(table.labels[1])] == ["Mass", "Hernia"]


def test_rows_with_more_cells_than_columns_are_refused(tmp_path):
    """pandas would take the first cell for a name of the row, and every other one for that of its neighbour."""
    rows = [f"{i}.png,{i % 2},1" for i in range(20)]
    with pytest.raises(hx.ConfigError, match=r"labels\.csv: has rows with more cells than its header has columns"):
        read_labels(write(tmp_path / "labels.csv", ["image,mass", *rows]))
    trailing = [f"{i}.png,{i % 2}," for i in range(40)]
    assert read_manifest(write(tmp_path / "labels.csv", ["image,mass", *trailing])).classes == ["mass"]


NIH14_HEADER = "Image Index,Finding Labels,Patient ID"


@pytest.mark.parametrize(
    ("preset", "name", "lines", "column"),
    [
        ("nih14", "Data_Entry_2017.csv", [NIH14_HEADER, "a.png,Mass,1", ",Mass,2"], "Image Index"),
        ("nih14", "Data_Entry_2017.csv", [NIH14_HEADER, "a.png,Mass,1", "b.png,Mass,"], "Patient ID"),
        ("rsna", "stage_2_train_labels.csv", ["patientId,Target", "a,1", ",0"], "patientId"),
        ("vindr", "train.csv", ["image_id,rad_id,class_name", "a,R1,Edema", ",R1,Edema"], "image_id"),
        ("padchest", "PADCHEST.csv", ["ImageID,PatientID,Projection,Labels", "a,1,PA,['x']", ",2,PA,['x']"], "ImageID"),
    ],
)
def test_a_row_without_an_id_is_refused(tmp_path, preset, name, lines, column):
    """And neither left out in silence nor given to a patient called nan."""
    path = write(tmp_path / name, lines)
    with pytest.raises(hx.ConfigError, match=rf"{name}: row 3 has nothing in the column '{column}"):
        PRESETS[preset](path, None)


def test_rsna_repeats_images_and_leaves_boxes_empty(tmp_path):
    rows = ["0004cfab-14fd-4e49-80ba-63a80b6bddd6,,,,,0"]
    rows += [f"00436515-870c-4b36-a041-de91049b9ab4,{x}.0,152.0,213.0,379.0,1" for x in (264, 562)]
    path = write(tmp_path / "stage_2_train_labels.csv", ["patientId,x,y,width,height,Target", *rows])
    table = PRESETS["rsna"](path, None)
    assert table.labels.tolist() == [[0], [1]]
    assert table.paths[1].endswith("stage_2_train_images/00436515-870c-4b36-a041-de91049b9ab4.dcm")


def test_vindr_calls_one_class_differently_in_its_test_list(tmp_path):
    """``Other diseases`` in the list of the training split is ``Other disease`` in that of the test split."""
    columns = ["Mass", "Other diseases", "No finding"]
    rows = [f"im{i},R{r},{int(i % 2 == 0)},{int(i % 3 == 0)},{int(i % 2)}" for i in range(8) for r in (8, 9, 10)]
    write(tmp_path / "image_labels_train.csv", [",".join(["image_id", "rad_id", *columns]), *rows])
    columns[1] = "Other disease"
    write(tmp_path / "image_labels_test.csv", [",".join(["image_id", *columns]), "t0,0,1,0", "t1,1,0,0"])
    table = PRESETS["vindr"](tmp_path, None)
    assert table.classes == ["Mass", "Other diseases"]
    assert table.labels[-2:].tolist() == [[0, 1], [1, 0]]
    assert table.splits[-2:] == ["test", "test"]


def test_padchest_labels_hold_upwards(tmp_path):
    """Who is said to have a loculated effusion has an effusion: a row names the most exact label alone."""
    kinds = ["['loculated pleural effusion']", "['pleural effusion']", "['air bronchogram']", "['normal']"]
    rows = [padchest_row(i, kinds[i % 4]) for i in range(8)]
    path = write(tmp_path / "PADCHEST_x.csv", [PADCHEST_HEADER, *rows])
    names = ["pleural effusion", "loculated pleural effusion", "consolidation", "alveolar pattern", "infiltrates"]
    table = PRESETS["padchest"](path, None, classes=names)
    assert table.labels[:4].tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0] * 5]
    assert "added: 8 broader labels, by more exact ones (PadChest's tree)" in table.notes
    for name in BROADER:  # the tree has no circles
        assert name not in with_broader(BROADER[name])


# --- RSNA -------------------------------------------------------------------------------------------------------------
def rsna(folder, count=12):
    rows = [f"image-{i},,,,,{i % 2}" for i in range(count)]
    return write(folder / "stage_2_train_labels.csv", ["patientId,x,y,width,height,Target", *rows])


def test_rsna_patients_by_the_published_mapping(tmp_path):
    """Two images of one person are one patient, under the id that ChestX-ray14 has."""
    path = rsna(tmp_path)
    (note,) = PRESETS["rsna"](path, None).notes
    assert "pneumonia-challenge-dataset-mappings_2018.json beside stage_2_train_labels.csv" in note
    mapping = tmp_path / "pneumonia-challenge-dataset-mappings_2018.json"
    rows = [{"subset_img_id": f"image-{i}", "img_id": f"{1 + i // 2:08d}_{i:03d}.png"} for i in range(11)]
    mapping.write_text(json.dumps(rows))
    table = PRESETS["rsna"](path, None)
    assert (
        dict(zip(table.paths, table.patients, strict=True))[str(tmp_path / "stage_2_train_images/image-3.dcm")] == "2"
    )
    assert sorted(set(table.patients)) == ["1", "2", "3", "4", "5", "6", "image-11"]
    assert table.notes[0].startswith("the 12 images are of 7 patients of ChestX-ray14")
    assert table.notes[1].startswith("1 image not in pneumonia-challenge")

    header = "Image Index,Finding Labels,Follow-up #,Patient ID"
    nih = write(tmp_path / "Data_Entry_2017.csv", [header, *(f"{i:08d}_000.png,Mass,0,{i}" for i in range(1, 4))])
    seen = Seen.of(replace(PRESETS["nih14"](nih, None), splits=["train"] * 3, origin={"given": "salt"}))
    taught = dict(zip(table.patients, seen.taught("patients", table.patients), strict=True))
    assert {patient for patient, known in taught.items() if known} == {"1", "2", "3"}

    wrong = '[{"subset_img_id": "a", "img_id": "b"}]'
    for text, message in (("{", "no list of img_id"), (wrong, "img_id of entry 1 is no")):
        mapping.write_text(text)
        with pytest.raises(hx.ConfigError, match=message):
            PRESETS["rsna"](path, None)
